"""Folders on a disk or in a remote store, by path or URL.

A store is whatever fsspec knows by the URL: a folder, `s3://`, `gs://`, `memory://`.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.core.digests import sha256_of_blocks
from aifx.core.errors import AifxError, EnvironmentFault, UsageError
from aifx.core.extras import install_command
from aifx.core.files import (
    RECORDS_LIMIT,
    NotExclusive,
    create_file,
    is_temporary,
    make_folders,
    open_file,
    read_many,
    replacing,
)
from aifx.core.os_errors import FULL, causes, first_line, in_brief, refusal_in
from aifx.core.progress import Reporter
from aifx.core.redaction import redact

logger = logging.getLogger(__name__)

BLOCK_BYTES = 8 << 20
FILES_AT_ONCE = 128

_CONDITIONAL = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"})
"""Schemes whose clients let the store refuse a name that is taken, by `If-None-Match: *` or `ifGenerationMatch=0`.

Other clients of fsspec ask whether the name is taken, and then write: two of them can both find it free.
"""

_CONFLICT_TRIES = 6
"""Requests that aifx makes for a name if S3 answers with 409: another request for the name is under way."""

_PROBED: dict[tuple[int, str], Any] = {}
"""File systems that create exclusively, by identity and bucket. Holding them here keeps the identities theirs."""


@dataclass(frozen=True)
class Store:
    """A folder, on a disk or in a remote store: an fsspec file system and the path in it."""

    url: str
    fs: Any
    path: str

    @property
    def folder(self) -> Path | None:
        """The folder, if it is on a disk."""
        return Path(self.path) if "file" in self._schemes else None

    @property
    def _schemes(self) -> frozenset[str]:
        return frozenset((self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol)

    def below(self, name: str) -> Store:
        return Store(f"{self.url}/{name}", self.fs, f"{self.path}/{name}")

    def beside(self, name: str) -> Store:
        """Another folder in the one that this is in."""
        url, path = self.url.rpartition("/")[0], self.path.rpartition("/")[0]
        return Store(f"{url}/{name}", self.fs, f"{path}/{name}")

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none, or a folder of that name.

        Raises UnsafeFile for a link, a FIFO or a device in a folder on a disk, EnvironmentFault if the store fails.
        """
        with _naming(f"read {self.url}/{name}"):
            if (folder := self.folder) is not None:
                return next((data for _, data in read_many(folder, [name], limit=RECORDS_LIMIT)), None)
            self._forget(name)
            try:
                data: bytes = self.fs.cat_file(f"{self.path}/{name}")
            except (FileNotFoundError, IsADirectoryError):
                return None
            return data

    def read_files(self, folder: str = "") -> dict[str, bytes]:
        """The content of each small file in a folder, by name, in order: of a remote store, many are read at a time."""
        names = [name for name in self.files(folder) if not is_temporary(name)]
        return dict(self.below(folder).read_many(names) if folder else self.read_many(names))

    def read_many(self, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The names and contents of those of some small files that are there, by name.

        Of a remote store, FILES_AT_ONCE are read at a time. Raises as `read`.
        """
        names = sorted(names)  # as fsspec sorts them
        if (folder := self.folder) is not None:
            with _naming(f"read {self.url}"):
                yield from read_many(folder, names, limit=RECORDS_LIMIT)
            return
        for start in range(0, len(names), FILES_AT_ONCE):
            some = names[start : start + FILES_AT_ONCE]
            with _naming(f"read {self.url}"):
                found = self.fs.cat([f"{self.path}/{name}" for name in some], on_error="return").values()
                for error in found:
                    if isinstance(error, BaseException) and not isinstance(error, FileNotFoundError):
                        raise error
            yield from ((name, data) for name, data in zip(some, found, strict=True) if isinstance(data, bytes))

    def size(self, name: str) -> int | None:
        with _naming(f"read {self.url}/{name}"):
            try:
                if (folder := self.folder) is not None:
                    return (folder / name).stat().st_size
                self._forget(name)
                return int(self.fs.size(f"{self.path}/{name}"))
            except FileNotFoundError:
                return None

    def folders(self, name: str = "") -> list[str]:
        """The names of the folders in a folder; none if it does not exist."""
        return self._entries(name, "directory")

    def files(self, name: str = "") -> list[str]:
        """The names of the files in a folder; none if it does not exist."""
        return self._entries(name, "file")

    def kinds(self, name: str = "") -> dict[str, str]:
        """What each entry of a folder is: "file", "directory", or "other" for a link, a FIFO or a device on a disk."""
        return {one: kind for one, kind, _ in self._listed(name)}

    def sizes(self, name: str = "") -> list[tuple[str, int]]:
        """The names and bytes of the files in a folder; none if it does not exist."""
        return [(one, size) for one, kind, size in self._listed(name, sizes=True) if kind == "file"]

    def _entries(self, name: str, kind: str) -> list[str]:
        return [one for one, its_kind, _ in self._listed(name) if its_kind == kind]

    def _listed(self, name: str, *, sizes: bool = False) -> list[tuple[str, str, int]]:
        """The name, the type and, with `sizes`, the bytes of each entry of a folder."""
        path = f"{self.path}/{name}".rstrip("/")
        with _naming(f"read {self.url}/{name}"):
            try:
                if (folder := self.folder) is not None:
                    return list(_entries_on_disk(folder / name, sizes))
                found = self.fs.ls(path, detail=True, refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return [
                (str(entry["name"]).rstrip("/").rpartition("/")[2], entry["type"], int(entry["size"] or 0))
                for entry in found
            ]

    def total_bytes(self, name: str) -> int:
        """Bytes of all files below a folder."""
        with _naming(f"read {self.url}/{name}"):
            return int(self.fs.du(f"{self.path}/{name}"))

    def blocks(self, name: str) -> Iterator[bytes]:
        """The content of a file. Raises as `read`, also for a link above it in a folder on a disk."""
        with _naming(f"read {self.url}/{name}"), self._opened(name) as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    def _opened(self, name: str) -> Any:
        if (folder := self.folder) is not None:
            return open(open_file(folder / name, below=folder), "rb")
        self._forget(name)
        return self.fs.open(f"{self.path}/{name}", "rb", cache_type="none")

    def _forget(self, name: str) -> None:
        """Forget the folders above a file as they were listed before: fsspec would take the file's absence from them.

        Another process may have put it there since, or a request of this one whose answer was lost.
        """
        self.fs.invalidate_cache(f"{self.path}/{name}")

    def write(self, name: str, blocks: Iterator[bytes]) -> None:
        """Put a file there, in place of one that may be there. What `blocks` raises is raised.

        On a disk it appears whole: another process may have the file open that it replaces, or write the same one.
        """
        path = f"{self.path}/{name}"
        with _naming(f"write {self.url}/{name}"):
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            is_on_disk = self.folder is not None
            with replacing(Path(path)) if is_on_disk else self.fs.open(path, "wb", block_size=BLOCK_BYTES) as file:
                for block in blocks:
                    file.write(block)

    def create(self, name: str, data: bytes) -> bool:
        """Put a small file there if nothing is there. Returns whether this call did, among any number of machines.

        The file is whole and durable when this returns, with either answer. A call that was killed, or that raised
        EnvironmentFault, may have put it there. Called again, a folder on a disk answers False: compare what `read`
        returns with `data`. A remote store answers True if the file is `data`, because its client sends again what got
        no answer, and what it had put there then refuses it. So competing callers put something of their own, such as
        a random id, into `data`.

        Args:
            data: at most BLOCK_BYTES, which each store takes in one request.

        Raises UsageError for more, UnsafeFile if a link, folder or device is in the way on a disk, and NotExclusive for
        a store that cannot create exclusively: the first call for a bucket in a process tries that in the folder.
        """
        if len(data) > BLOCK_BYTES:
            why = f"it has {len(data)} bytes, and aifx creates files of at most {BLOCK_BYTES} exclusively"
            raise UsageError(f"{self.url}/{name} is too large", why, "keep the data elsewhere, and its digest here")
        with _naming(f"create {self.url}/{name}"):
            if (folder := self.folder) is not None:
                make_folders((folder / name).parent, below=folder)
                return create_file(folder / name, data, below=folder)
            self._check_exclusive()
            return self._create_object(name, data)

    def _create_object(self, name: str, data: bytes) -> bool:
        # `If-None-Match: *` is false if the object exists (RFC 9110, section 13.1.2), so the store itself refuses the
        # second writer with 412, in the same request that would write. 409 means that another request for the name
        # runs at this moment: neither has won yet, and a second request shows which does. A 412 can also answer our
        # own request, which the client sent again after it got no answer. Then the object is our data, and this call
        # has created it.
        for attempt in itertools.count(1):
            try:
                self.fs.pipe_file(f"{self.path}/{name}", data, mode="create")
                return True
            except Exception as e:  # of any type
                status = _status_of(e)
                if isinstance(e, FileExistsError) or status == 412:
                    return self.read(name) == data
                if status != 409 or attempt == _CONFLICT_TRIES:
                    raise
            time.sleep(0.05 * 2**attempt)
        raise AssertionError

    def _check_exclusive(self) -> None:
        """Raise NotExclusive unless the store refuses to create what is there. A success counts for its bucket.

        Servers that ignore the condition answer as if they had obeyed it, so a name is created twice, and read. A kill
        meanwhile leaves an object of 16 bytes, of whose name `is_temporary` is true.
        """
        place = (id(self.fs), self.path.lstrip("/").partition("/")[0])
        if place in _PROBED:
            return
        what = f"{self.url} cannot create a file exclusively"
        hint = "use a folder on a disk, or a store with conditional writes, such as Amazon S3 or Google Cloud Storage"
        if not self._schemes & _CONDITIONAL:
            raise NotExclusive(what, "its client checks whether a file is there before it writes", hint)
        name, first, second = f".probe.{secrets.token_hex(6)}.tmp", secrets.token_bytes(16), secrets.token_bytes(16)
        try:
            self._create_object(name, first)
        except Exception as e:  # of any type
            if _status_of(e) != 501:
                raise
            raise NotExclusive(what, f"it does not know conditional writes: {first_line(e)}", hint) from e
        try:
            is_kept = not self._create_object(name, second) and self.read(name) == first
        finally:
            try:
                self.remove(name)
            except EnvironmentFault as e:  # a store may allow no deletion
                logger.warning(f"{in_brief(e)}; it holds 16 random bytes, and nothing uses it")
        if not is_kept:
            why = "it ignored the condition that the name is free (If-None-Match: *), and replaced the file"
            raise NotExclusive(what, why, f"{hint}; if this is one, pip install --upgrade its client, such as s3fs")
        _PROBED[place] = self.fs

    def remove(self, name: str) -> None:
        """Delete a file or folder, if it is there. Of a link on a disk, what it leads to stays."""
        with _naming(f"delete {self.url}/{name}"):
            try:
                if (folder := self.folder) is not None and (link := folder / name).is_symlink():
                    link.unlink()
                    return
                self.fs.rm(f"{self.path}/{name}", recursive=True)
            except FileNotFoundError:
                return

    def sha256(self, name: str, progress: Reporter | None = None) -> str:
        return sha256_of_blocks(self.blocks(name), progress)


def _entries_on_disk(folder: Path, sizes: bool) -> Iterator[tuple[str, str, int]]:
    """`_listed` of a folder on a disk. A link is of another type; an entry that is deleted meanwhile is left out."""
    with os.scandir(folder) as entries:
        for one in entries:
            is_folder, is_file = one.is_dir(follow_symlinks=False), one.is_file(follow_symlinks=False)
            with suppress(FileNotFoundError):
                size = one.stat(follow_symlinks=False).st_size if sizes else 0  # a request of its own for each
                yield one.name, "directory" if is_folder else "file" if is_file else "other", size


class _Disk:
    """fsspec's file system of a disk, imported when it is needed: most of a store in a folder does without."""

    protocol = ("file", "local")

    def __getattr__(self, name: str) -> Any:
        import fsspec

        return getattr(fsspec.filesystem("file"), name)


_INSTALLS = {
    "s3": install_command("s3"),
    **dict.fromkeys(("gs", "gcs"), "pip install gcsfs"),
    **dict.fromkeys(("abfs", "az"), "pip install adlfs"),
    "sftp": "pip install paramiko",
}
"""The command that installs fsspec's client of a scheme."""


def open_store(url: str, *, has_digests: bool = False) -> Store:
    """The folder at a path or URL, which need not exist. Raises UsageError for what fsspec cannot open here.

    Some of its file systems, such as `reference://`, need options that a URL does not have.

    Args:
        has_digests: whether the caller compares what it reads with digests of its own. Then the client of S3 compares
            nothing with the checksums that the store keeps: it would report a damaged object as a failed request.
    """
    if url.startswith("/") and "::" not in url:
        return Store(url.rstrip("/") or "/", _Disk(), url.rstrip("/"))
    import fsspec

    try:
        own = has_digests and url.startswith(("s3://", "s3a://"))
        options = {"config_kwargs": {"response_checksum_validation": "when_required"}} if own else {}
        fs, path = fsspec.core.url_to_fs(url, **options)
    except Exception as e:  # of any type
        scheme = url.partition("://")[0]
        is_short = isinstance(e, TypeError | AttributeError)
        why = f"a URL is not all that fsspec needs for {scheme}://" if is_short else redact(first_line(e))
        hint = "name a folder, or a URL such as s3://bucket/folder"
        if isinstance(e, ImportError):
            hint = _INSTALLS.get(scheme, hint)
        raise UsageError(f"aifx cannot open {redact(url)}", why, hint) from e
    return Store(url.rstrip("/") or "/", fs, path)


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Raise EnvironmentFault with `what` for an error of a store: fsspec raises any type."""
    try:
        yield
    except (AifxError, GeneratorExit):
        raise
    except Exception as e:
        why = f"{type(e).__name__}: {first_line(e)}"
        again = "run the same command again: what arrived stays"
        hint = f"make room there, then {again}" if refusal_in(e) in FULL else again
        raise EnvironmentFault(f"could not {what}", why, hint) from e


def _status_of(error: BaseException) -> int | None:
    """The HTTP status of the answer that botocore reports by this error."""
    for cause in causes(error):
        if isinstance(response := getattr(cause, "response", None), dict):
            status: int | None = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status
    return None
