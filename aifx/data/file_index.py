"""The index of a project's files: what the last reading found in each, so that only files that changed are read again.

It is one file in the cache per project. An entry is the result of one way of reading one file, and the state of the
file before it was read. It counts as long as that state does (`FileState.is_still`); otherwise the file is read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from aifx.core.artifact import writable_folder
from aifx.core.digests import sha256_of
from aifx.core.errors import EnvironmentFault
from aifx.core.file_states import FileState
from aifx.core.files import remove_temporary
from aifx.core.project import Project, cache_path
from aifx.data.blocks import read_cached, read_checked, write_checked
from aifx.data.readers.documents import scan_file
from aifx.data.readers.encodings import FileScan, TextFile, reading

VERSION = 1
"""Of the index and of what reading finds in a file: a part of the index's name."""

Entries: TypeAlias = dict[tuple[str, str], list[Any]]
"""By path and way of reading, as `_row` makes them."""


def scans_of(files: Iterable[TextFile], text_field: str, project: Project | None = None) -> dict[TextFile, FileScan]:
    """What `scan_file` finds in each file, from the index of `project` where it is there. Raises DataError."""
    how = {".parquet": f"column {text_field}"}
    return _indexed(files, lambda file: how.get(file.format, "text"), lambda file: scan_file(file, text_field), project)


def changed_file(scans: Mapping[TextFile, FileScan], text_field: str) -> TextFile | None:
    """The first of the files that `scans_of` has read whose content is no longer what it was. Raises DataError."""
    for file, scan in scans.items():
        if not _is_still(scan, _state_of(file)) and scan_file(file, text_field) != scan:
            return file
    return None


def _indexed(
    files: Iterable[TextFile],
    how: Callable[[TextFile], str],
    scan: Callable[[TextFile], FileScan],
    project: Project | None,
) -> dict[TextFile, FileScan]:
    """The scan of each file. Empty files are not in the index, since only reading tells whether that is an error."""
    path = None if project is None else _index_path(project)
    entries = {} if path is None else _read(path)
    scans: dict[TextFile, FileScan] = {}
    made: Entries = {}
    for file in files:
        key, now = (str(file.path), how(file)), _state_of(file)
        known = _parsed(entries[key]) if key in entries else None
        if known is None or not _is_still(known, now):
            known = replace(scan(file), state=now)
            if known.num_bytes:
                made[key] = _row(*key, known)
        scans[file] = known
    if path is not None and made:
        _write(path, entries | made)
    return scans


def _is_still(scan: FileScan, now: FileState) -> bool:
    return scan.state is not None and scan.state.is_still(now)


def _state_of(file: TextFile) -> FileState:
    with reading(file):
        return FileState.of(file.path)


def _index_path(project: Project) -> Path:
    return cache_path("files") / f"{sha256_of(str(project.root.resolve()))}-{VERSION}"


def _read(path: Path) -> Entries:
    data = read_cached(read_checked, path, "index of files")
    return {} if data is None else {(row[0], row[1]): row for row in json.loads(bytes(data))}


def _write(path: Path, entries: Entries) -> None:
    """Replace the index. Without it all files are read again, so that a cache that cannot be written stops nothing."""
    with suppress(OSError, EnvironmentFault), writable_folder(path.parent):
        remove_temporary(path.parent)
        write_checked(path, json.dumps([*entries.values()]).encode())


def _row(path: str, how: str, scan: FileScan) -> list[Any]:
    """One entry as JSON has it; `_parsed` is its inverse."""
    state = scan.state
    assert state is not None
    times = (state.bytes, state.inode, state.mtime_ns, state.ctime_ns, state.seen_ns)
    return [path, how, *times, scan.digest, scan.num_bytes, scan.num_bad, scan.where, scan.why, scan.encodings]


def _parsed(row: list[Any]) -> FileScan:
    *found, encodings = row[7:]
    return FileScan(*found, tuple(encodings), state=FileState(*row[2:7]))
