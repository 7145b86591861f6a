"""The additive digest of an array in the host's memory. It needs NumPy alone.

docs/checkpoints.md defines it. Each 32-bit word of an array is mixed with its position in the whole array, and the
mixed words are summed, so parts that are digested on different devices add up to the digest of the whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np

Lanes: TypeAlias = tuple[int, int]
"""Two sums of mixed words, modulo 2^32 each."""

NOTHING: Lanes = (0, 0)

POSITION = 0x9E3779B1  # 2^32 divided by the golden ratio, made odd
FIRST, SECOND = 0x21F0AAAD, 0x735A2D97  # the multipliers of the hash `lowbias32` (C. Wellons, hash-prospector)
MASK = 0xFFFFFFFF
_BLOCK_WORDS = 1 << 16  # three blocks of this size stay in a core's cache


def add(parts: Iterable[Lanes]) -> Lanes:
    """The digest of what consists of parts with these digests."""
    first, second = 0, 0
    for part in parts:
        first, second = first + part[0], second + part[1]
    return first & MASK, second & MASK


def as_hex(lanes: Lanes) -> str:
    """The digest as 16 hexadecimal digits."""
    return f"{lanes[0]:08x}{lanes[1]:08x}"


def host_lanes(part: np.ndarray[Any, Any], starts: Sequence[int] = (), shape: Sequence[int] | None = None) -> Lanes:
    """The digest of a part of an array that is in the host's memory.

    Args:
        starts: where the part begins in the whole array, by axis; by default the part is the whole.
        shape: of the whole array.
    """
    if not part.size:
        return NOTHING
    shape = part.shape if shape is None else shape
    words, per_element = _words(part)
    rows, columns = _contiguous(part.shape, shape)
    keys = (_row_positions(part.shape[:rows], starts or (0,) * part.ndim, shape) * per_element).astype(np.uint32)
    table = words.reshape(len(keys), columns * per_element)
    num_rows = max(_BLOCK_WORDS // table.shape[1], 1)
    first, second = 0, 0
    for row in range(0, len(keys), num_rows):
        for column in range(0, table.shape[1], _BLOCK_WORDS):
            block = table[row : row + num_rows, column : column + _BLOCK_WORDS]
            positions = keys[row : row + num_rows, None] + np.uint32(column)
            lanes = _mixed(block, positions)
            first, second = first + lanes[0], second + lanes[1]
    return first & MASK, second & MASK


def starts_of(index: tuple[slice, ...], ndim: int) -> tuple[int, ...]:
    """Where the part that `index` selects begins, by axis."""
    return tuple(part.start or 0 for part in index) if ndim else ()


def _words(part: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int]:
    """The elements in C order as unsigned numbers of at most 32 bits, and how many of them make an element."""
    flat = np.ascontiguousarray(part).reshape(-1)
    if flat.dtype.byteorder == ">" or (flat.dtype.byteorder == "=" and not np.little_endian):
        flat = flat.astype(flat.dtype.newbyteorder("<"))
    size = flat.dtype.itemsize
    return flat.view(f"<u{min(size, 4)}"), max(size // 4, 1)


def _contiguous(part: Sequence[int], shape: Sequence[int]) -> tuple[int, int]:
    """The number of leading axes of a part to count through, and the elements of its runs that have no gap."""
    axis, columns = len(part), 1
    while axis:
        axis -= 1
        columns *= part[axis]
        if part[axis] != shape[axis]:
            break
    return axis, columns


def _row_positions(leading: Sequence[int], starts: Sequence[int], shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """The position in the whole array of the first element of each run, uint64 `[runs]`."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    begin = sum(start * stride for start, stride in zip(starts, strides, strict=True))
    positions = np.full((), begin, np.uint64)
    for size, stride in zip(leading, strides, strict=False):
        positions = positions[..., None] + np.arange(size, dtype=np.uint64) * np.uint64(stride)
    return positions.reshape(-1)


def _mixed(words: np.ndarray[Any, Any], positions: np.ndarray[Any, Any]) -> Lanes:
    """The sums over `words`, `[rows, columns]`, of which each row begins at one of `positions`, `[rows, 1]`."""
    keys = positions * np.uint32(POSITION) + _column_keys()[: words.shape[1]]
    mixed = words ^ keys  # uint32, and fresh memory: the rest is done in place, which is twice as fast
    scratch = mixed >> np.uint32(16)
    mixed ^= scratch
    mixed *= np.uint32(FIRST)
    np.right_shift(mixed, np.uint32(15), out=scratch)
    mixed ^= scratch
    mixed *= np.uint32(SECOND)
    np.right_shift(mixed, np.uint32(15), out=scratch)
    mixed ^= scratch
    first = int(mixed.sum(dtype=np.uint32))
    keys += keys
    keys |= np.uint32(1)
    mixed *= keys
    np.right_shift(mixed, np.uint32(16), out=scratch)
    mixed ^= scratch
    return first, int(mixed.sum(dtype=np.uint32))


@cache
def _column_keys() -> np.ndarray[Any, Any]:
    return np.arange(_BLOCK_WORDS, dtype=np.uint32) * np.uint32(POSITION)
