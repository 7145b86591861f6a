"""Arrays of a checkpoint compared with their digests: those on devices, and those on the disk."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import jax

from aifx.checkpoint.digest import NOTHING, Lanes, add, as_hex, host_lanes, shard_lanes, starts_of
from aifx.checkpoint.faults import while_reading
from aifx.checkpoint.manifest import ArrayEntry, Damaged, Manifest, digest_of, read_checkpoint
from aifx.checkpoint.storage import StoredArrays
from aifx.core.artifact import MANIFEST, damaged_files, stray_files
from aifx.core.files import UnsafeFile, check_tree
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

    def damaged(self, manifest: Manifest, peers: Group) -> list[str]:
        """The names of the arrays whose bytes on the devices are not those that were saved, in all processes."""
        lanes = {copy: add(future.result() for future in found) for copy, found in self._futures.items()}
        whole = [copy for copy in lanes if not self._missing[copy]]
        damaged = {name for name, replica in whole if as_hex(lanes[name, replica]) != manifest.arrays[name].digest}
        shared = [(name, replica, lanes[name, replica]) for name, replica in lanes.keys() - set(whole)]
        return sorted({*damaged, *_damaged_across(shared, manifest, peers)})


def _damaged_across(shared: list[tuple[str, int, Lanes]], manifest: Manifest, peers: Group) -> list[str]:
    """The damaged ones among the copies (name, number of the copy, digest of this process's part) that are divided."""
    sums: dict[tuple[str, int], Lanes] = defaultdict(lambda: NOTHING)
    for parts in peers.gather(shared):
        for name, replica, lanes in parts:
            sums[name, replica] = add([sums[name, replica], lanes])
    wrong = sorted({name for (name, _), lanes in sums.items() if as_hex(lanes) != manifest.arrays[name].digest})
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
