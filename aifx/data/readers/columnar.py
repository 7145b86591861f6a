"""The readers of formats with columns."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aifx.data.readers import csv, jsonl, parquet, query, web
from aifx.data.readers.base import ROW_BYTES, BadRow, Batch, ReadOptions, batch_of
from aifx.data.readers.images import IMAGE
from aifx.data.readers.sources import SourceFile
from aifx.data.readers.streams import open_bytes, read_whole

if TYPE_CHECKING:
    from pyarrow import Schema


@dataclass(frozen=True)
class Reader:
    """Reads a format with columns.

    Attributes:
        find_schema: the columns of a file on this machine, by its options.
        read: the rows of a file with these columns.
    """

    find_schema: Callable[..., Schema]
    read: Callable[[SourceFile, Schema, ReadOptions], Iterator[Batch]]


def _find_picture_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The column of pictures, the same for every file."""
    import pyarrow as pa

    return pa.schema([(IMAGE, pa.binary())])


def _read_picture(file: SourceFile, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The picture, its bytes unchanged, if it can be decoded and has no more pixels than Pillow allows."""
    import pyarrow as pa

    from aifx.data.readers.pictures import BadPicture, open_picture

    with open_bytes(file, options) as stream:
        data = read_whole(stream, ROW_BYTES + 1)
    bad = []
    try:
        if len(data) > ROW_BYTES:
            raise BadPicture(f"it has more than {ROW_BYTES >> 20} MiB")
        with open_picture(io.BytesIO(data)) as picture:
            picture.load()
    except BadPicture as e:
        bad = [BadRow(1, str(e), data)]
    yield batch_of(pa.table([pa.array([] if bad else [data], pa.binary())], schema=schema), 0, bad)


READERS: Mapping[str, Reader] = {
    "jsonl": Reader(jsonl.find_schema, jsonl.read),
    "csv": Reader(csv.find_schema, csv.read),
    "parquet": Reader(parquet.find_schema, parquet.read),
    "html": Reader(web.find_schema, web.read),
    "warc": Reader(web.find_schema, web.read),
    "query": Reader(query.find_schema, query.read),
    "image": Reader(_find_picture_schema, _read_picture),
}
