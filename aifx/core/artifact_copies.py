"""Artefacts copied to a store and back, and compared where they arrive.

The manifest is written last, so that an unfinished copy is none. One that was interrupted goes on: files that are there
with the right bytes are not copied again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from aifx.core.artifact import (
    MANIFEST,
    THREADS,
    Artifact,
    DamagedArtifact,
    Files,
    SealedFile,
    check_once,
    damage,
    mark_checked,
    other_size,
    parse_artifact,
    sync_file,
    sync_folders,
    unsafe_file,
    writable_folder,
)
from aifx.core.digests import Sha256
from aifx.core.errors import EnvironmentFault, could_not
from aifx.core.files import UnsafeFile, make_folders, remove_temporary, replacing
from aifx.core.json_files import cannot_write
from aifx.core.progress import Reporter, report_progress
from aifx.core.stores import Store, open_store


def stored_artifact(store: Store, kind: str, version: int) -> Artifact | None:
    """The artefact in a store, of which only the manifest is read; None if there is none.

    Raises as `parse_artifact`, EnvironmentFault if the store fails.
    """
    try:
        data = store.read(MANIFEST)
    except UnsafeFile as e:
        raise _damaged(store, e) from e
    if data is not None:
        return parse_artifact(data, store.url, kind, version)
    if store.folder is not None and os.path.lexists(store.folder / MANIFEST):
        raise DamagedArtifact(store.url, f"{MANIFEST} is a folder")
    return None


def copy_artifact(source: Store, artifact: Artifact, target: Store) -> int:
    """Copy an artefact to the folder `target` and read it there again. Returns the bytes that were copied.

    Files in folders of other artefacts are left there (`copy_files`). Another artefact that is there is replaced: it
    loses its manifest first. Raises DamagedArtifact if a byte of the
    source is not as it was written, EnvironmentFault if one did not arrive. What arrived stays for the next call.
    """
    manifest, folder = artifact.encode(), target.folder
    if target.read(MANIFEST) not in (None, manifest):
        target.remove(MANIFEST)
    if folder is not None:
        with _writing(folder), writable_folder(folder):
            for parent, _, _ in os.walk(folder):
                remove_temporary(Path(parent))  # of a killed copy
    copied = copy_files(source, artifact.own_files, target)
    _write(target, MANIFEST, iter([manifest]), len(manifest))
    return copied


def copy_files(source: Store, files: Files, target: Store) -> int:
    """Copy some files of an artefact, as `copy_artifact` does, without its manifest."""
    with report_progress(f"copying {source.url}", sum(file.bytes for file in files.values()), "bytes") as progress:
        one = partial(_copy_file, source, target, progress=progress)
        with ThreadPoolExecutor(THREADS) as pool:
            copied = sum(pool.map(one, files, files.values()))
    if target.folder is not None and files:
        with _writing(target.folder):
            sync_folders(target.folder)
    return copied


def fetch_artifact(store: Store, artifact: Artifact, folder: Path, *, is_whole: bool = True) -> Path:
    """`folder` of the cache with the artefact of a store, of which only what is missing or damaged is copied.

    Args:
        is_whole: False for some of the files of an artefact, which are copied without its manifest.

    Raises DamagedArtifact if it is damaged in the store, EnvironmentFault if the store fails.
    """
    try:
        check_once(folder, artifact, artifact.own_files)
    except DamagedArtifact:  # or not there yet
        if is_whole:
            copy_artifact(store, artifact, open_store(str(folder)))
        else:
            copy_files(store, artifact.own_files, open_store(str(folder)))
        mark_checked(folder, artifact, artifact.own_files)
    except OSError as e:
        raise could_not(f"could not read {folder}", e, e.errno or errno.EIO, str(folder)) from e
    return folder


def damaged_in_store(store: Store, files: Files, progress: Reporter | None = None) -> list[str]:
    """The damage of files of an artefact in a store, one line per file. Reads all of them.

    Raises EnvironmentFault if the store fails.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _damage(store, name, files[name], progress), files)
        return [why for why in found if why]


def _damage(store: Store, name: str, file: SealedFile, progress: Reporter | None = None) -> str | None:
    if store.folder is not None:
        try:
            return damage(store.folder, name, file, progress)
        except OSError as e:
            raise could_not(f"could not read {store.folder / name}", e, e.errno or errno.EIO, str(store.folder)) from e
    size = store.size(name)
    if size is None:
        return f"{name} is missing"
    if size != file.bytes:
        return other_size(name, size, file)
    return None if store.sha256(name, progress) == file.sha256 else f"{name} has other bytes than were written"


def _copy_file(source: Store, target: Store, name: str, file: SealedFile, *, progress: Reporter) -> int:
    """Copy a file unless it is there with the right bytes, and compare what arrived. Returns the bytes copied."""
    if _damage(target, name, file) is None:
        if target.folder is not None:
            with _writing(target.folder / name):
                sync_file(target.folder / name)
        progress.advance(file.bytes)
        return 0
    digest = Sha256()

    def passing() -> Iterator[bytes]:
        if source.size(name) is None:
            raise DamagedArtifact(source.url, f"{name} is missing")
        try:
            for block in source.blocks(name):
                digest.update(block)
                progress.advance(len(block))
                yield block
        except UnsafeFile as e:
            raise _damaged(source, e) from e
        if digest.hexdigest() != file.sha256:
            raise DamagedArtifact(source.url, f"{name} has other bytes than were written")

    _write(target, name, passing(), file.bytes)
    if _damage(target, name, file) is not None:
        what = f"{target.url}/{name} was changed on the way"
        why, hint = "its SHA-256 differs after it was written", "run the same command again"
        raise EnvironmentFault(what, why, hint, transient=True)
    return file.bytes


def _damaged(store: Store, error: UnsafeFile) -> DamagedArtifact:
    """A link, a FIFO or a device in a folder on a disk."""
    return DamagedArtifact(store.url, unsafe_file(Path(store.path), error))


def _write(store: Store, name: str, blocks: Iterator[bytes], size: int) -> None:
    """Write a file of a store. In a folder of this machine it is whole or absent, and survives a loss of power."""
    if store.folder is None:
        store.write(name, blocks)
        return
    path = store.folder / name
    with _writing(path, size):
        make_folders(path.parent, below=store.folder)
        with replacing(path, below=store.folder) as file:
            for block in blocks:
                file.write(block)


@contextmanager
def _writing(path: Path, size: int = 0) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as e:  # a folder that cannot be made, as below /proc
        raise could_not(f"could not write {path}", e, errno.ENOENT, str(path)) from e
    except OSError as e:
        raise cannot_write(path, e, size) from e
