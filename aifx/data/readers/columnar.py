"""The readers of formats with columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aifx.data.readers import csv, images, jsonl, parquet, query, web
from aifx.data.readers.base import Batch, ReadOptions

if TYPE_CHECKING:
    from pyarrow import Schema


@dataclass(frozen=True)
class Reader:
    """Reads a format with columns.

    Attributes:
        find_schema: the columns of a file, by path, compression and options.
        read: the rows of a file with these columns.
    """

    find_schema: Callable[..., Schema]
    read: Callable[[str, str, Schema, ReadOptions], Iterator[Batch]]


READERS: Mapping[str, Reader] = {
    "jsonl": Reader(jsonl.find_schema, jsonl.read),
    "csv": Reader(csv.find_schema, csv.read),
    "parquet": Reader(parquet.find_schema, parquet.read),
    "html": Reader(web.find_page_schema, web.read_page),
    "warc": Reader(web.find_archive_schema, web.read_archive),
    "query": Reader(query.find_schema, query.read),
    "image": Reader(images.find_schema, images.read),
}
