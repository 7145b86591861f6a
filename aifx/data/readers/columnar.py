"""The readers of `aifx data add`: of texts, of pictures, of rows with columns, and of a query's rows on the disk.

A text file is a document, or each part of it that begins at a line of some form.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from aifx.data.readers import csv, jsonl, own, parquet, web
from aifx.data.readers.arrow import pa, pc
from aifx.data.readers.base import (
    ROW_BYTES,
    BadRow,
    Batch,
    DamagedFile,
    ReadOptions,
    batch_of,
    rows_not_utf8,
    split_valid,
)
from aifx.data.readers.formats import IMAGE
from aifx.data.readers.sources import SourceFile
from aifx.data.readers.streams import open_bytes, open_utf8, read_whole

CHECK = "_check"
"""A column of a query's rows on their way: a hash of the row, or a negative number for a row that cannot be taken."""

REASONS = b"aifx:reasons"
"""Metadata of the rows: why some cannot be taken, as a list in JSON. The reason of a row is at `-1 - CHECK`."""

KEY = b"aifx:key"
"""Metadata of the rows: the column of the key, or ""."""

TYPE = b"aifx:type"
"""Key of a text column's metadata: the type of Arrow that its values become."""


LARGE_BYTES = 1 << 16
FILL_BYTES = 32 << 20
"""That are read at a time."""


@dataclass(frozen=True)
class Reader:
    """Reads a format with columns.

    Attributes:
        find_schema: the columns of a file on this machine, by its options.
        read: the rows of a file with these columns.
    """

    find_schema: Callable[..., pa.Schema]
    read: Callable[[SourceFile, pa.Schema, ReadOptions], Iterator[Batch]]


def _read_picture(file: SourceFile, schema: pa.Schema, options: ReadOptions) -> Iterator[Batch]:
    """The picture, its bytes unchanged, if it can be decoded and has no more pixels than Pillow allows."""
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


def _find_query_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> pa.Schema:
    """The columns of the query."""
    with open(file.location, "rb") as opened, pa.ipc.open_stream(opened) as stream:
        return pa.schema([_as_stored(field) for field in stream.schema if field.name != CHECK])


def _read_query(file: SourceFile, schema: pa.Schema, options: ReadOptions) -> Iterator[Batch]:
    """The rows; one that PostgreSQL could not give is bad, and has its number."""
    with pa.memory_map(file.location) as mapped, pa.ipc.open_stream(mapped) as stream:
        first = 0
        for batch in stream:
            columns = [batch.column(field.name).cast(field.type) for field in schema]
            found = batch_of(pa.table(columns, schema=schema), first)
            yield _without_bad(found, batch, first, options)
            first += len(batch)


def _without_bad(found: Batch, batch: pa.RecordBatch, first: int, options: ReadOptions) -> Batch:
    if CHECK in batch.schema.names and pc.any(marked := pc.less(batch.column(CHECK), 0)).as_py():
        checks = batch.column(CHECK)
        metadata = batch.schema.metadata
        reasons, key = json.loads(metadata[REASONS]), metadata[KEY].decode()
        bad = []
        for index in pc.indices_nonzero(marked).to_pylist():
            place = f"{key} = {batch.column(key)[index]}: " if key else ""
            bad.append(BadRow(first + index + 1, place + reasons[-1 - checks[index].as_py()]))
        keep = pc.invert(marked)
        found = Batch(found.rows.filter(keep), found.numbers.filter(keep), bad)
    if options.text_column is None:
        return found
    rows, numbers = found.rows, found.numbers

    def raw(index: int) -> tuple[int, bytes]:
        return numbers[index].as_py() + 1, json.dumps(rows.slice(index, 1).to_pylist()[0], default=str).encode()

    return split_valid(found, options.text_column, raw)


def _as_stored(field: pa.Field) -> pa.Field:
    match = re.fullmatch(r"decimal128\((\d+), (\d+)\)", (field.metadata or {}).get(TYPE, b"").decode())
    return pa.field(field.name, pa.decimal128(int(match[1]), int(match[2])) if match else field.type)


READERS: Mapping[str, Reader] = {
    "jsonl": Reader(jsonl.find_schema, jsonl.read),
    "csv": Reader(csv.find_schema, csv.read),
    "parquet": Reader(parquet.find_schema, parquet.read),
    "html": Reader(web.find_schema, web.read),
    "warc": Reader(web.find_schema, web.read),
    "query": Reader(_find_query_schema, _read_query),
    "own": Reader(own.find_schema, own.read),
    "image": Reader(lambda *_, **how: pa.schema([(IMAGE, pa.binary())]), _read_picture),
}


def read_documents(file: SourceFile, options: ReadOptions) -> Iterator[bytes | BadRow]:
    """The documents of a file, in UTF-8: one, or each part of it that begins where `options.split_at` matches.

    Raises DamagedFile for one that is larger than ROW_BYTES, and the damage that ends one.
    """
    starts = re.compile(options.split_at.encode(), re.MULTILINE) if options.split_at is not None else None
    with open_utf8(file, options) as stream:
        data, line, found = b"", 1, False
        is_last = False
        while not is_last:
            size = len(data)
            data, damage = _filled(stream, data)
            is_last = damage is not None or len(data) < size + FILL_BYTES
            places = [match.start() for match in starts.finditer(data) if match.start()] if starts is not None else []
            for first, stop in pairwise([0, *places, len(data)]):
                if stop - first > ROW_BYTES:
                    why = f"the text has more than {ROW_BYTES >> 20} MiB; --split-at cuts a file into rows"
                    raise DamagedFile(why, line)
                if stop == len(data) and not is_last:
                    break
                document = data[first:stop] if stop - first < len(data) else data
                if document and not (starts is not None and document.isspace()):
                    found = True
                    yield _checked(document, line)
                if stop < len(data):  # counting takes as long as hashing
                    line += document.count(b"\n")
            if damage is not None:
                raise damage
            if is_last and not found:
                yield BadRow(1, "no text", data)
            data = data[places[-1] if places else 0 :]


def _filled(stream: Any, rest: bytes) -> tuple[bytes, DamagedFile | None]:
    """`rest` with FILL_BYTES after it; with fewer at the end, and with whole lines before damage."""
    parts, left = [rest] if rest else [], FILL_BYTES
    damage = None
    try:
        while left and (data := stream.read1(left)):
            parts.append(data)
            left -= len(data)
    except DamagedFile as e:
        damage = e
    data = parts[0] if len(parts) == 1 else b"".join(parts)
    return (data if damage is None else data[: data.rfind(b"\n") + 1]), damage


def _checked(document: bytes, line: int) -> bytes | BadRow:
    """The document; a bad row if it is blank or not UTF-8."""
    if not document or document.isspace():
        return BadRow(line, "no text", document)
    try:  # Arrow looks at a large one ten times as fast, and makes no copy
        if len(document) < LARGE_BYTES or rows_not_utf8(strings([document])):
            document.decode()
    except UnicodeDecodeError as e:
        at = line + document.count(b"\n", 0, e.start)
        return BadRow(at, f"byte 0x{document[e.start]:02x} is not UTF-8", document)
    return document


def strings(documents: Sequence[bytes]) -> Any:
    """An array of documents in UTF-8, which stay where they are if there is only one."""
    offsets = np.zeros(len(documents) + 1, np.int32)
    np.cumsum([len(document) for document in documents], out=offsets[1:])
    data = documents[0] if len(documents) == 1 else b"".join(documents)
    return pa.Array.from_buffers(pa.string(), len(documents), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
