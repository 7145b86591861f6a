"""The index of a project's files: what the last reading found in each, so that only files that changed are read again.

It is one file in the cache per project. An entry is the result of one way of reading one file, and the state of the
file before it was read. It counts as long as that state does (`FileState.is_still`); otherwise the file is read again.
The state of a file of a store is the tag, such as an ETag, that the store gives it. Without one it is always read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, TypeAlias

from aifx.core.artifact import writable_folder
from aifx.core.digests import sha256_of, size_and_sha256
from aifx.core.errors import EnvironmentFault
from aifx.core.file_states import FileState
from aifx.core.files import is_temporary, remove_temporary
from aifx.core.project import Project, cache_path
from aifx.data.checked_files import read_cached, read_checked, with_digest, write_checked
from aifx.data.readers.documents import scan_file
from aifx.data.readers.encodings import FileScan
from aifx.data.readers.formats import PAGES
from aifx.data.readers.sources import SourceFile, reading
from aifx.data.readers.web import texts_version

VERSION = 2
"""Of the index and of what reading finds in a file: a part of the index's name."""

COLUMNS = 9
"""Of an entry (`_row`)."""

Entries: TypeAlias = dict[tuple[str, str], list[Any]]
"""By path and way of reading, as `_row` makes them."""


def scans_of(
    files: Iterable[SourceFile], text_field: str | None, project: Project | None = None, *, again: bool = False
) -> dict[SourceFile, FileScan]:
    """What reading finds in each file, from the index of `project` where that has it. Raises DataError.

    Empty files are not in the index, since only `scan_file` knows whether that is an error.

    Args:
        text_field: that holds the text; None for files that are not read as text, of which the digest is that of the
            bytes, decompressed.
        again: read all files, whatever the index says.
    """
    path = None if project is None else _index_path(project)
    entries = {} if path is None or again else _read(path)
    scans: dict[SourceFile, FileScan] = {}
    made: Entries = {}
    for file in files:
        key = (file.name if file.is_remote else file.location, _way(file, text_field))  # a URL may hold secrets
        now = file.tag or None if file.is_remote else _state_of(file)
        known = _parsed(entries[key]) if key in entries else None
        if known is None or not _is_still(known, now):
            known = replace(_scan(file, text_field), state=now)
            if file.tag and _state_of(file) != now:
                known = replace(known, state=None)
            if known.num_bytes and known.state is not None:
                made[key] = _row(*key, known)
        scans[file] = known
    if path is not None and made:
        _write(path, (entries or _read(path)) | made)
    return scans


def changed_file(scans: Mapping[SourceFile, FileScan], text_field: str | None) -> SourceFile | None:
    """The first of the files that `scans_of` has read whose content is no longer what it was. Raises DataError."""
    for file, scan in scans.items():
        if not _is_still(scan, _state_of(file)) and _scan(file, text_field) != scan:
            return file
    return None


def prune_indexes(*, dry_run: bool) -> list[tuple[Path, int]]:
    """Remove the entries of files that are gone from the indexes of all projects, and an index without any other.

    Returns the indexes with such entries, and the bytes by which each becomes smaller.
    """
    pruned: list[tuple[Path, int]] = []
    folder = cache_path("files")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_temporary(path.name) or not path.is_file():
            continue
        entries = _read(path)
        kept = {key: row for key, row in entries.items() if "://" in key[0] or os.path.lexists(key[0])}
        if kept and len(kept) == len(entries):
            continue
        size = path.stat().st_size
        pruned.append((path, size - len(with_digest(_encoded(kept))) if kept else size))
        if not dry_run and kept:
            _write(path, kept)
        elif not dry_run:
            path.unlink(missing_ok=True)
    return pruned


def _way(file: SourceFile, text_field: str | None) -> str:
    """The name of the way to read a file: what is found depends on it."""
    if text_field is None:
        return "content"
    if file.format in PAGES:
        return f"pages {texts_version()}"
    return f"column {text_field}" if file.format == "parquet" else "text"


def _scan(file: SourceFile, text_field: str | None) -> FileScan:
    if text_field is not None:
        return scan_file(file, text_field)
    with file.open() as stream:
        num_bytes, digest = size_and_sha256(stream)
    return FileScan(digest, num_bytes)


def _is_still(scan: FileScan, now: FileState | str | None) -> bool:
    if isinstance(scan.state, FileState) and isinstance(now, FileState):
        return scan.state.is_still(now)
    return scan.state is not None and scan.state == now


def _state_of(file: SourceFile) -> FileState | str | None:
    """The state of a file; None for one of a store without tags, which is read again whenever its content matters."""
    if file.is_remote:
        return file.tag_now() if file.tag else None
    with reading(file):
        return FileState.of(file.location)


def _index_path(project: Project) -> Path:
    return cache_path("files") / f"{sha256_of(str(project.root.resolve()))}-{VERSION}"


def _read(path: Path) -> Entries:
    return read_cached(_entries, path, "index of files") or {}


def _entries(path: Path) -> Entries:
    """Raises OSError, UnsafeFile, ValueError."""
    try:
        rows = json.loads(bytes(read_checked(path)))
        if all(len(row) == COLUMNS for row in rows):
            return {(row[0], row[1]): row for row in rows}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an index of files") from error
    raise ValueError(f"{path} is not an index of files")


def _write(path: Path, entries: Entries) -> None:
    """Replace the index. Without it all files are read again, so that a cache that cannot be written stops nothing."""
    with suppress(OSError, EnvironmentFault), writable_folder(path.parent):
        remove_temporary(path.parent)
        write_checked(path, _encoded(entries))


def _encoded(entries: Entries) -> bytes:
    return json.dumps([*entries.values()]).encode()


def _row(path: str, how: str, scan: FileScan) -> list[Any]:
    """One entry as JSON has it; `_parsed` is its inverse."""
    state = [*astuple(scan.state)] if isinstance(scan.state, FileState) else scan.state
    return [path, how, state, scan.digest, scan.num_bytes, scan.num_bad, scan.where, scan.why, scan.encodings]


def _parsed(row: list[Any]) -> FileScan:
    state, digest, num_bytes, num_bad, where, why, encodings = row[2:]
    read_state = state if isinstance(state, str) else FileState(*state)
    return FileScan(digest, num_bytes, num_bad, where, why, tuple(encodings), read_state)
