"""Checkpoints copied to another disk or a remote store and back, and verified where they arrive.

A store is whatever fsspec knows by the URL: a folder, `s3://`, `gs://`, `memory://`. The list of a checkpoint's files
(`files.json`) names each file with its size and SHA-256, and is written last, so that an unfinished copy is none. One
that was interrupted goes on: files that are there with the right bytes are not copied again.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from aifx.checkpoint import folders
from aifx.checkpoint.faults import check_room
from aifx.checkpoint.inventory import INVENTORY, Files, UnreadableInventory, parse_inventory, sync_file, sync_folders
from aifx.checkpoint.manifest import FILE, ITEM, Damaged, Manifest, parse_manifest
from aifx.core.digests import Sha256
from aifx.core.errors import CheckpointError, EnvironmentFault
from aifx.core.files import check_folder, check_tree
from aifx.core.json_files import disk_full
from aifx.core.os_errors import could_not
from aifx.core.progress import Reporter, report_progress
from aifx.core.stores import Store, open_store

THREADS = 4
LIST = f"{ITEM}/{INVENTORY}"


@dataclass(frozen=True)
class CopiedCheckpoint:
    """What `aifx ckpt cp --json` prints.

    Attributes:
        files: how many the checkpoint has.
        copied_bytes: bytes that this call copied; the rest was there already.
    """

    source: str
    target: str
    step: int
    state_digest: str
    files: int
    size_bytes: int
    copied_bytes: int


@dataclass(frozen=True)
class Stored:
    """A checkpoint in a store, by its own documents."""

    store: Store
    manifest: Manifest
    files: Files
    listed: bytes  # files.json

    @property
    def size_bytes(self) -> int:
        return sum(size for size, _ in self.files.values())


def open_stored(url: str) -> Stored:
    """The checkpoint at `url`, whose last part is its step. Raises CheckpointError, Damaged, EnvironmentFault."""
    store = open_store(url)
    if store.folder is not None:
        check_tree(store.folder)
    manifest, listed = store.read(f"{ITEM}/{FILE}"), store.read(LIST)
    if manifest is None:
        raise CheckpointError(f"no checkpoint at {store.url}", f"it has no {ITEM}/{FILE}", "aifx ckpt ls")
    if listed is None:
        why = f"{INVENTORY} is missing: it was not copied completely"
        raise Damaged(f"checkpoint {store.url} is damaged", why, "run the command again that copied it there")
    return Stored(store, parse_manifest(manifest, store.url), _parsed(listed, store), listed)


def copy_checkpoint(source: Stored, target: Store) -> CopiedCheckpoint:
    """Copy a checkpoint into the folder `target`, below the name of its step, and read it there again.

    Raises CheckpointError if another checkpoint is there, Damaged if a byte of the source is not as it was written,
    EnvironmentFault if one did not arrive or the disk has no room. What arrived stays for the next call.
    """
    step = source.manifest.step
    final = target.below(str(step))
    there = final.read(LIST)
    if there is not None and there != source.listed:
        hint = "choose another folder"
        raise CheckpointError(f"another checkpoint of step {step} is at {final.url}", "aifx does not replace it", hint)
    if there is not None and final.folder is not None:
        check_tree(final.folder)
    place, arriving = None, final
    if target.folder is not None and there is None:
        check_folder(target.folder)
        place = folders.temporary_place(target.folder, step)
        check_folder(place.parent)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise could_not(f"could not make the folder {place}", e, e.errno or errno.EIO, str(target.folder)) from e
        arriving = open_store(str(place))
        _check_space(source, arriving, target.folder)
    names = sorted(source.files)
    with (
        report_progress(f"copying {source.store.url}", source.size_bytes, "bytes") as progress,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        copied = sum(pool.map(lambda name: _copy_file(source, arriving, name, progress), names))
    if arriving.folder is not None:
        for name in names:
            sync_file(arriving.folder / name)
    if there is None:
        arriving.write(LIST, iter([source.listed]))
    if place is not None:
        sync_file(place / LIST)
        sync_folders(place)
        folders.commit(place)
    return CopiedCheckpoint(
        source=source.store.url,
        target=final.url,
        step=step,
        state_digest=source.manifest.state_digest,
        files=len(names) + 1,
        size_bytes=source.size_bytes,
        copied_bytes=copied,
    )


def _copy_file(source: Stored, target: Store, name: str, progress: Reporter) -> int:
    """Copy a file unless it is there with the right bytes, and compare what arrived. Returns the bytes copied."""
    size, sha = source.files[name]
    if target.size(name) == size and target.sha256(name) == sha:
        progress.advance(size)
        return 0
    digest = Sha256()

    def passing() -> Iterator[bytes]:
        if source.store.size(name) is None:
            raise Damaged(f"checkpoint {source.store.url} is damaged", f"{name} is missing", "copy another checkpoint")
        for block in source.store.blocks(name):
            digest.update(block)
            progress.advance(len(block))
            yield block

    target.write(name, passing())
    if digest.hexdigest() != sha:
        why = f"{name} has other bytes than were written"
        raise Damaged(f"checkpoint {source.store.url} is damaged", why, "copy another checkpoint")
    if target.size(name) != size or target.sha256(name) != sha:
        what = f"{target.url}/{name} was changed on the way"
        raise EnvironmentFault(what, "its SHA-256 differs after it was written", "run the same command again")
    return size


def _check_space(source: Stored, arriving: Store, directory: Path) -> None:
    """Raise EnvironmentFault if the disk has no room for the missing files."""
    missing = sum(size for name, (size, _) in source.files.items() if arriving.size(name) != size)
    try:
        check_room(directory, missing)
    except OSError as e:
        raise disk_full(directory / str(source.manifest.step), missing) from e


def _parsed(listed: bytes, store: Store) -> Files:
    try:
        files = parse_inventory(listed)
    except UnreadableInventory as e:
        raise Damaged(f"checkpoint {store.url} is damaged", str(e)) from e
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise Damaged(f"checkpoint {store.url} is damaged", f"{INVENTORY} names {name!r}, which is outside of it")
    return files
