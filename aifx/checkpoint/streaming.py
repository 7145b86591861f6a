"""A checkpoint written while its arrays come one by one, so that memory never holds them all."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aifx.checkpoint import folders
from aifx.checkpoint.capture import HostArray, Part
from aifx.checkpoint.digest import as_hex, host_lanes
from aifx.checkpoint.faults import check_room, while_writing
from aifx.checkpoint.manifest import STATE, ArrayEntry, Manifest
from aifx.checkpoint.storage import write_arrays
from aifx.checkpoint.writing import finish

BATCH_BYTES = 64 << 20
"""Arrays that are written together: each transaction of TensorStore adds files."""


def write_checkpoint(
    directory: Path,
    step: int,
    entries: Mapping[str, ArrayEntry],
    arrays: Iterable[tuple[str, np.ndarray[Any, Any]]],
    *,
    run: Mapping[str, Any],
    host: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write the checkpoint of `step` into `directory`, which has none of it, in this process alone.

    Memory holds an array, or BATCH_BYTES of smaller ones.

    Args:
        entries: of each array, without its digest.
        arrays: each of them once, in any order. What the iterator raises leaves no checkpoint.
        run: as `Checkpoints.bind` takes it.
        host: what the training loop keeps with the arrays.

    Raises EnvironmentFault if the disk does not take it.
    """
    size = sum(entry.num_bytes for entry in entries.values())
    place = folders.temporary_place(directory, step)
    found = dict(entries)
    try:
        folders.prepare(place)
        check_room(directory, size)
        for batch in _batches(arrays):
            for name, array in batch.items():
                assert (array.dtype.name, array.shape) == (entries[name].dtype, entries[name].shape), name
                found[name] = replace(entries[name], digest=as_hex(host_lanes(array)))
            write_arrays(place / STATE, {name: _whole(array) for name, array in batch.items()})
        assert all(entry.digest for entry in found.values()), "each array came"
        manifest = Manifest(step, time.time(), None, found, dict(host or {}), None, dict(run))
        finish(place, manifest, {})
        folders.commit(place)
    except BaseException as error:
        folders.discard(place)
        fault = while_writing(error, directory, step, size, 1)
        if fault is error:
            raise
        raise fault from error
    return manifest


def _whole(array: np.ndarray[Any, Any]) -> HostArray:
    return HostArray(array.dtype, array.shape, array.shape, (Part((0,) * array.ndim, array),))


def _batches(arrays: Iterable[tuple[str, np.ndarray[Any, Any]]]) -> Iterable[dict[str, np.ndarray[Any, Any]]]:
    batch: dict[str, np.ndarray[Any, Any]] = {}
    for name, array in arrays:
        if batch and sum(held.nbytes for held in batch.values()) + array.nbytes > BATCH_BYTES:
            yield batch
            batch = {}
        batch[name] = array
    if batch:
        yield batch
