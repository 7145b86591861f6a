"""Compressed files: .gz and .zst."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

CODECS = {".gz": "gzip", ".zst": "zstd"}


def decompressed(file: Any, compression: str) -> Any:
    """A buffered reader of the decompressed bytes of an open file: `file` itself if `compression` is ""."""
    if compression == ".gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if compression == ".zst":
        from backports.zstd import ZstdFile

        return ZstdFile(file)
    return file


def damages(compression: str) -> tuple[type[Exception], ...]:
    """The errors of `decompressed` for bytes that cannot be decompressed."""
    if compression == ".zst":
        from backports.zstd import ZstdError

        return EOFError, ZstdError
    return EOFError, zlib.error, gzip.BadGzipFile
