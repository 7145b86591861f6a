"""Checkpoints read in full: their arrays compared with their digests, or with those of another checkpoint."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aifx.checkpoint.digest import shard_lanes
from aifx.checkpoint.faults import while_reading
from aifx.checkpoint.lanes import NOTHING, Lanes, add, as_hex, host_lanes, starts_of
from aifx.checkpoint.manifest import (
    ArrayEntry,
    CheckpointName,
    Damaged,
    digest_of,
    read_checkpoint,
    read_manifest,
)
from aifx.checkpoint.stored import StoredArrays
from aifx.core.artifact import MANIFEST, damaged_files, stray_files
from aifx.core.files import UnsafeFile, check_tree
from aifx.core.project import RunDirectory
from aifx.core.results import Result
from aifx.parallel.group import Group


@dataclass(frozen=True)
class Verification:
    """The result of reading a checkpoint and comparing it with its digests.

    Attributes:
        state_digest: of the arrays on the disk; None if one of them cannot be read.
        damaged: names of arrays whose bytes are not those that were saved.
        files: what is wrong with files, one line per file; also those that the manifest does not name.
    """

    state_digest: str | None
    damaged: tuple[str, ...]
    files: tuple[str, ...]


def verify_stored(folder: Path) -> Verification:
    """Read every byte of the checkpoint in `folder`.

    Raises Damaged if its manifest cannot be read, EnvironmentFault if the machine refuses to read it.
    """
    try:
        artifact, manifest = read_checkpoint(folder)
        check_tree(folder)
        files = damaged_files(folder, artifact)
        strays = [f"{path.relative_to(folder)} is not in {MANIFEST}" for path in stray_files(folder, artifact)]
    except UnsafeFile as e:
        raise Damaged(f"checkpoint {folder} is damaged", e.what) from e
    except OSError as e:
        raise while_reading(e, folder) from e
    stored = StoredArrays(folder, manifest.arrays)
    found = {name: _digest_on_disk(stored, folder, name, entry) for name, entry in manifest.arrays.items()}
    damaged = tuple(name for name, entry in manifest.arrays.items() if found[name] != entry.digest)
    readable = [(n, e.dtype, e.shape, digest) for n, e in manifest.arrays.items() if (digest := found[n]) is not None]
    whole = digest_of(readable) if len(readable) == len(found) else None
    return Verification(whole, damaged, (*files, *strays))


class DeviceDigests:
    """The digests of restored arrays, computed where they are while others are still read.

    Every copy on every device is computed again. Each copy of which this process has all shards is compared here.
    Process 0 adds up what the processes have of the others.
    """

    def __init__(self) -> None:
        self._futures: dict[tuple[str, int], list[Future[Lanes]]] = defaultdict(list)
        self._missing: dict[tuple[str, int], int] = {}

    def add(self, name: str, array: jax.Array) -> None:
        """Start to compute the digests of an array's copies."""
        for shard in array.addressable_shards:
            copy, starts = (name, shard.replica_id), starts_of(shard.index, array.ndim)
            self._futures[copy].append(shard_lanes(shard.data, starts, array.shape))
            self._missing[copy] = self._missing.get(copy, array.size) - shard.data.size

    def damaged(self, entries: Mapping[str, ArrayEntry], peers: Group) -> list[str]:
        """The names of the arrays whose bytes on the devices are not those that were saved, in all processes."""
        lanes = {copy: add(future.result() for future in found) for copy, found in self._futures.items()}
        whole = [copy for copy in lanes if not self._missing[copy]]
        damaged = {name for name, replica in whole if as_hex(lanes[name, replica]) != entries[name].digest}
        shared = [(name, replica, lanes[name, replica]) for name, replica in lanes.keys() - set(whole)]
        return sorted({*damaged, *_damaged_across(shared, entries, peers)})


def _damaged_across(shared: list[tuple[str, int, Lanes]], entries: Mapping[str, ArrayEntry], peers: Group) -> list[str]:
    """The damaged ones among the copies (name, number of the copy, digest of this process's part) that are divided."""
    sums: dict[tuple[str, int], Lanes] = defaultdict(lambda: NOTHING)
    for parts in peers.gather(shared):
        for name, replica, lanes in parts:
            sums[name, replica] = add([sums[name, replica], lanes])
    wrong = sorted({name for (name, _), lanes in sums.items() if as_hex(lanes) != entries[name].digest})
    found: list[str] = peers.broadcast(wrong)
    return found


def _digest_on_disk(stored: StoredArrays, folder: Path, name: str, entry: ArrayEntry) -> str | None:
    """The digest of an array as it is on the disk; None if it cannot be read."""
    try:
        blocks = ((starts_of(index, len(entry.shape)), stored.read(name, index)) for index in stored.blocks(name))
        return as_hex(add(host_lanes(block.result(), starts, entry.shape) for starts, block in blocks))
    except Exception as e:
        error = while_reading(e, folder)
        if isinstance(error, Damaged):
            return None
        raise error from e


@dataclass(frozen=True)
class ArrayDifference:
    """An array in two checkpoints; fields are None for a checkpoint that does not have it.

    Attributes:
        norms: Euclidean norms over the finite elements.
        non_finite: how many elements are infinite or not a number.
        difference_norm: of the second minus the first, where both are finite; None if the shapes differ.
        largest_change: the largest absolute difference of an element; None if the shapes differ.
        equal: whether the two are equal bit for bit.
    """

    name: str
    dtypes: tuple[str | None, str | None]
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    norms: tuple[float | None, float | None]
    non_finite: tuple[int | None, int | None]
    difference_norm: float | None
    largest_change: float | None
    equal: bool

    @property
    def relative(self) -> float:
        """The norm of the difference relative to that of the first; infinite if there is no difference to compute."""
        if self.equal:
            return 0.0
        if self.difference_norm is None:
            return math.inf
        first = self.norms[0] or 0.0
        return self.difference_norm / first if first else math.inf


@dataclass(frozen=True)
class PartDifference:
    """The arrays of two checkpoints under one top-level name (`params`, `opt_state`), as if they were one array."""

    name: str
    num_arrays: int
    num_different: int
    norms: tuple[float, float]
    non_finite: tuple[int, int]
    difference_norm: float
    largest_change: float


@dataclass(frozen=True)
class CheckpointDifference(Result):
    """The result of a comparison, as `aifx ckpt diff --json` prints it.

    Attributes:
        equal: whether all arrays are equal bit for bit.
    """

    checkpoints: tuple[CheckpointName, CheckpointName]
    equal: bool
    parts: list[PartDifference]
    arrays: list[ArrayDifference]


def compare_checkpoints(first: tuple[RunDirectory, int], second: tuple[RunDirectory, int]) -> CheckpointDifference:
    """Compare two checkpoints. Memory holds a block of an array of each.

    Raises Damaged if a checkpoint has changed since it was saved, EnvironmentFault if the machine refuses to read it.
    """
    sides = [_Side(run.checkpoints / str(step)) for run, step in (first, second)]
    names = sorted({*sides[0].entries, *sides[1].entries})
    arrays = [_compare(name, sides) for name in names]
    tops = dict.fromkeys(name.partition("/")[0] for name in names)
    parts = [_part(top, [a for a in arrays if a.name.partition("/")[0] == top]) for top in tops]
    checkpoints = CheckpointName(first[0].name, first[1]), CheckpointName(second[0].name, second[1])
    return CheckpointDifference(checkpoints, all(a.equal for a in arrays), parts, arrays)


class _Side:
    """A checkpoint whose arrays are compared with their digests as they are read."""

    def __init__(self, folder: Path) -> None:
        check_tree(folder)
        self.folder = folder
        self.entries = read_manifest(folder).arrays
        self.stored = StoredArrays(folder, self.entries)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        try:
            found: np.ndarray[Any, Any] = self.stored.read(name, index).result()
        except Exception as e:
            raise while_reading(e, self.folder) from e
        return found


class _Sums:
    """An array of a checkpoint, with the numbers that could be read."""

    def __init__(self, side: _Side, name: str) -> None:
        self.side, self.name, self.entry = side, name, side.entries[name]
        self.lanes, self.squares, self.non_finite = NOTHING, 0.0, 0

    def add(self, index: tuple[slice, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The elements of a block as float64 or complex128, and which of them are finite."""
        block = self.side.read(self.name, index)
        self.lanes = add([self.lanes, host_lanes(block, starts_of(index, block.ndim), self.entry.shape)])
        values = block.astype(np.complex128 if block.dtype.kind == "c" else np.float64)
        finite = np.isfinite(values)
        self.non_finite += int(values.size - np.count_nonzero(finite))
        self.squares += _squares(values[finite])
        return values, finite

    def finish(self) -> float:
        """The norm. Raises Damaged if other bytes were read than were saved."""
        if as_hex(self.lanes) != self.entry.digest:
            what = f"checkpoint {self.side.folder} is damaged"
            raise Damaged(what, f"bytes differ from what was saved: {self.name}", "aifx ckpt verify")
        return math.sqrt(self.squares)


def _compare(name: str, sides: Sequence[_Side]) -> ArrayDifference:
    found = [_Sums(side, name) if name in side.entries else None for side in sides]
    entries: list[ArrayEntry | None] = [sums.entry if sums else None for sums in found]
    first, second = found
    squares, largest = 0.0, 0.0
    has_difference = first is not None and second is not None and first.entry.shape == second.entry.shape
    if first is not None and second is not None and has_difference:
        for index in first.side.stored.blocks(name):
            (a, a_finite), (b, b_finite) = first.add(index), second.add(index)
            both = a_finite & b_finite
            change = np.abs(b[both] - a[both])
            squares += _squares(change)
            largest = max(largest, float(change.max(initial=0.0)))
    else:
        for sums in found:
            for index in sums.side.stored.blocks(name) if sums else ():
                assert sums is not None
                sums.add(index)
    norms = [sums.finish() if sums else None for sums in found]
    signatures = [(entry.dtype, entry.shape, entry.digest) if entry else None for entry in entries]
    return ArrayDifference(
        name=name,
        dtypes=_pair(entry.dtype if entry else None for entry in entries),
        shapes=_pair(entry.shape if entry else None for entry in entries),
        norms=_pair(norms),
        non_finite=_pair(sums.non_finite if sums else None for sums in found),
        difference_norm=math.sqrt(squares) if has_difference else None,
        largest_change=largest if has_difference else None,
        equal=signatures[0] == signatures[1],
    )


def _part(name: str, arrays: Sequence[ArrayDifference]) -> PartDifference:
    return PartDifference(
        name=name,
        num_arrays=len(arrays),
        num_different=sum(not a.equal for a in arrays),
        norms=(math.hypot(*(a.norms[0] or 0.0 for a in arrays)), math.hypot(*(a.norms[1] or 0.0 for a in arrays))),
        non_finite=(sum(a.non_finite[0] or 0 for a in arrays), sum(a.non_finite[1] or 0 for a in arrays)),
        difference_norm=math.hypot(*(a.difference_norm or 0.0 for a in arrays)),
        largest_change=max(a.largest_change or 0.0 for a in arrays),
    )


def _pair(values: Iterable[Any]) -> tuple[Any, Any]:
    first, second = values
    return first, second


def _squares(values: np.ndarray[Any, Any]) -> float:
    return float(np.vdot(values, values).real)
