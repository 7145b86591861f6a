"""Files that versions take over from versions that are to be deleted.

A version may have files in the folder of another one. Before that is deleted, the files get into the folder of a
version that stays, and the manifests of all that have them name the new place. Their digests, and so their names, stay.

Files first, the manifest last, so that each version always has all of its files where its manifest says. After a kill,
the next call does the rest.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from aifx.core.artifact import SealedFile, short
from aifx.core.artifact_copies import damaged_in_store
from aifx.core.errors import DataError
from aifx.core.json_files import sync_directory
from aifx.core.json_values import plain
from aifx.core.stores import Store
from aifx.curation.task_results import TaskResult, read_tasks
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import COMING, Manifest, ShardFile
from aifx.data.versions.sealing import reseal


def take_over(catalog: Catalog, name: str, holders: Collection[str]) -> list[str]:
    """Let the versions of a data set that have files in the folders of some hold these files themselves.

    The caller holds the data set, and deletes the holders afterwards. Returns the references of the changed versions.

    Args:
        holders: digests of versions.

    Raises DataError if one of the files is damaged or gone, EnvironmentFault if the store fails, OSError.
    """
    staying = [
        manifest
        for version in catalog.versions(name)
        if (manifest := _readable(catalog, f"{name}@{version}")) is not None and manifest.sha256 not in holders
    ]
    known = {file.sha256: (one.sha256, file.name) for one in staying for file in one.files if not file.holder}
    changed = []
    for manifest in staying:
        place = catalog.store.below(f"{name}/{manifest.version}")
        if set(holders).isdisjoint(manifest.holders):
            place.remove(COMING)
            continue
        moved: dict[str, ShardFile] = {}
        for file in manifest.files:
            if file.holder in holders:
                owner, its_name = known.setdefault(file.sha256, (manifest.sha256, file.name))
                if owner == manifest.sha256:
                    _copy(catalog.store.below(f"{name}/{short(file.holder)}"), file, place)
                    moved[file.name] = replace(file, holder="", stored_as="")
                else:
                    moved[file.name] = replace(file, holder=owner, stored_as=its_name)
        tasks = {_names(one): one for one in read_tasks(catalog, name, manifest.version)}
        for holder in sorted(holders):
            tasks |= {_names(one): one for one in _taken_tasks(catalog, name, holder, manifest, moved)}
        reseal(place, _with_files(manifest, moved), plain(list(tasks.values())))
        changed.append(manifest.reference)
    return changed


def _readable(catalog: Catalog, reference: str) -> Manifest | None:
    with suppress(DataError):
        return catalog.manifest(reference)
    return None


def _copy(source: Store, file: ShardFile, target: Store) -> None:
    """Put a file of another version into the folder of a version that refers to it, compared with its SHA-256.

    On a disk, both folders have the same file, until that of the holder is deleted.
    """
    sealed = {file.name: SealedFile(file.bytes, file.sha256)}
    if not damaged_in_store(target, sealed):
        return  # a call that was killed has put it there
    if source.folder is not None and target.folder is not None:
        _link(source.folder / file.stored_as, target.folder / file.name)
        if not damaged_in_store(target, sealed):
            return
    if why := damaged_in_store(source, {file.stored_as: sealed[file.name]}):
        raise DataError(f"{source.url}/{why[0]}", "other versions of the data set need it", "restore it from a copy")
    target.write(file.name, source.blocks(file.stored_as))


def _link(source: Path, target: Path) -> None:
    """Let a file have a second name, if the file system has such names."""
    target.parent.mkdir(exist_ok=True)
    with suppress(OSError):
        target.unlink(missing_ok=True)
        os.link(source, target, follow_symlinks=False)
        sync_directory(target.parent)


def _names(result: TaskResult) -> tuple[str, ...]:
    """The names of the files of a task, or its key if it has none."""
    return tuple(file.name for file in result.files) or (result.key,)


def _with_files(manifest: Manifest, moved: dict[str, ShardFile]) -> Manifest:
    def new(files: Sequence[ShardFile]) -> tuple[ShardFile, ...]:
        return tuple(moved.get(file.name, file) for file in files)

    return replace(
        manifest, shards=new(manifest.shards), dropped=new(manifest.dropped), quarantine=new(manifest.quarantine)
    )


def _taken_tasks(
    catalog: Catalog, name: str, holder: str, manifest: Manifest, moved: dict[str, ShardFile]
) -> list[TaskResult]:
    """The results of tasks of a holder all of whose files a version has taken over, with their names there."""
    names = {
        file.stored_as: moved[file.name].name
        for file in manifest.files
        if file.holder == holder and not moved[file.name].holder
    }

    def new(files: Sequence[ShardFile]) -> tuple[ShardFile, ...]:
        return tuple(replace(file, name=names[file.name]) for file in files)

    return [
        replace(one, shards=new(one.shards), dropped=new(one.dropped), quarantine=new(one.quarantine))
        for one in read_tasks(catalog, name, short(holder))
        if one.files and all(file.name in names for file in one.files)
    ]
