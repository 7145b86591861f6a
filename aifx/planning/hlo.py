"""Bytes that a compiled program moves, counted from XLA's text of it (`Compiled.as_text()`). Imports no JAX.

The cost of an instruction is what it reads and writes. What happens inside a fusion stays in registers and caches.
Loops count as often as they turn, which XLA's own `bytes accessed` doesn't do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

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
_ARRAY = re.compile(r"\b(f8\w+|[a-z]+\d+|pred)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.<>-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.<>-]+)")
_CONDITION = re.compile(r"condition=%?([\w.<>-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result_bytes: float
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


@dataclass
class Traffic:
    """What one run of a program moves on one device.

    Attributes:
        product_bytes: operands and results of matrix products and convolutions, with what is fused to them.
        other_bytes: of everything else.
        collective_bytes: results of collectives, by kind.
        unknown_loops: loops whose number of turns XLA does not write down; they count once.
    """

    product_bytes: float = 0.0
    other_bytes: float = 0.0
    collective_bytes: dict[str, float] = field(default_factory=dict)
    unknown_loops: int = 0

    @property
    def bytes(self) -> float:
        return self.product_bytes + self.other_bytes

    def add(self, other: Traffic, times: float) -> None:
        self.product_bytes += times * other.product_bytes
        self.other_bytes += times * other.other_bytes
        for kind, size in other.collective_bytes.items():
            self.collective_bytes[kind] = self.collective_bytes.get(kind, 0.0) + times * size
        self.unknown_loops += other.unknown_loops


def count_traffic(text: str) -> Traffic:
    """Of the entry computation of a compiled module."""
    computations, entry = _parse(text)
    return _Counting(computations).of(entry)


class _Counting:
    def __init__(self, computations: Mapping[str, list[Instruction]]) -> None:
        self._computations = computations
        self._counted: dict[str, Traffic] = {}

    def of(self, name: str) -> Traffic:
        if name not in self._counted:
            total = self._counted[name] = Traffic()
            sizes = {one.name: one.result_bytes for one in self._computations.get(name, ())}
            for one in self._computations.get(name, ()):
                self._add(total, one, sizes)
        return self._counted[name]

    def _add(self, total: Traffic, one: Instruction, sizes: Mapping[str, float]) -> None:
        called = _CALLED.findall(one.attributes)
        if one.opcode in ALIASES or one.opcode.endswith("-done"):
            return
        if one.opcode == "while":
            turns = self._turns(one)
            total.unknown_loops += turns is None
            for name in called:
                total.add(self.of(name), 1 if turns is None else turns)
        elif one.opcode in ("call", "async"):
            for name in called:
                total.add(self.of(name), 1)
        elif one.opcode == "conditional":
            branches = [self.of(name) for name in _OPERAND.findall(one.attributes) if name in self._computations]
            if branches:
                total.add(max(branches, key=lambda branch: branch.bytes), 1)
        elif one.opcode in COLLECTIVES:
            total.collective_bytes[one.opcode] = total.collective_bytes.get(one.opcode, 0.0) + one.result_bytes
        elif self._is_product(one, called):
            total.product_bytes += self._moved(one, called, sizes)
        else:
            total.other_bytes += self._moved(one, called, sizes)

    def _turns(self, loop: Instruction) -> int | None:
        """How often a loop turns: as XLA writes it, otherwise the number that its condition compares with."""
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

    def _moved(self, one: Instruction, called: list[str], sizes: Mapping[str, float]) -> float:
        """What an instruction reads and writes. Of an array that it only slices or updates, the slice alone."""
        read = sum(sizes.get(name, 0.0) for name in one.operands)
        if one.opcode in SLICES:
            return 2 * one.result_bytes
        if one.opcode == "copy":
            return 2 * read
        if one.opcode == "dynamic-update-slice":
            return 2 * sizes.get(one.operands[1], 0.0)
        if one.opcode == "fusion" and called:
            read = sum(self._read(called[0], index) for index in range(len(one.operands)))
            return read + self._written(called[0])
        return read + one.result_bytes

    def _read(self, computation: str, index: int) -> float:
        """What a fused computation reads of its parameter number `index`."""
        inside = self._computations.get(computation, [])
        for one in inside:
            if one.opcode == "parameter" and one.attributes == str(index):
                return min(self._used(inside, one), one.result_bytes)
        return 0.0

    def _used(self, inside: list[Instruction], value: Instruction) -> float:
        total = 0.0
        for user in (one for one in inside if value.name in one.operands):
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
        """What a fused computation writes."""
        inside = {one.name: one for one in self._computations.get(computation, [])}
        root = next((one for one in inside.values() if one.is_root), None)
        return self._stored(inside, root) if root is not None else 0.0

    def _stored(self, inside: Mapping[str, Instruction], value: Instruction) -> float:
        if value.opcode == "tuple":
            return sum(self._stored(inside, inside[name]) for name in value.operands if name in inside)
        if value.opcode == "dynamic-update-slice" and value.operands[1] in inside:
            return inside[value.operands[1]].result_bytes
        if value.opcode == "bitcast" and value.operands and value.operands[0] in inside:
            return self._stored(inside, inside[value.operands[0]])
        if value.opcode == "fusion" and (called := _CALLED.findall(value.attributes)):
            return self._written(called[0])
        return value.result_bytes


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
    """From "f32[2,3]{1,0} fusion(%a, %b), kind=kLoop, calls=%c"."""
    at = _end_of_type(rest)
    shape, call = rest[:at], rest[at:].lstrip()
    opcode, _, arguments = call.partition("(")
    operands, _, attributes = _split_arguments(arguments)
    opcode = opcode.removesuffix("-start")  # asynchronous: its end, "fusion-done", does nothing
    if opcode in ("parameter", "constant"):
        attributes = operands
    return Instruction(name, opcode, _bytes(shape), tuple(_OPERAND.findall(operands)), attributes, is_root)


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


def _bytes(shape: str) -> float:
    total = 0.0
    for kind, dimensions in _ARRAY.findall(shape):
        size = BYTES.get(kind, 1 if kind.startswith("f8") else 0)
        total += size * math.prod(int(d) for d in dimensions.split(",") if d)
    return total
