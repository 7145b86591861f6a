"""Folders on a disk or in a remote store, by path or URL.

A store is whatever fsspec knows by the URL: a folder, `s3://`, `gs://`, `memory://`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.core.digests import sha256_of_blocks
from aifx.core.errors import AifxError, EnvironmentFault, UsageError
from aifx.core.extras import install_command
from aifx.core.os_errors import FULL, first_line, refusal_in
from aifx.core.progress import Reporter
from aifx.core.redaction import redact

BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Store:
    """A folder, on a disk or in a remote store: an fsspec file system and the path in it."""

    url: str
    fs: Any
    path: str

    @property
    def folder(self) -> Path | None:
        """The folder, if it is on a disk."""
        protocols = (self.fs.protocol,) if isinstance(self.fs.protocol, str) else self.fs.protocol
        return Path(self.path) if "file" in protocols else None

    def below(self, name: str) -> Store:
        return Store(f"{self.url}/{name}", self.fs, f"{self.path}/{name}")

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none, or a folder of that name."""
        with _naming(f"read {self.url}/{name}"):
            try:
                data: bytes = self.fs.cat_file(f"{self.path}/{name}")
            except (FileNotFoundError, IsADirectoryError):
                return None
            return data

    def size(self, name: str) -> int | None:
        with _naming(f"read {self.url}/{name}"):
            try:
                return int(self.fs.size(f"{self.path}/{name}"))
            except FileNotFoundError:
                return None

    def folders(self, name: str = "") -> list[str]:
        """The names of the folders in a folder; none if it does not exist."""
        return self._entries(name, "directory")

    def files(self, name: str = "") -> list[str]:
        """The names of the files in a folder; none if it does not exist."""
        return self._entries(name, "file")

    def _entries(self, name: str, kind: str) -> list[str]:
        path = f"{self.path}/{name}".rstrip("/")
        with _naming(f"read {self.url}/{name}"):
            try:
                found = self.fs.ls(path, detail=True, refresh=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == kind]

    def total_bytes(self, name: str) -> int:
        """Bytes of all files below a folder."""
        with _naming(f"read {self.url}/{name}"):
            return int(self.fs.du(f"{self.path}/{name}"))

    def blocks(self, name: str) -> Iterator[bytes]:
        with _naming(f"read {self.url}/{name}"), self.fs.open(f"{self.path}/{name}", "rb", cache_type="none") as file:
            while block := file.read(BLOCK_BYTES):
                yield block

    def write(self, name: str, blocks: Iterator[bytes]) -> None:
        """Put a file there, in place of one that may be there. What `blocks` raises is raised."""
        path = f"{self.path}/{name}"
        with _naming(f"write {self.url}/{name}"):
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            with self.fs.open(path, "wb", block_size=BLOCK_BYTES) as file:
                for block in blocks:
                    file.write(block)

    def remove(self, name: str) -> None:
        """Delete a file or folder, if it is there."""
        with _naming(f"delete {self.url}/{name}"):
            try:
                self.fs.rm(f"{self.path}/{name}", recursive=True)
            except FileNotFoundError:
                return

    def sha256(self, name: str, progress: Reporter | None = None) -> str:
        return sha256_of_blocks(self.blocks(name), progress)


_INSTALLS = {
    "s3": install_command("s3"),
    **dict.fromkeys(("gs", "gcs"), "pip install gcsfs"),
    **dict.fromkeys(("abfs", "az"), "pip install adlfs"),
    "sftp": "pip install paramiko",
}
"""What brings a scheme to fsspec."""


def open_store(url: str) -> Store:
    """The folder at a path or URL, which need not exist. Raises UsageError for what fsspec cannot open here.

    Some of its file systems, such as `reference://`, need options that a URL does not have.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
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
