"""The formats of source files, by suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from aifx.data.names import Kind
from aifx.data.readers import csv, images, jsonl, parquet, query, web
from aifx.data.readers.base import Batch, ReadOptions

if TYPE_CHECKING:
    from pyarrow import Schema

Format: TypeAlias = Literal["text", "jsonl", "csv", "parquet", "html", "warc", "image", "query"]

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
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"), "image"),
}
KINDS: Mapping[Kind, frozenset[Format]] = {
    "text": frozenset({"text", "html", "warc", "jsonl", "csv", "parquet", "query"}),
    "table": frozenset({"jsonl", "csv", "parquet", "query"}),
    "images": frozenset({"image"}),
    "chat": frozenset({"jsonl", "parquet", "query"}),
}
"""The formats whose files can be of a kind."""

COMPRESSIONS = (".gz", ".zst")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".joblib")
"""Files that may run code when they are read, or hold what does."""


@dataclass(frozen=True)
class Reader:
    """Reads a format with columns.

    Attributes:
        find_schema: the columns of a file, by path, compression and options.
        read: the rows of a file with these columns.
    """

    find_schema: Callable[..., Schema]
    read: Callable[[str, str, Schema, ReadOptions], Iterator[Batch]]


READERS: Mapping[Format, Reader] = {
    "jsonl": Reader(jsonl.find_schema, jsonl.read),
    "csv": Reader(csv.find_schema, csv.read),
    "parquet": Reader(parquet.find_schema, parquet.read),
    "html": Reader(web.find_page_schema, web.read_page),
    "warc": Reader(web.find_archive_schema, web.read_archive),
    "query": Reader(query.find_schema, query.read),
    "image": Reader(images.find_schema, images.read),
}


def split_name(name: str) -> tuple[str, str]:
    """The suffix and the compression that a file's name ends with, both in lower case; "" for none."""
    lower = name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if lower.endswith(suffix)), "")
    stem = lower.removesuffix(compression).rpartition("/")[2]
    return (f".{stem.rpartition('.')[2]}" if "." in stem[1:] else ""), compression
