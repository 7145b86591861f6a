"""Checkpoints copied to another disk or a remote store and back, as artefacts (`aifx.core.artifact_copies`)."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from aifx.checkpoint import folders
from aifx.checkpoint.faults import check_room
from aifx.checkpoint.manifest import KIND, VERSION, Manifest, as_damaged, manifest_of
from aifx.core.artifact import MANIFEST, Artifact, stray_files
from aifx.core.artifact_copies import copy_artifact, stored_artifact
from aifx.core.errors import CheckpointError, could_not
from aifx.core.files import check_folder, check_tree
from aifx.core.json_files import disk_full
from aifx.core.results import Result
from aifx.core.stores import Store, open_store


@dataclass(frozen=True)
class CopiedCheckpoint(Result):
    """The result of a copy, as `aifx ckpt cp --json` prints it.

    Attributes:
        files: how many the checkpoint has.
        size_bytes: of all files but its manifest.
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
    """A checkpoint in a store, by its own manifest."""

    store: Store
    artifact: Artifact
    manifest: Manifest


def open_stored(url: str) -> Stored:
    """The checkpoint at `url`, whose last part is its step. Raises CheckpointError, Damaged, EnvironmentFault."""
    store = open_store(url)
    if store.folder is not None:
        check_tree(store.folder)
    with as_damaged(store.url):
        artifact = stored_artifact(store, KIND, VERSION)
        if artifact is None:
            raise CheckpointError(f"no checkpoint at {store.url}", f"it has no {MANIFEST}", "aifx ckpt ls")
        return Stored(store, artifact, manifest_of(artifact, store.url))


def copy_checkpoint(source: Stored, target: Store) -> CopiedCheckpoint:
    """Copy a checkpoint into the folder `target`, below the name of its step, and read it there again.

    Raises CheckpointError if another checkpoint is there, Damaged if a byte of the source is not as it was written,
    EnvironmentFault if one did not arrive or the disk has no room. What arrived stays for the next call.
    """
    step, artifact = source.manifest.step, source.artifact
    final = target.below(str(step))
    if final.folder is not None:
        check_tree(final.folder)
    there = final.read(MANIFEST)
    if there is not None and there != artifact.encode():
        hint = "choose another folder"
        raise CheckpointError(f"another checkpoint of step {step} is at {final.url}", "aifx does not replace it", hint)
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
    with as_damaged(source.store.url, "copy another checkpoint"):
        copied = copy_artifact(source.store, artifact, arriving)
    if place is not None:
        _remove_strays(place, artifact)
        folders.commit(place)
    return CopiedCheckpoint(
        source=source.store.url,
        target=final.url,
        step=step,
        state_digest=source.manifest.state_digest,
        files=len(artifact.every_file) + 1,
        size_bytes=artifact.size_bytes,
        copied_bytes=copied,
    )


def _remove_strays(place: Path, artifact: Artifact) -> None:
    """Delete what an interrupted copy of another checkpoint left in `place`."""
    try:
        for path in stray_files(place, artifact):
            path.unlink()
    except OSError as e:
        raise could_not(f"could not delete what is in {place}", e, e.errno or errno.EIO, str(place)) from e


def _check_space(source: Stored, arriving: Store, directory: Path) -> None:
    """Raise EnvironmentFault if the disk has no room for the missing files."""
    files = source.artifact.every_file
    missing = sum(file.bytes for name, file in files.items() if arriving.size(name) != file.bytes)
    try:
        check_room(directory, missing)
    except OSError as e:
        raise disk_full(directory / str(source.manifest.step), missing) from e
