"""Artefacts copied to a store and back, and compared where they arrive.

The manifest is written last, so that an unfinished copy is none. One that was interrupted goes on: files that are there
with the right bytes are not copied again.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aifx.core.artifact import (
    MANIFEST,
    THREADS,
    Artifact,
    DamagedArtifact,
    SealedFile,
    parse_artifact,
    sync_file,
)
from aifx.core.digests import Sha256
from aifx.core.errors import EnvironmentFault
from aifx.core.json_files import sync_directory
from aifx.core.progress import Reporter, report_progress
from aifx.core.stores import Store


def stored_artifact(store: Store, kind: str, version: int) -> Artifact | None:
    """The artefact in a store, of which only the manifest is read; None if there is none.

    Raises as `parse_artifact`, EnvironmentFault if the store fails.
    """
    data = store.read(MANIFEST)
    return None if data is None else parse_artifact(data, store.url, kind, version)


def copy_artifact(source: Store, artifact: Artifact, target: Store) -> int:
    """Copy an artefact to the folder `target` and read it there again. Returns the bytes that were copied.

    Raises DamagedArtifact if a byte of the source is not as it was written, EnvironmentFault if one did not arrive.
    What arrived stays for the next call.
    """
    with report_progress(f"copying {source.url}", artifact.size_bytes, "bytes") as progress:
        copied = copy_files(source, artifact, target, progress)
    target.write(MANIFEST, iter([artifact.encode()]))
    if target.folder is not None:
        sync_file(target.folder / MANIFEST)
        sync_directory(target.folder)
    return copied


def copy_files(source: Store, artifact: Artifact, target: Store, progress: Reporter) -> int:
    """Copy the files of an artefact without its manifest, as `copy_artifact` does."""
    one = partial(_copy_file, source, target, progress=progress)
    files = artifact.every_file
    with ThreadPoolExecutor(THREADS) as pool:
        copied = sum(pool.map(one, files, files.values()))
    if target.folder is not None:
        for name in files:
            sync_file(target.folder / name)
        for folder in {(target.folder / name).parent for name in files}:
            sync_directory(folder)
    return copied


def damaged_in_store(store: Store, artifact: Artifact, progress: Reporter | None = None) -> list[str]:
    """What is wrong with the files of an artefact in a store, one line per file. Reads all of them."""

    def wrong(name: str, file: SealedFile) -> str | None:
        size = store.size(name)
        if size is None:
            return f"{name} is missing"
        if size != file.bytes:
            return f"{name} has {size:,} bytes and had {file.bytes:,}"
        return None if store.sha256(name, progress) == file.sha256 else f"{name} has other bytes than were written"

    files = artifact.every_file
    with ThreadPoolExecutor(THREADS) as pool:
        return [why for why in pool.map(wrong, files, files.values()) if why]


def _copy_file(source: Store, target: Store, name: str, file: SealedFile, *, progress: Reporter) -> int:
    """Copy a file unless it is there with the right bytes, and compare what arrived. Returns the bytes copied."""
    if _is_there(target, name, file):
        progress.advance(file.bytes)
        return 0
    digest = Sha256()

    def passing() -> Iterator[bytes]:
        if source.size(name) is None:
            raise DamagedArtifact(source.url, f"{name} is missing")
        for block in source.blocks(name):
            digest.update(block)
            progress.advance(len(block))
            yield block

    target.write(name, passing())
    if digest.hexdigest() != file.sha256:
        raise DamagedArtifact(source.url, f"{name} has other bytes than were written")
    if not _is_there(target, name, file):
        what = f"{target.url}/{name} was changed on the way"
        raise EnvironmentFault(what, "its SHA-256 differs after it was written", "run the same command again")
    return file.bytes


def _is_there(store: Store, name: str, file: SealedFile) -> bool:
    return store.size(name) == file.bytes and store.sha256(name) == file.sha256
