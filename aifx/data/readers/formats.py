"""The formats of source files, by suffix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from aifx.data.names import Kind
from aifx.data.readers import images

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
    **dict.fromkeys(images.SUFFIXES, "image"),
}
KINDS: Mapping[Kind, frozenset[Format]] = {
    "text": frozenset({"text", "html", "warc", "jsonl", "csv", "parquet", "query"}),
    "table": frozenset({"jsonl", "csv", "parquet", "query"}),
    "images": frozenset({"image"}),
    "chat": frozenset({"jsonl", "parquet", "query"}),
}
"""The formats whose files can be of a kind."""

PAGES: tuple[Format, ...] = ("html", "warc")
"""The formats of web pages."""

COMPRESSIONS = (".gz", ".zst")
PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".joblib")
"""Files that may run code when they are read, or hold what does."""


def split_name(name: str) -> tuple[str, str]:
    """The suffix and the compression that a file's name ends with, both in lower case; "" for none."""
    lower = name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if lower.endswith(suffix)), "")
    stem = lower.removesuffix(compression).rpartition("/")[2]
    return (f".{stem.rpartition('.')[2]}" if "." in stem[1:] else ""), compression


def format_of(suffix: str) -> str:
    """The format of files with a suffix; the suffix itself, without its dot, if it is none of SUFFIXES."""
    return SUFFIXES.get(suffix, suffix.removeprefix("."))
