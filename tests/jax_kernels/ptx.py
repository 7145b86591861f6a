"""Find bulk stores of Mosaic GPU's kernels that write over each other.

`cp.async.bulk.global.shared::cta` writes one contiguous range of bytes. Mosaic GPU cuts it off only at the end of the
whole array, so a tile that reaches past the end of its row writes into the next row, which belongs to another block.
`overlapping_stores` computes the range of each such store for every block and warpgroup of the grid. (Stores through a
tensor's descriptor, `cp.async.bulk.tensor`, are cut off in every dimension.)

The compiler writes what this reads with MOSAIC_GPU_DUMP_PTX=1 and MOSAIC_GPU_DUMP_HOST_LLVM=1.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TypeAlias

STORE = re.compile(r"cp\.async\.bulk\.global\.shared::cta\.bulk_group \[(%\w+)\], \[%\w+\], (%\w+|\d+)")
ANY_STORE = re.compile(r"cp(?:\.reduce)?\.async\.bulk(?:\.tensor\.\dd)?\.global\.shared::cta")
INSTRUCTION = re.compile(r"^\s*([a-z]\w*(?:[.:]+\w+)*)\s+(%\w+)(?:\|%\w+)?, (.+);$")
ENTRY = re.compile(r"^\.visible \.entry (\w+)_kernel\(", flags=re.MULTILINE)
HOST = re.compile(r"^define void @(\w+)\(", flags=re.MULTILINE)
LAUNCH = re.compile(r"@mosaic_gpu_(?:build_kernel_spec|launch_kernel)\(ptr [^,]+((?:, i32 \d+){7})")
WARPGROUP = 128  # threads
PARAMETER = 2**48  # bytes from one operand to the next, more than any has

Writers: TypeAlias = dict[str, list[tuple[str, list[str]]]]
"""By register, the opcodes and operands of the instructions that write it."""

OPERATIONS: dict[str, Callable[..., int]] = {
    "mov": lambda x: x,
    "cvt": lambda x: x,
    "shfl": lambda x, *_: x,
    "neg": operator.neg,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "mad": lambda a, b, c: a * b + c,
    "shl": operator.lshift,
    "shr": operator.rshift,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "min": min,
    "max": max,
}


def bulk_stores(output: str) -> int:
    """The number of bulk stores to global memory, of either kind."""
    return len(ANY_STORE.findall(output))


def overlapping_stores(output: str, memory_warpgroups: int = 1) -> list[str]:
    """Describe each plain bulk store that writes bytes that another block or warpgroup also writes.

    Args:
        output: what the compiler wrote.
        memory_warpgroups: the last warpgroups of a block, which load and never store.
    """
    launches = {
        name: [int(number) for number in re.findall(r"i32 (\d+)", numbers)]
        for name, host_code in _split(HOST, output)
        for numbers in LAUNCH.findall(host_code)
    }
    found = []
    for name, body in _split(ENTRY, output):
        writers = _writers(body)
        for address, size in STORE.findall(body):
            ranges = []
            try:
                for special in _threads(launches[name], memory_warpgroups):
                    thread = Thread(writers, special)
                    start = thread.value(address)
                    ranges.append((start, start + thread.value(size)))
            except LookupError as error:  # also of a kernel whose launch was not found
                found.append(f"{name}: cannot tell what its store writes: {error}")
                continue
            ranges = sorted(x for x in ranges if x[0] < x[1])
            over = sum(after < stop for (_, stop), (after, _) in itertools.pairwise(ranges))
            if over:
                found.append(f"{name}: {over} of {len(ranges)} stores run into the bytes of another")
    return found


def _split(heading: re.Pattern[str], output: str) -> Iterator[tuple[str, str]]:
    """Each heading's name with what follows it."""
    _, *parts = heading.split(output)
    return zip(parts[::2], parts[1::2], strict=True)


def _threads(launch: list[int], memory_warpgroups: int) -> Iterator[dict[str, int]]:
    """The special registers of the first thread of each warpgroup that may store.

    A launch is a grid of three numbers, a cluster of three, and the threads of a block.
    """
    *grid, _, _, _, threads = launch
    for block in itertools.product(*map(range, grid)):
        for warpgroup in range(max(threads // WARPGROUP - memory_warpgroups, 1)):
            place = zip(("%ctaid.x", "%ctaid.y", "%ctaid.z"), block, strict=True)
            yield {"%tid.x": warpgroup * WARPGROUP, **dict(place)}


class Thread:
    """Computes registers of one thread of a kernel, of those that no branch decides."""

    def __init__(self, writers: Writers, special: dict[str, int]) -> None:
        self.writers = writers
        self.known = dict(special)

    def value(self, operand: str) -> int:
        """The value of a register or a literal. Raises LookupError if it cannot be computed."""
        if not operand.startswith("%"):
            return int(operand, 0)
        if operand not in self.known:
            instructions = self.writers.get(operand, [])
            if len(instructions) != 1:
                raise LookupError(f"{operand} is written by {len(instructions)} instructions")
            self.known[operand] = self._compute(*instructions[0])
        return self.known[operand]

    def _compute(self, opcode: str, operands: list[str]) -> int:
        name, *modifiers = opcode.split(".")
        if name == "ld" and modifiers[0].startswith("param"):
            parameter = re.fullmatch(r"\[\w+_param_(\d+)(?:\+(\d+))?\]", operands[0])
            if parameter is None:
                raise LookupError(f"{opcode} {', '.join(operands)}")
            return PARAMETER * (1 + 1000 * int(parameter[1]) + int(parameter[2] or 0))
        if name not in OPERATIONS or "hi" in modifiers:
            raise LookupError(f"{opcode} {', '.join(operands)}")
        return OPERATIONS[name](*(self.value(x) for x in operands))


def _writers(body: str) -> Writers:
    """The instructions that write each register."""
    writers: Writers = defaultdict(list)
    for line in body.splitlines():
        if match := INSTRUCTION.match(line):
            opcode, target, operands = match.groups()
            writers[target].append((opcode, operands.split(", ")))
    return writers
