"""The formats of source files, by suffix; their compression; the columns of pictures."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from aifx.data.names import Kind
from aifx.data.readers.arrow import pa

Format: TypeAlias = Literal["text", "jsonl", "csv", "parquet", "html", "warc", "image", "query", "own"]

IMAGE = "image"
"""The column of encoded pictures, and the field of a row with one to predict from."""

Target: TypeAlias = str | tuple[str, ...] | float
"""The subject of a picture: a class, several, or a number."""

TargetKind: TypeAlias = Literal["label", "labels", "value"]
TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)
"""The columns of targets: a version has one of them."""

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
SUFFIXES: Mapping[str, Format] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".warc": "warc",
    **dict.fromkeys(PICTURE_SUFFIXES, "image"),
}
KINDS: Mapping[Kind, frozenset[Format]] = {
    "text": frozenset({"text", "html", "warc", "jsonl", "csv", "parquet", "query", "own"}),
    "table": frozenset({"jsonl", "csv", "parquet", "query", "own"}),
    "images": frozenset({"image"}),
    "chat": frozenset({"jsonl", "parquet", "query"}),
}
"""The formats whose files can be of a kind."""

PAGES: tuple[Format, ...] = ("html", "warc")
"""The formats of web pages."""

CODECS = {".gz": "gzip", ".zst": "zstd"}
"""The compressions, by suffix."""
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".joblib")
"""Files that may run code when they are read, or hold what does."""


def split_name(name: str) -> tuple[str, str]:
    """The suffix and the compression that a file's name ends with, both in lower case; "" for none."""
    lower = name.lower()
    compression = next((suffix for suffix in CODECS if lower.endswith(suffix)), "")
    stem = lower.removesuffix(compression).rpartition("/")[2]
    return (f".{stem.rpartition('.')[2]}" if "." in stem[1:] else ""), compression


def format_of(suffix: str) -> str:
    """The format of files with a suffix; the suffix itself, without its dot, if it is none of SUFFIXES."""
    return SUFFIXES.get(suffix, suffix.removeprefix("."))


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


def target_field(target: Target) -> pa.Field:
    """The column of a target."""
    if isinstance(target, str):
        return pa.field("label", pa.string())
    return pa.field("labels", pa.list_(pa.string())) if isinstance(target, tuple) else pa.field("value", pa.float64())
