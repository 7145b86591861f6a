"""Source files: on this machine, in a store that fsspec knows, or standard input; and those that arguments name."""

from __future__ import annotations

import glob
import io
import os
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from aifx.core.digests import Sha256, sha256_of, sha256_of_file
from aifx.core.errors import AifxError, DataError, EnvironmentFault, UsageError
from aifx.core.files import is_stream
from aifx.core.os_errors import FULL, first_line, naming
from aifx.core.progress import Reporter
from aifx.core.redaction import redact
from aifx.core.stores import BLOCK_BYTES, open_store
from aifx.data.readers.base import DamagedFile, OwnReader
from aifx.data.readers.formats import PICKLES, SUFFIXES, Target, damages, decompressed, format_of, split_name
from aifx.data.splits import Split, split_folders

STDIN = "-"
"""The name and location of standard input."""

TAGS = ("ETag", "etag", "md5Hash", "content_md5", "generation")
"""Keys of what stores say of a file that differ for any other content."""


@dataclass(frozen=True)
class SourceFile:
    """A file of text, rows or a picture.

    Attributes:
        name: what messages call it and `_source` of its rows holds: a path relative to the project if it is below it,
            or a URL without credentials and query.
        location: where this machine finds it: a path, the URL that the user gave, or STDIN.
        format: a `Format`, or the suffix of a file that has no reader.
        compression: ".gz", ".zst" or "".
        bytes: 0 if it is not known, as `changed` and `sha256`.
        changed: time of its last change, in ns; 0 for a remote file.
        stamp: what a store records with the content of a remote file, such as its ETag and time.
        tag: that of these which is another for any other content, as an ETag is; "" if the store has none.
        sha256: "" for a remote file that was not read yet.
        target: what a picture shows, by its folder or its row of a list; None if that is not known.
        split: that its folder or its row names.
        query: SQL whose rows are in the file.
        is_matched: whether a glob of the configuration matched it, so that it may be empty.
        reader: of the project, if the format is "own".
    """

    name: str
    location: str
    format: str
    compression: str = ""
    bytes: int = 0
    changed: int = 0
    stamp: str = ""
    tag: str = ""
    sha256: str = ""
    target: Target | None = None
    split: Split | None = None
    query: str = ""
    is_matched: bool = False
    reader: OwnReader | None = None

    @property
    def is_remote(self) -> bool:
        return bool(self.stamp)

    @property
    def is_stdin(self) -> bool:
        return self.location == STDIN

    @property
    def is_stream(self) -> bool:
        """Whether it can be read only once: standard input, or a stream such as the shell passes for `<(command)`."""
        return self.is_stdin or is_stream(self.path)

    @property
    def path(self) -> Path:
        """Where a file on this machine is."""
        return Path(self.location)

    @property
    def suffix(self) -> str:
        """The suffix of the name, in lower case, without that of a compression; "" if it has none."""
        return split_name(self.location)[0]

    @contextmanager
    def open(self) -> Iterator[Any]:
        """A buffered reader of its bytes, decompressed. A remote file is read as it comes, without a copy.

        Raises DataError if it is no regular file or cannot be read, EnvironmentFault if a store fails.
        """
        if self.is_stdin:
            with reading(self):
                yield sys.stdin.buffer
            return
        if self.is_remote:
            store = open_store(self.location)
            how = {"cache_type": "readahead", "block_size": BLOCK_BYTES}
            with _asking(f"read {self.name}"), reading(self), store.fs.open(store.path, "rb", **how) as file:
                yield decompressed(file, self.compression) if self.compression else io.BufferedReader(file, 1 << 20)
            return
        if not self.is_stream:
            hint = f"ls -l {shlex.quote(self.name)}"
            check_regular(self.path, self.name, "an input is a file, or - for stdin", hint)
        with reading(self), open(self.location, "rb") as file:
            yield decompressed(file, self.compression)

    def with_digest(self, progress: Reporter | None = None) -> SourceFile:
        """The same with the SHA-256 of its bytes, if it is on this machine. Raises DataError if it is not readable."""
        if self.is_remote:
            return self
        with reading(self):
            return replace(self, sha256=sha256_of_file(Path(self.location), progress))

    @contextmanager
    def on_disk(self) -> Iterator[SourceFile]:
        """The file on this machine, with its SHA-256. A remote file is copied for as long as needed.

        Raises DataError if the file is not the one that was listed.
        """
        if not self.is_remote:
            with reading(self):
                self._check_unchanged()
                yield self
                self._check_unchanged()
            return
        suffix = f".{self.location.rpartition('/')[2].partition('?')[0].partition('.')[2]}"
        store, digest = open_store(self.location), Sha256()
        with tempfile.NamedTemporaryFile(suffix=suffix) as copy:
            with _asking(f"read {self.name}"), store.fs.open(store.path, "rb", cache_type="none") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    with naming(Path(copy.name)):
                        copy.write(block)
            copy.flush()
            yield replace(self, location=copy.name, stamp="", sha256=digest.hexdigest())

    def _check_unchanged(self) -> None:
        found = os.stat(self.location)
        if (found.st_size, found.st_mtime_ns) != (self.bytes, self.changed):
            why = "its size or time differs"
            raise DataError(f"{self.name} changed while it was read", why, "run the same command again")

    def tag_now(self) -> str:
        """The tag that the store gives a remote file now. Raises EnvironmentFault if the store fails."""
        store = open_store(self.location)
        with _asking(f"read {self.name}"):
            store.fs.invalidate_cache()
            return _tag(store.fs.info(store.path))


def local_file(path: Path, name: str = "", format: str | None = None, *, is_matched: bool = False) -> SourceFile:
    """The file at a path of this machine.

    Args:
        name: what messages call it, by default its path.
        format: its suffix without the dot, or a `Format`; by default what its name says.
    """
    suffix, compression = split_name(str(path))
    found = format_of(suffix if format is None else f".{format}")
    return SourceFile(name or str(path), str(path), found, compression, is_matched=is_matched)


def named_file(name: str, root: Path) -> SourceFile:
    """The file that a setting or an argument names: a path, relative to `root`, a URL, or STDIN.

    Raises UsageError for a URL that names no file, several, or one without a reader.
    """
    if name == STDIN:
        return local_file(Path(name))
    if "://" not in name:
        return local_file(root / name, name)
    files = list_sources([name], root).files
    if len(files) != 1:
        raise UsageError(f"{without_secrets(name)} is not one file", f"it names {len(files)}", "name one file")
    return files[0]


def check_regular(path: Path, name: str, why: str, hint: str) -> None:
    """Raise DataError for a directory, and for a pipe, socket or device, whose reading may never end.

    A path that does not exist passes: opening it gives the reason.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        raise DataError(f"{name} is {'a directory' if stat.S_ISDIR(mode) else 'not a regular file'}", why, hint)


@contextmanager
def reading(file: SourceFile) -> Iterator[None]:
    """Turn the refusal to read or decompress `file` into a DataError. A disk that is full is another matter."""
    hint = "copy it again, or leave it out"
    try:
        yield
    except DamagedFile as error:
        place = file.name if error.line is None else f"{file.name}:{error.line}"
        raise DataError(f"{place} cannot be read", str(error), hint) from error
    except damages(file.compression) as error:
        raise DataError(f"{file.name} cannot be decompressed", str(error), hint) from error
    except OSError as error:
        if file.is_remote or error.errno in FULL:
            raise
        why = error.strerror or str(error)
        raise DataError(f"{file.name} cannot be read", why, f"ls -l {shlex.quote(file.name)}") from error


@dataclass(frozen=True)
class Listing:
    """The files that arguments name.

    Attributes:
        files: by name.
        left_out: files of folders that have no reader, among them pipes, sockets and devices.
        links: that lead out of their folder, and were not followed.
    """

    files: tuple[SourceFile, ...]
    left_out: tuple[str, ...]
    links: tuple[str, ...] = ()


def list_sources(
    arguments: Sequence[str],
    base: Path,
    *,
    follow_links: bool = False,
    readers: Mapping[str, OwnReader] = MappingProxyType({}),
) -> Listing:
    """The files that paths, folders, globs and URLs name. Raises UsageError, DataError.

    A link that is an argument is read. A link in a folder, or below the part of a glob without wildcards, is read if it
    ends there. Otherwise a link could add any file of this machine to the data set.

    Args:
        base: the folder relative to which files are named.
        follow_links: also read what is outside.
        readers: of the project, by suffix.
    """
    found: dict[str, SourceFile] = {}
    left_out: set[str] = set()
    links: set[str] = set()
    for argument in arguments:
        listed = _remote(argument, follow_links) if "://" in argument else _local(argument, base, follow_links)
        pictures: dict[str, list[str]] = {}
        for file, how in listed:
            if how == "outside":
                links.add(file.name)
                continue
            suffix, compression = split_name(file.name)
            reader = readers.get(suffix)
            format_ = ("own" if reader else SUFFIXES.get(suffix)) if how != "irregular" else None
            if format_ is None:
                if how == "given":
                    raise _without_reader(file.name, suffix, readers)
                left_out.add(file.name)
                continue
            if format_ == "image" and file.name not in found:
                pictures[file.name] = _folders(argument, file.location)
            before = found.setdefault(file.name, replace(file, format=format_, compression=compression, reader=reader))
            if before.location != file.location:
                why = "both would be recorded under this name"
                raise UsageError(f"two sources are called {file.name}", why, "add one of them under another path")
        splits = split_folders(folders[0] for folders in pictures.values() if len(folders) > 1)
        for name, folders in pictures.items():
            if splits and (not folders or folders[0] not in splits):  # training does not read it, either
                left_out.add(name)
                del found[name]
                continue
            split = splits[folders.pop(0)] if splits else None
            found[name] = replace(found[name], target=folders[0] if folders else None, split=split)
    return Listing(tuple(found[name] for name in sorted(found)), tuple(sorted(left_out)), tuple(sorted(links)))


def _folders(argument: str, location: str) -> list[str]:
    """The folders that a file is in, from the one below the folder, or the part without wildcards, of an argument."""
    if "://" in argument:
        top, location = urlsplit(argument).path, urlsplit(location).path
        top = _fixed_part(top) if "*" in top else top
    else:
        top = os.path.abspath(os.path.expanduser(argument))
        top = top if os.path.lexists(top) else _fixed_part(top)
    above, path = top.strip("/").split("/") if top.strip("/") else [], location.strip("/").split("/")
    return path[len(above) : -1] if path[: len(above)] == above else []


def _fixed_part(pattern: str) -> str:
    """The folder above the first wildcard; `pattern` itself if it has none."""
    while glob.has_magic(pattern):
        pattern = pattern.rpartition("/")[0]
    return pattern


def _without_reader(name: str, suffix: str, readers: Mapping[str, OwnReader]) -> UsageError:
    hint = "write its rows to a .parquet or .jsonl file"
    if suffix in PICKLES:
        return UsageError(f"{name} is refused", f"a {suffix} file may run code when it is read", hint)
    known = ", ".join([*SUFFIXES, *readers])
    why = f"{suffix or 'a file without suffix'} is none of {known}, also with .gz and .zst"
    hint = "write its rows to a .jsonl file, or a reader: docs/own-reader.md"
    return UsageError(f"{name} has no reader", why, hint)


Found: TypeAlias = tuple[SourceFile, Literal["given", "below", "outside", "irregular"]]
"""A file without its format, and whether it is an argument itself or below one, a link that is not followed, or a pipe,
a socket or a device."""


def _local(argument: str, base: Path, follow_links: bool) -> Iterator[Found]:
    path = os.path.abspath(os.path.expanduser(argument))
    if os.path.lexists(path) or not glob.has_magic(argument):
        paths = [path]
    else:  # those near the top first, before what a link repeats further down
        paths = sorted(glob_paths(path), key=lambda path: (path.count("/"), path))
    if not paths:
        raise UsageError(f"no file matches {argument!r}", f"looked in {base}", "name files, folders or URLs")
    entered: dict[str, str] = {}
    inside = None if follow_links else os.path.realpath(path if paths == [path] else _fixed_part(path) or "/")
    for each in paths:
        is_given = each == path
        if not is_given:
            if leads_out(each, inside):
                yield _local_source(each, base), "outside"
                continue
            if not all(_enters(folder, entered) for folder in (os.path.dirname(each), each) if os.path.isdir(folder)):
                continue
        try:
            found = os.stat(each)
        except OSError as e:
            hint = "name files, folders, globs or URLs"
            raise UsageError(f"{argument} cannot be read", e.strerror or str(e), hint) from None
        if stat.S_ISDIR(found.st_mode):
            yield from _folder(each, base, inside, entered)
        elif stat.S_ISREG(found.st_mode):
            yield _local_source(each, base, found), "given" if is_given else "below"
        elif is_given:
            hint = "copy what it gives to a file"
            raise UsageError(f"{argument} is not a regular file", "it is a pipe, socket or device", hint)
        else:
            yield _local_source(each, base), "irregular"


def _local_source(path: str, base: Path, state: os.stat_result | None = None) -> SourceFile:
    size, changed = (state.st_size, state.st_mtime_ns) if state else (0, 0)
    return SourceFile(name_of(path, base), path, "", bytes=size, changed=changed)


def leads_out(path: str, inside: str | None) -> bool:
    """Whether links in `path` end outside of the real path `inside`, if there is one."""
    return inside is not None and not Path(os.path.realpath(path)).is_relative_to(inside)


def glob_paths(pattern: str, root: Path | None = None) -> set[str]:
    """The paths that match, relative to `root` as the pattern is.

    `**` enters each folder under one name, that nearest to the top. Links may make loops, in which glob.glob goes
    round as often as a name can hold: of two, for ever.
    """
    pattern = f"{pattern}/*" if f"/{pattern}".endswith("/**") else pattern
    head, stars, tail = f"/{pattern}".partition("/**/")
    if not stars:
        return set(glob.glob(pattern, root_dir=root, recursive=True))
    found: set[str] = set()
    entered: dict[str, str] = {}
    folders = sorted(glob.glob(f"{head[1:]}/", root_dir=root)) if head else [""]
    while folders:
        within: list[str] = []
        for folder in folders:
            if _enters(os.path.join(root or "", folder), entered):
                found |= glob_paths(f"{glob.escape(folder)}{tail}", root)
                within += sorted(glob.glob(f"{glob.escape(folder)}*/", root_dir=root))
        folders = within
    return found


def _enters(folder: str, entered: dict[str, str]) -> bool:
    """Whether a folder was not entered under another name: links make loops, and two names of one file."""
    return entered.setdefault(os.path.realpath(folder), folder) == folder


def _folder(folder: str, base: Path, inside: str | None, entered: dict[str, str]) -> Iterator[Found]:
    """The files below a folder, without hidden ones. Each folder is entered under one name."""
    _enters(folder, entered)
    for path, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
        chosen = []
        for name in sorted(name for name in folders if not name.startswith(".")):
            full = os.path.join(path, name)
            if leads_out(full, inside):
                yield _local_source(full, base), "outside"
            elif _enters(full, entered):
                chosen.append(name)
        folders[:] = chosen
        for name in sorted(name for name in names if not name.startswith(".")):
            full = os.path.join(path, name)
            if os.path.islink(full) and leads_out(full, inside):
                yield _local_source(full, base), "outside"
                continue
            try:
                found = os.stat(full)
            except OSError as e:
                raise DataError(f"{full} cannot be read", e.strerror or str(e), "remove it, or name files") from None
            is_regular = stat.S_ISREG(found.st_mode)
            yield _local_source(full, base, found), "below" if is_regular else "irregular"


def _fail(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read", error.strerror or str(error), f"ls -l {error.filename}")


def name_of(path: str, base: Path) -> str:
    """The name that rows of a file have: its path, relative to `base` if it is below it."""
    name = os.path.relpath(path, base) if Path(path).is_relative_to(base) else path
    return os.fsencode(name).decode(errors="backslashreplace")  # Parquet and JSON hold UTF-8 alone


def _remote(url: str, follow_links: bool) -> Iterator[Found]:
    store = open_store(url)
    inside = None
    if not follow_links and store.folder is not None:
        inside = os.path.realpath(_fixed_part(store.path) or "/")
    secret_free = without_secrets(url)
    found: dict[str, Any] = {}
    with _asking(f"list {secret_free}"):
        try:
            for name in sorted(store.fs.glob(store.path)) if "*" in store.path else [store.path]:
                info = store.fs.info(name)
                if info["type"] == "directory":
                    found.update({each: (info, False) for each, info in store.fs.find(name, detail=True).items()})
                else:
                    found[name] = (info, name == store.path)
        except FileNotFoundError:
            why = "the store has none of that name"
            raise UsageError(f"no file {secret_free}", why, "name a file or folder") from None
    if not found:
        raise UsageError(f"no file matches {secret_free}", "the store has none", "name a file or folder")
    for path, (info, is_given) in sorted(found.items()):
        location = url if is_given else _with_path(url, store.path, path)
        file = SourceFile(without_secrets(location), location, "", bytes=int(info["size"] or 0), tag=_tag(info))
        if leads_out(path, inside):
            yield file, "outside"
        else:
            keys = ("size", *TAGS, "LastModified", "last_modified", "mtime")  # what changes with the content
            stamp = sha256_of(repr(sorted((key, str(info[key])) for key in keys if info.get(key) is not None)))
            yield replace(file, stamp=stamp), "given" if is_given else "below"


def _tag(info: dict[str, Any]) -> str:
    return next((str(info[key]) for key in TAGS if info.get(key)), "")


def _with_path(url: str, top: str, path: str) -> str:
    """The URL of a file below the folder or glob that `url` names."""
    fixed = top if "*" not in top else ""
    if fixed and path.startswith(fixed.rstrip("/") + "/"):
        return f"{url.rstrip('/')}/{path[len(fixed.rstrip('/')) + 1 :]}"
    scheme, _, rest = url.partition("://")
    login = f"{rest.partition('/')[0].rpartition('@')[0]}@" if "@" in rest.partition("/")[0] else ""
    return f"{scheme}://{login}{path.lstrip('/') if scheme != 'file' else path}"


def without_secrets(url: str) -> str:
    """The URL without login, query and fragment: any of them may be a secret. Raises UsageError for what is no URL."""
    try:
        parts = urlsplit(url)
    except ValueError as e:
        raise UsageError(f"{redact(url)} is not a URL", str(e), "name a URL such as s3://bucket/file.jsonl") from None
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Raise EnvironmentFault for what a store answers; fsspec raises any type."""
    try:
        yield
    except (AifxError, GeneratorExit):
        raise
    except Exception as e:
        if isinstance(e, OSError) and e.errno in FULL:
            raise
        why = redact(f"{type(e).__name__}: {first_line(e)}")
        raise EnvironmentFault(f"could not {what}", why, "run the same command again") from e
