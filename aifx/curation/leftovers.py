"""Leftovers of commands that were killed, below a root of data sets: found, and deleted unless a process uses them.

    <name>/.work-*                      an unfinished step
    <name>/.query-*                     the rows of an unfinished read of a database
    <name>/indexes/<version>/.work-*    an unfinished index
    .tokens/<version>/*.tmp-*           an unfinished token store
    .removed-*                          an unfinished removal, in any of these folders
    .*.tmp                              a file that is not whole, in any of these folders and in versions

and in the cache

    named-files/*.tmp-*                 the rows of files that a command looked at
    files/*                             an index of a project's files, if it has entries of files that are gone

A process holds the folder or the file in which it works, so what nobody holds was left. No version refers to any of it.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from aifx.core.artifact import is_unfinished
from aifx.core.files import LOCK, REMOVED, FolderBusy, held_temporary, holding, is_temporary, remove_folder
from aifx.core.project import cache_path
from aifx.core.results import Result
from aifx.curation.work_folders import READ, ROWS_FOLDER, WORK, steps_root
from aifx.data.file_index import prune_indexes
from aifx.data.versions.catalog import DATASET_NAME, TOKENS, Catalog
from aifx.data.versions.leases import LEASES
from aifx.data.versions.manifest import INDEXES, LATEST, LINEAGE

logger = logging.getLogger(__name__)

LeftoverKind: TypeAlias = Literal[
    "step", "read", "index", "tokens", "removal", "file", "version", "files", "entries", "unused"
]

_KINDS: Mapping[str, LeftoverKind] = {WORK: "step", READ: "read", REMOVED: "removal"}
_UNFINISHED = re.compile(rf"({'|'.join(map(re.escape, _KINDS))})[0-9a-f]{{12,}}")
"""Names of the folders that commands make: the root may also hold a user's own `.work-notes`."""


@dataclass(frozen=True)
class Leftover:
    """A folder or a file that a command left.

    Attributes:
        path: on this machine, or the URL of a version.
        kind: of the work that is unfinished; "version" is a folder without a manifest, "files" the rows of files that
            `why` or `erase` looked at, "entries" those of an index of files that are gone. "unused" is a version.
        kept: why it stays; "" if it is deleted.
    """

    path: str
    kind: LeftoverKind
    bytes: int
    kept: str = ""


@dataclass(frozen=True)
class CollectedGarbage(Result):
    """The document of `aifx data gc --json`.

    Attributes:
        deleted: what was deleted; with `dry_run`, what would be.
        kept: what a process uses or may use, and what cannot be deleted.
        bytes: of all that was deleted, or would be.
    """

    root: str
    deleted: tuple[Leftover, ...]
    kept: tuple[Leftover, ...]
    bytes: int
    dry_run: bool


def collect_garbage(catalog: Catalog, *, dry_run: bool) -> CollectedGarbage:
    """Delete what killed commands left below a root. If that is remote, steps have worked in the cache.

    Raises EnvironmentFault if a remote root cannot be read.
    """
    root = steps_root(catalog)
    datasets = sorted(path for path in root.glob("*") if _is_dataset(path))
    found = [
        ended
        for folder in (*datasets, root / TOKENS, root / LINEAGE, root / LEASES, cache_path(ROWS_FOLDER))
        for leftover in leftovers_in(folder)
        if (ended := delete_leftover(leftover, dry_run=dry_run)) is not None
    ]
    found += _incomplete_versions(catalog)
    found += [Leftover(str(path), "entries", size) for path, size in prune_indexes(dry_run=dry_run)]
    deleted = tuple(one for one in found if not one.kept)
    kept = tuple(one for one in found if one.kept)
    return CollectedGarbage(catalog.store.url, deleted, kept, sum(one.bytes for one in deleted), dry_run)


def leftovers_in(top: Path) -> Iterator[Leftover]:
    """The unfinished work below the folder of a data set or of token stores, in use or not. Links are not followed."""

    def report(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # it may have been deleted just now
            logger.warning(f"{error.filename} is not searched: {error.strerror}")

    for folder, names, files in os.walk(top, onerror=report):
        names.sort()
        for name in list(names):
            path = Path(folder, name)
            if (kind := _kind_of(path)) is not None and not path.is_symlink():
                names.remove(name)
                yield Leftover(str(path), kind, _bytes_in(path))
        for name in sorted(filter(is_temporary, files)):
            with suppress(FileNotFoundError):
                yield Leftover(str(Path(folder, name)), "file", Path(folder, name).lstat().st_size)


def delete_leftover(leftover: Leftover, *, dry_run: bool = False) -> Leftover | None:
    """Delete unfinished work, unless a process uses it. Returns what became of it; None if it was gone already."""
    path = Path(leftover.path)
    try:
        path.lstat()  # raises if it is gone
        if leftover.kind == "file":
            with held_temporary(path):
                if not dry_run:
                    path.unlink()
        elif not dry_run:
            remove_folder(path, leftover.path)
        elif leftover.kind != "removal":  # which nobody holds
            with holding(path, leftover.path, "looks at it", makes=False):
                pass
    except FolderBusy as busy:
        return replace(leftover, kept=busy.why)
    except BlockingIOError:
        return replace(leftover, kept="another process writes it")
    except FileNotFoundError:
        return None
    except OSError as error:
        return replace(leftover, kept=error.strerror or str(error))
    return leftover


def _kind_of(folder: Path) -> LeftoverKind | None:
    if found := _UNFINISHED.fullmatch(folder.name):
        kind = _KINDS[found[1]]
        return "index" if kind == "step" and folder.parent.parent.name == INDEXES else kind
    if not is_unfinished(folder.name):
        return None
    return "tokens" if folder.parent.parent.name == TOKENS else "files" if folder.parent.name == ROWS_FOLDER else None


def _is_dataset(folder: Path) -> bool:
    """Whether a folder is that of a data set, which may have no version yet: the root may hold other folders."""
    has_name = DATASET_NAME.fullmatch(folder.name) is not None
    return has_name and any(os.path.exists(folder / name) for name in (LATEST, LOCK))


def _incomplete_versions(catalog: Catalog) -> Iterator[Leftover]:
    """Folders that a command of any machine may still write, such as a copy of a version to a remote root."""
    why = "another command may still write it"
    for name in sorted(filter(DATASET_NAME.fullmatch, catalog.store.folders())):
        if catalog.local is not None and not _is_dataset(catalog.local / name):
            continue
        for version in catalog.incomplete_versions(name):
            folder = f"{name}/{version}"
            yield Leftover(f"{catalog.store.url}/{folder}", "version", catalog.store.total_bytes(folder), why)


def _bytes_in(folder: Path) -> int:
    """Bytes of the files below a folder, without locks."""
    total = 0
    for path, _, files in os.walk(folder):
        for name in set(files) - {LOCK}:
            with suppress(FileNotFoundError):
                total += Path(path, name).lstat().st_size
    return total
