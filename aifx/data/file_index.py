"""The files that a project names: their index, and the implicit versions that they are.

The index has what the last reading found in each file, so that only files that changed are read again.

It is one file in the cache per project. An entry is the result of one way of reading one file, and the state of the
file before it was read. It counts as long as that state does (`FileState.is_still`); otherwise the file is read again.
The state of a file of a store is the tag, such as an ETag, that the store gives it. Without one it is always read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from aifx.core.artifact import short, writable_folder
from aifx.core.digests import sha256_of, sha256_of_json, size_and_sha256
from aifx.core.errors import DataError, EnvironmentFault, UsageError
from aifx.core.file_states import FileState
from aifx.core.files import is_temporary, remove_temporary
from aifx.core.project import Project, cache_path
from aifx.data.readers.documents import scan_file
from aifx.data.readers.encodings import FileScan
from aifx.data.readers.formats import PAGES
from aifx.data.readers.sources import SourceFile, reading
from aifx.data.readers.web import texts_version
from aifx.data.row_cache import read_cached, read_checked, with_digest, write_checked

if TYPE_CHECKING:
    from aifx.config.sections import DataSection

VERSION = 4
"""Version of the index and of what reading finds in a file: a part of the index's name."""

THREADS, AT_ONCE = 8, 1 << 12
"""Threads that read pictures, and the pictures that wait for them. Other files may be so large that Ctrl-C would wait
for a thread."""

_DIGITS = re.compile("[0-9a-f]{1,64}")

Entries: TypeAlias = dict[tuple[str, str], list[Any]]
"""By path and way of reading: these two, then the fields of a `FileScan`, as JSON has them."""

COLUMNS = 2 + len(fields(FileScan))  # values of an entry


@dataclass(frozen=True)
class ImplicitVersion:
    """The files that a key of `[data]` names, such as "data.train", as a version without a copy of them.

    What names their content, for provenance and for `aifx data verify`, is the SHA-256 of each as the index has it.
    A data set has the versions of the files that it was made of (`file_versions`): files may change while it is made.

    Attributes:
        key: such as "data.train".
    """

    key: str
    files: Mapping[SourceFile, FileScan]

    @cached_property
    def sha256(self) -> str:
        """Over the name and the digest of each file that is not empty: those of text decompressed, as `FileScan` has
        them, others as they are on disk. Of each file in a store it is that of what the store records with it."""
        filled = ((file, scan) for file, scan in self.files.items() if file.is_remote or scan.num_bytes)
        return sha256_of_json([[file.name, file.stamp or scan.digest] for file, scan in filled])

    @property
    def reference(self) -> str:
        """ "data.train@<12 digits>"."""
        return f"{self.key}@{short(self.sha256)}"

    def check_unchanged(self) -> None:
        """Raise DataError for a file of this machine, not read as text, that no longer has the content it had."""
        local = {file: scan for file, scan in self.files.items() if not file.is_remote}
        if (file := changed_file(local, None)) is not None:
            raise DataError(f"{file.name} changed while it was read", "", "run it again when it is written")

    def record(self) -> dict[str, Any]:
        """Its record in provenance.json."""
        return {"sha256": self.sha256, "files": len(self.files)}


def split_reference(reference: str) -> tuple[str, str]:
    """The key and the digits of "data.train@3f2a"; "" for the digits of "data.train". Raises UsageError for others."""
    key, at, digits = reference.partition("@")
    if at and not _DIGITS.fullmatch(digits):
        why = "after @ is the beginning of a SHA-256, of 64 hexadecimal digits at most"
        raise UsageError(f"{reference!r} names no version", why, f"aifx data verify {key}")
    return key, digits


def find_implicit(reference: str, section: DataSection, project: Project, *, again: bool = False) -> ImplicitVersion:
    """The version that "data.train" means, or "data.train@3f2a".

    Args:
        again: read all files.

    Raises UsageError if the key names no files or others, DataError.
    """
    key, digits = split_reference(reference)
    named = section.named_files(project)
    if key not in named:
        why = f"files are named by {', '.join(named)}" if named else "its data is a data set, or of a kind of its own"
        raise UsageError(f"the configuration has no files of {key}", why, "aifx config show")
    version = version_of(key, named[key], getattr(section, "text_field", None), project, again=again)
    if not version.sha256.startswith(digits):
        what, why = f"the files are not {key}@{short(digits)}", f"they are {version.reference} now"
        raise UsageError(what, why, "restore them from a copy")
    return version


def version_of(
    key: str, files: Iterable[SourceFile], text_field: str | None, project: Project, *, again: bool = False
) -> ImplicitVersion:
    """The files that a key names, with what reading finds in each, as `scans_of`. Raises DataError."""
    listed = list(files)
    scans = scans_of((file for file in listed if not file.is_remote), text_field, project, again=again)
    return ImplicitVersion(key, {file: scans.get(file) or FileScan(file.stamp, file.bytes) for file in listed})


def version_of_path(file: SourceFile, project: Project) -> dict[str, ImplicitVersion]:
    """The file of `data.path` by its key, before it is read; none if it is a stream, which can be read only once.

    Raises DataError if it cannot be read.
    """
    if not file.is_remote and not file.path.is_file():
        return {}  # reading it gives the error if it is not there
    return {"data.path": version_of("data.path", [file], None, project)}


def scans_of(
    files: Iterable[SourceFile], text_field: str | None, project: Project | None = None, *, again: bool = False
) -> dict[SourceFile, FileScan]:
    """The scan of each file, from the index of `project` where that has it. Raises DataError.

    Empty files are not in the index, since only `scan_file` knows whether that is an error.

    Args:
        text_field: that holds the text; None for files that are not read as text, of which the digest is that of the
            bytes, decompressed.
        again: read all files, whatever the index says.
    """
    path = None
    if project is not None:
        path = cache_path("files") / f"{sha256_of(str(project.root.resolve()))}-{VERSION}"
    entries = {} if path is None or again else _read(path)
    made: Entries = {}

    def scan_one(file: SourceFile) -> FileScan:
        key = (file.name if file.is_remote else file.location, _way(file, text_field))  # a URL may hold secrets
        try:
            now = file.tag or None if file.is_remote else _state_of(file)
            if key in entries and _is_still(file, known := _scan_of(entries[key]), now):
                return known
            found = replace(_scan(file, text_field), state=now)
        except DataError:
            if file.format != "image":
                raise
            return FileScan("", 0)  # decoding it says why
        if file.tag and _state_of(file) != now:
            found = replace(found, state=None)
        if found.num_bytes and found.state is not None:
            made[key] = [*key, *astuple(found)]
        return found

    listed = list(files)
    scans = {file: scan_one(file) for file in listed if file.format != "image"}
    pictures = [file for file in listed if file.format == "image"]
    with ThreadPoolExecutor(THREADS, "scan") as pool:
        for begin in range(0, len(pictures), AT_ONCE):
            part = pictures[begin : begin + AT_ONCE]
            scans |= zip(part, pool.map(scan_one, part), strict=True)
    if path is not None and made:
        _write(path, (entries or _read(path)) | made)
    return scans


def changed_file(scans: Mapping[SourceFile, FileScan], text_field: str | None) -> SourceFile | None:
    """The first of the files that `scans_of` has read whose content is no longer what it was. Raises DataError."""
    for file, scan in scans.items():
        if not _is_still(file, scan, _state_of(file)) and _scan(file, text_field) != scan:
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


def _is_still(file: SourceFile, scan: FileScan, now: FileState | str | None) -> bool:
    if isinstance(scan.state, FileState) and isinstance(now, FileState):
        # Large data sets of pictures are in images such as squashfs, and would be read at each start.
        return scan.state.is_still(now, trusts_images=file.format == "image")
    return scan.state is not None and scan.state == now


def _state_of(file: SourceFile) -> FileState | str | None:
    """The state of a file; None for one of a store without tags, which is read again whenever its content matters."""
    if file.is_remote:
        return file.tag_now() if file.tag else None
    with reading(file):
        return FileState.of(file.location)


def _read(path: Path) -> Entries:
    return read_cached(_entries, path, "index of files") or {}


def _entries(path: Path) -> Entries:
    """The entries of an index. Raises OSError, UnsafeFile, ValueError."""
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


def _scan_of(entry: list[Any]) -> FileScan:
    digest, num_bytes, num_bad, where, why, encodings, state = entry[2:]
    known = state if isinstance(state, str) else FileState(*state)
    return FileScan(digest, num_bytes, num_bad, where, why, tuple(encodings), known)
