"""Bytes that a compiled program moves, counted from XLA's text of it (`Compiled.as_text()`). Imports no JAX.

The cost of an instruction is what it reads and writes. What happens inside a fusion stays in registers and caches.
Loops count as often as they turn, which XLA's own `bytes accessed` doesn't do.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from aifx.planning.network import Collective

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
ALIASES = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "optimization-barrier", "opt-barrier", "domain", "iota", "async-done", "copy-done",
})  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
SLICES = ("dynamic-slice", "slice", "gather")
PRODUCTS = ("dot", "convolution", "ragged-dot")
LIBRARY_PRODUCT = re.compile(r"gemm|matmul|conv|cublas|cudnn|onednn")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.<>-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.<>-]+) = (.*)$")
_ARRAY = re.compile(r"\b(f8\w+|[a-z]+\d+|pred)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = re.compile(r"T\(.*S\([1-9]")
"""The layout of an array of a TPU that is not in its main memory."""
_OPERAND = re.compile(r"%([\w.<>-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.<>-]+)")
_CONDITION = re.compile(r"condition=%?([\w.<>-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

# The devices of a collective: {{0,1},{2,3}}, [2,2]<=[4]T(0), mesh['data'=2,'fsdp'=2] {'fsdp'}; pairs of a permutation.
_LISTED = re.compile(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
_MESH_AXIS = re.compile(r"'([^']+)'=(\d+)")
_GROUP_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        result_bytes: in main memory.
        whole_bytes: wherever they are.
    """

    name: str
    opcode: str
    result_bytes: float
    whole_bytes: float
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


@dataclass
class Traffic:
    """Bytes that one run of a program moves on one device.

    Attributes:
        product_bytes: operands and results of matrix products and convolutions, with what is fused to them.
        other_bytes: of everything else.
        collectives: between devices.
        unknown_loops: loops whose number of turns XLA does not write down; they count once.
    """

    product_bytes: float = 0.0
    other_bytes: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    unknown_loops: int = 0

    @property
    def bytes(self) -> float:
        return self.product_bytes + self.other_bytes

    def add(self, other: Traffic, times: float, *, in_loop: bool = False) -> None:
        self.product_bytes += times * other.product_bytes
        self.other_bytes += times * other.other_bytes
        self.collectives += [
            replace(one, turns=times * one.turns, in_loop=one.in_loop or in_loop) for one in other.collectives
        ]
        self.unknown_loops += other.unknown_loops


def count_traffic(text: str) -> Traffic:
    """The traffic of the entry computation of a compiled module."""
    computations, entry = _parse(text)
    return _Counting(computations).of(entry)


class _Counting:
    def __init__(self, computations: Mapping[str, list[Instruction]]) -> None:
        self._computations = computations
        self._counted: dict[str, Traffic] = {}

    def of(self, name: str) -> Traffic:
        if name not in self._counted:
            total = self._counted[name] = Traffic()
            inside = {one.name: one for one in self._computations.get(name, ())}
            for one in inside.values():
                self._add(total, one, inside)
        return self._counted[name]

    def _add(self, total: Traffic, one: Instruction, inside: Mapping[str, Instruction]) -> None:
        called = _CALLED.findall(one.attributes)
        if one.opcode in ALIASES or one.opcode.endswith("-done"):
            return
        if one.opcode == "while":
            turns = self._turns(one)
            total.unknown_loops += turns is None
            for name in called:
                total.add(self.of(name), 1 if turns is None else turns, in_loop=True)
        elif one.opcode in ("call", "async"):
            for name in called:
                total.add(self.of(name), 1)
        elif one.opcode == "conditional":
            branches = [self.of(name) for name in _OPERAND.findall(one.attributes) if name in self._computations]
            if branches:
                total.add(max(branches, key=lambda branch: branch.bytes), 1)
        elif one.opcode in COLLECTIVES:
            total.collectives.append(collective(one, _given(one, inside)))
        elif one.opcode == "fusion" and (fused := self._fused_collectives(called)) is not None:
            total.collectives += fused
            if self._is_product(one, called):
                total.product_bytes += self._moved(one, called, inside)
        elif self._is_product(one, called):
            total.product_bytes += self._moved(one, called, inside)
        else:
            total.other_bytes += self._moved(one, called, inside)

    def _fused_collectives(self, called: list[str]) -> list[Collective] | None:
        """The collectives that start in a fusion of a TPU's compiler; None if it has none.

        A collective that runs beside products is in several fusions: its start, the products' and its end. A
        reduce-scatter can be an all-reduce (of a padded array) and a slice of it.
        """
        inside = {one.name: one for name in called for one in self._computations.get(name, ())}
        found = [one for one in inside.values() if one.opcode in COLLECTIVES]
        if not found:
            return None
        if any("chain_id=" in one.attributes for one in found):
            starts = any('custom_call_target="AsyncCollectiveStart"' in one.attributes for one in inside.values())
            found = found if starts else []
        sliced = {name for one in inside.values() if one.opcode == "dynamic-slice" for name in one.operands}
        unpadded = max((one.whole_bytes for one in inside.values() if one.opcode == "parameter"), default=0.0)
        return [
            replace(collective(one, unpadded), kind="reduce-scatter")
            if one.opcode == "all-reduce" and one.name in sliced
            else collective(one, _given(one, inside))
            for one in found
        ]

    def _turns(self, loop: Instruction) -> int | None:
        """The number of a loop's turns: as XLA writes it, otherwise the one that its condition compares with."""
        if (known := _TURNS.search(loop.attributes)) is not None:
            return int(known[1])
        condition = _CONDITION.search(loop.attributes)
        inside = self._computations.get(condition[1], []) if condition else []
        limits = [int(one.attributes) for one in inside if one.opcode == "constant" and one.attributes.isdigit()]
        is_counted = any(one.opcode == "compare" and "direction=LT" in one.attributes for one in inside)
        return limits[0] if is_counted and len(limits) == 1 else None

    def _is_product(self, one: Instruction, called: list[str]) -> bool:
        if one.opcode in PRODUCTS:
            return True
        if one.opcode == "custom-call":
            return LIBRARY_PRODUCT.search(one.attributes) is not None
        return one.opcode == "fusion" and any(
            self._is_product(inner, _CALLED.findall(inner.attributes))
            for name in called
            for inner in self._computations.get(name, ())
        )

    def _moved(self, one: Instruction, called: list[str], inside: Mapping[str, Instruction]) -> float:
        """Bytes that an instruction reads and writes in main memory.

        Of an array that it only slices or updates, the slice alone counts.
        """
        operands = [inside[name] for name in one.operands if name in inside]
        if one.opcode in SLICES:
            return one.result_bytes + (one.whole_bytes if operands and operands[0].result_bytes else 0.0)
        if one.opcode == "dynamic-update-slice":
            update = operands[1] if len(operands) > 1 else one
            return update.result_bytes + (update.whole_bytes if one.result_bytes else 0.0)
        if one.opcode == "fusion" and called:
            read = sum(self._read(called[0], index) for index in range(len(one.operands)))
            return read + self._written(called[0])
        return sum(operand.result_bytes for operand in operands) + one.result_bytes

    def _read(self, computation: str, index: int) -> float:
        """Bytes that a fused computation reads of its parameter number `index`."""
        inside = self._computations.get(computation, [])
        for one in inside:
            if one.opcode == "parameter" and one.attributes == str(index):
                return min(self._used(inside, one), one.result_bytes)
        return 0.0

    def _used(self, inside: list[Instruction], value: Instruction) -> float:
        total = 0.0
        passed = (*COLLECTIVES, "tuple")
        for user in (one for one in inside if value.name in one.operands and one.opcode not in passed):
            if user.opcode in SLICES and user.operands[0] == value.name:
                total += user.result_bytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
                continue
            elif user.opcode in ("bitcast", "get-tuple-element"):
                total += self._used(inside, user)
            elif user.opcode == "fusion":
                called = _CALLED.findall(user.attributes)
                places = [place for place, name in enumerate(user.operands) if name == value.name]
                total += sum(self._read(called[0], place) for place in places) if called else value.result_bytes
            else:
                return value.result_bytes
        return total

    def _written(self, computation: str) -> float:
        """Bytes that a fused computation writes."""
        inside = {one.name: one for one in self._computations.get(computation, [])}
        root = next((one for one in inside.values() if one.is_root), None)
        return self._stored(inside, root) if root is not None else 0.0

    def _stored(self, inside: Mapping[str, Instruction], value: Instruction) -> float:
        if value.opcode == "tuple":
            passed = ("parameter", *COLLECTIVES)
            parts = (inside[name] for name in value.operands if name in inside)
            return sum(self._stored(inside, part) for part in parts if part.opcode not in passed)
        if value.opcode == "dynamic-update-slice" and value.operands[1] in inside:
            return inside[value.operands[1]].whole_bytes if value.result_bytes else 0.0
        if value.opcode == "bitcast" and value.operands and value.operands[0] in inside:
            return self._stored(inside, inside[value.operands[0]])
        if value.opcode == "fusion" and (called := _CALLED.findall(value.attributes)):
            return self._written(called[0])
        return value.result_bytes


def collective(one: Instruction, given: float) -> Collective:
    """The collective of an instruction whose operands have `given` bytes."""
    group = _group(one.attributes)
    return Collective(one.opcode, given * (len(group) or 1) if one.opcode == "all-gather" else given, group)


def _group(attributes: str) -> tuple[int, ...]:
    """Positions of the devices of a collective's first group; empty for all devices."""
    if (found := _LISTED.search(attributes)) is not None:
        return tuple(int(index) for index in found[1].split(","))
    if (found := _IOTA.search(attributes)) is not None:
        size, shape = int(found[1]), [int(side) for side in found[2].split(",")]
        order = [int(axis) for axis in found[3].split(",")] if found[3] else list(range(len(shape)))
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        offsets = [[place * strides[axis] for place in range(shape[axis])] for axis in order]
        return tuple(itertools.islice(_sums(offsets), size))
    if (found := _MESH.search(attributes)) is not None:
        mesh = [(name, int(side)) for name, side in _MESH_AXIS.findall(found[1])]
        offsets = []
        for name, before, part in _GROUP_AXIS.findall(found[2]):
            at = next(index for index, (axis, _) in enumerate(mesh) if axis == name)
            side = int(part or mesh[at][1])  # of a part of an axis, what stands before and after it are other groups
            after = mesh[at][1] // side // int(before or 1)
            stride = after * math.prod(side for _, side in mesh[at + 1 :])
            offsets.append([place * stride for place in range(side)])
        return tuple(_sums(offsets))
    return ()


def _sums(offsets: list[list[int]]) -> Iterator[int]:
    return (sum(parts) for parts in itertools.product(*offsets))


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", list[Instruction]()
    for line in text.splitlines():
        if (found := _COMPUTATION.match(line)) is not None:
            current = computations.setdefault(found[1], [])
            entry = found[1] if line.startswith("ENTRY") else entry
        elif (found := _INSTRUCTION.match(line)) is not None:
            current.append(_instruction(found[2], found[3], is_root=found[1] is not None))
    return computations, entry


def _instruction(name: str, rest: str, *, is_root: bool) -> Instruction:
    """Parse the right side of a line: `f32[2,3]{1,0} fusion(%a, %b), kind=kLoop, calls=%c`."""
    at = _end_of_type(rest)
    shape, call = rest[:at], rest[at:].lstrip()
    opcode, _, arguments = call.partition("(")
    operands, _, attributes = _split_arguments(arguments)
    if opcode.endswith("-start"):  # asynchronous: its end, "slice-done", does nothing
        opcode = opcode.removesuffix("-start")
        shape = _result_of_start(opcode, shape)
    if opcode in ("parameter", "constant"):
        attributes = operands
    read = tuple(_OPERAND.findall(operands))
    return Instruction(name, opcode, _bytes(shape, on_chip=False), _bytes(shape), read, attributes, is_root)


def _result_of_start(opcode: str, shape: str) -> str:
    """The type of the result in that of an asynchronous start, which has the operands beside it: (result, operand, ...)
    of a copy, (operands, result, ...) otherwise."""
    depth, ends = 0, list[int]()
    for at, letter in enumerate(shape):
        depth += {"(": 1, "{": 1, "[": 1, ")": -1, "}": -1, "]": -1}.get(letter, 0)
        if (letter == "," and depth == 1) or (depth == 0 and at):
            ends.append(at)
    if not shape.startswith("(") or len(ends) < 2:
        return shape
    return shape[1 : ends[0]] if opcode == "copy" else shape[ends[0] + 1 : ends[1]]


def _given(one: Instruction, inside: Mapping[str, Instruction]) -> float:
    """Bytes of its operands."""
    return sum(inside[name].whole_bytes for name in one.operands if name in inside)


def _end_of_type(rest: str) -> int:
    if not rest.startswith("("):
        return rest.find(" ")
    depth = 0
    for at, letter in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return at + 1
    return len(rest)


def _split_arguments(text: str) -> tuple[str, str, str]:
    depth = 1
    for at, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return text[:at], ")", text[at + 1 :]
    return text, "", ""


def _bytes(shape: str, *, on_chip: bool = True) -> float:
    """Bytes of the arrays of a type; without those that a TPU keeps on the chip unless `on_chip`."""
    total = 0.0
    for kind, dimensions, layout in _ARRAY.findall(shape):
        if not on_chip and _ON_CHIP.search(layout):
            continue
        size = BYTES.get(kind, 1 if kind.startswith("f8") else 0)
        total += size * math.prod(int(d) for d in dimensions.split(",") if d)
    return total
