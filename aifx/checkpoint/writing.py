"""A checkpoint written to its temporary folder: by all processes together, or array by array in one of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from aifx.checkpoint import folders
from aifx.checkpoint.capture import HostArray, Part
from aifx.checkpoint.faults import check_room, while_writing
from aifx.checkpoint.lanes import NOTHING, add, as_hex, host_lanes
from aifx.checkpoint.manifest import STATE, ArrayEntry, Manifest
from aifx.checkpoint.storage import merge, process_folder, write_arrays
from aifx.core.artifact import Files, SealedFile, files_below, seal, seal_files, sync_folders
from aifx.core.errors import EnvironmentFault
from aifx.core.json_values import plain
from aifx.parallel.group import Group


def write_part(place: Path, arrays: Mapping[str, HostArray], peers: Group) -> None:
    """Write the shards of this process to the checkpoint in `place`, and what it knows of them for process 0.

    The arrays must not change until this returns. Raises OSError, EnvironmentFault, and what TensorStore raises.
    """
    if not place.is_dir():
        what = f"process {peers.index} does not see {place}, which process 0 has made"
        raise EnvironmentFault(what, "all processes need the same file system", f"df {place.parent.parent}")
    own = process_folder(place / STATE, peers.index, peers.size)
    lanes = {name: [part.lanes(array.shape) for part in array.parts] for name, array in arrays.items()}
    try:
        write_arrays(own, arrays)
        files = seal_files(place, files_below(own))
    finally:
        wait([future for futures in lanes.values() for future in futures])
    sync_folders(own)
    parts = {
        name: {
            "lanes": add(future.result() for future in lanes[name]),
            "size": sum(part.data.size for part in array.parts),
        }
        for name, array in arrays.items()
    }
    document = {"files": plain(files), "parts": parts}
    _report(place, peers.index).write_text(json.dumps(document))


def complete(place: Path, manifest: Manifest, peers: Group) -> None:
    """Put the parts of all processes together, and make the checkpoint in `place` survive a loss of power.

    Args:
        manifest: with everything but the digests.
    """
    files: dict[str, SealedFile] = {}
    lanes = dict.fromkeys(manifest.arrays, NOTHING)
    sizes = dict.fromkeys(manifest.arrays, 0)
    for index in range(peers.size):
        document: dict[str, Any] = json.loads(_report(place, index).read_text())
        files |= {name: SealedFile(**file) for name, file in document["files"].items()}
        for name, part in document["parts"].items():
            lanes[name] = add([lanes[name], part["lanes"]])
            sizes[name] += part["size"]
    assert all(sizes[name] == e.size for name, e in manifest.arrays.items()), "one process saves each element"
    entries = {name: replace(entry, digest=as_hex(lanes[name])) for name, entry in manifest.arrays.items()}
    merge(place / STATE, peers.size)
    finish(place, replace(manifest, arrays=entries), files)


def finish(place: Path, manifest: Manifest, files: Files) -> None:
    """Seal the checkpoint in `place`, whose arrays are there.

    Args:
        files: those that are sealed already.
    """
    rest = [path for path in files_below(place) if path.relative_to(place).as_posix() not in files]
    seal(place, manifest.artifact({**files, **seal_files(place, rest)}))


def _report(place: Path, index: int) -> Path:
    """Beside the checkpoint, in its temporary folder."""
    return place.with_name(f"process_{index}.json")


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
