"""A checkpoint written to its temporary folder: by each process its part, and by process 0 what there is once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from aifx.checkpoint.capture import HostArray
from aifx.checkpoint.digest import NOTHING, add, as_hex
from aifx.checkpoint.manifest import STATE, Manifest
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
