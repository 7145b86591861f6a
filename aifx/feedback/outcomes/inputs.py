"""Predictions and outcomes as versions that are joined: those of data sets, and rows of files and databases.

The latter are versions for as long as a command runs, in a folder of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import Table, parquet

from aifx.core.errors import DataError, UsageError
from aifx.core.os_errors import first_line
from aifx.curation.adding import options_of
from aifx.data.names import ROW
from aifx.data.readers.base import DamagedFile, ReadOptions
from aifx.data.readers.columnar import READERS
from aifx.data.readers.rows import FORMATS, Row, unknown_format
from aifx.data.readers.sources import SourceFile
from aifx.data.versions.manifest import SHARDS, Manifest, Source, StepRecord, Version
from aifx.data.versions.shards import ShardWriter, columns_of
from aifx.feedback.scoring.connections import connect
from aifx.feedback.scoring.database_source import Selection, select
from aifx.feedback.scoring.database_target import DatabaseTable, OpenTable
from aifx.feedback.scoring.file_target import ENTRY
from aifx.feedback.scoring.predictions import ID, OWN, KeyedRow, key_text, prediction_batch
from aifx.serving.records import Record, read_records

Choose = Callable[[Sequence[str]], Sequence[str]]
"""The columns to read, of those that there are."""


@dataclass(frozen=True)
class Input:
    """Rows that are joined.

    Attributes:
        name: of the source, without login.
        version: with the rows.
        is_stored: whether it is a version of a data set.
    """

    name: str
    version: Version
    is_stored: bool = False

    @property
    def digest(self) -> str:
        return self.version.manifest.sha256

    def source(self, license: str) -> Source:
        """The source for a manifest."""
        manifest = self.version.manifest
        return Source(self.name, self.digest, manifest.bytes, manifest.rows, license)


@dataclass(frozen=True)
class Predictions(Input):
    """Predictions of `aifx score` or `aifx serve`.

    Attributes:
        scored: the sources whose rows they are of, and the column of the key, as far as the target knows them.
        left_out: records of a server that are no predictions of rows, by the reason.
    """

    scored: tuple[tuple[str, str], ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


def table_version(name: str, parts: Iterable[Table], folder: Path) -> Version:
    """Rows as a version in an empty folder. Their `_row` is their number, unless they have one."""
    columns, count = dict[str, str](), 0
    with ShardWriter(folder, f"{SHARDS}/00000") as shards:
        for part in parts:
            if ROW not in part.column_names:
                numbers = pa.array(range(count, count + len(part)), pa.int64()).cast(pa.string())
                part = part.add_column(0, ROW, numbers)
            count += len(part)
            columns = columns or columns_of(part)
            shards.add(part)
    files = tuple(shards.files)
    manifest = Manifest(
        name, "table", columns, count, sum(file.bytes for file in files), files, (), {}, (), StepRecord("add", {}), ()
    )
    return Version(folder, replace(manifest, sha256=manifest.artifact().digest))


def read_file(file: SourceFile, choose: Choose, folder: Path) -> Input:
    """The rows of a file, with the types that `aifx data add` gives them. Raises DataError with the place of a row."""
    if file.format not in FORMATS:
        raise unknown_format(file, FORMATS)
    with file.on_disk() as local:
        return Input(file.name, table_version(file.name, _file_tables(local, choose), folder))


def _file_tables(file: SourceFile, choose: Choose) -> Iterator[Table]:
    options, reader = options_of(file, ReadOptions("table")), READERS[file.format]
    try:
        schema = reader.find_schema(file, options, is_whole=True)
        chosen = list(choose(schema.names))
        yield schema.empty_table().select(chosen)
        for batch in reader.read(file, schema, options):
            for bad in batch.bad:
                place = f"{file.name}:{bad.line}" if bad.line else file.name
                raise DataError(f"{place}: the row cannot be read", bad.reason, "correct the row")
            yield batch.rows.select(chosen)
    except DamagedFile as e:
        place = f"{file.name}:{e.line}" if e.line else file.name
        raise DataError(f"{place}: the file cannot be read", str(e), "restore it from its origin") from None


def read_database(selection: Selection, choose: Choose, folder: Path) -> Input:
    """The rows of a table or a query. Raises UsageError, DataError, EnvironmentFault."""
    with selection.open(None) as source:
        chosen = list(choose(source.names))
        parts = (part.select(chosen) for part in source.tables())
        return Input(selection.name, table_version(selection.name, parts, folder))


def read_prediction_table(url: str, folder: Path) -> Predictions:
    """The predictions in a table of a database. Raises UsageError for a table with none, EnvironmentFault."""
    table = DatabaseTable.of(url)
    found = read_database(select(url, "key", None, None, False), lambda names: _checked(names, table.name), folder)
    with connect(table.table.url, f"read {table.name}") as connection:
        scored = _scored(OpenTable(connection, table.table).scorings())
    return Predictions(found.name, found.version, scored=scored)


def read_prediction_folder(path: Path, folder: Path) -> Predictions:
    """The predictions in a folder. Raises UsageError, DataError for a file that has none."""
    parts = list(path.glob("*.parquet"))
    if not parts:
        why = "it has no .parquet file" if path.is_dir() else "there is no such folder"
        raise UsageError(f"{path} has no predictions", why, f"aifx score MODEL SOURCE {path}")
    scorings: list[str] = []

    def tables() -> Iterator[Table]:
        for part in sorted(parts, key=_number):
            try:
                with parquet.ParquetFile(part) as opened:
                    scorings.append(json.loads((opened.metadata.metadata or {})[ENTRY])["scoring"])
                    _checked(opened.schema_arrow.names, str(part))
                    if len(opened.schema_arrow) > len(OWN):  # otherwise it only keeps a request
                        for batch in opened.iter_batches():
                            yield pa.Table.from_batches([batch])
            except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as e:
                raise _no_predictions(part, first_line(e)) from None

    version = table_version(str(path), tables(), folder)
    if not version.manifest.rows:
        raise UsageError(f"{path} has no predictions", "no row was scored into it", f"aifx score MODEL SOURCE {path}")
    return Predictions(str(path), version, scored=_scored(scorings))


RECORD_ROWS = 10_000
"""Predictions of records that are in memory at a time."""


@dataclass(frozen=True)
class _ServedRow:
    """A row of a request, with its prediction."""

    row: KeyedRow
    prediction: Mapping[str, Any]
    model: str
    time: datetime


def read_prediction_records(path: Path, column: str, folder: Path) -> Predictions:
    """The predictions in records of `aifx serve`, each with its row's value of a column as the key.

    Their ids are those of the responses; of the rows of a request with several, ID.0, ID.1 and so on. Raises DataError
    for damaged records, UsageError if none has a row with a key.
    """
    left_out = Counter[str]()
    served = _served_rows(read_records(path), column, left_out)
    version = table_version(str(path), _served_tables(served), folder)
    if not version.manifest.rows:
        found = ", ".join(f"{count:,} {what}" for what, count in left_out.items())
        hint = "--rows-key COLUMN that clients send with each row"
        raise UsageError(f"{path} has no prediction of a row with {column!r}", f"records: {found}", hint)
    return Predictions(str(path), version, left_out=dict(left_out))


def _served_rows(records: Iterable[Record], column: str, left_out: Counter[str]) -> Iterator[_ServedRow]:
    seen = set[int]()
    for record in records:
        if record.state != "whole":
            left_out[record.state] += 1
            continue
        rows, predictions = record.request.get("rows"), record.answer.get("predictions")
        if not rows or not predictions:
            left_out["without rows"] += 1  # texts and pictures
            continue
        time = datetime.fromtimestamp(record.time, UTC)
        for number, (values, prediction) in enumerate(zip(rows, predictions, strict=True)):
            id = record.id if len(rows) == 1 else f"{record.id}.{number}"
            key, place = values.get(column), f"{record.place}, row {number}"
            if key is None or key == "":
                left_out["without key"] += 1
            elif hash(id) in seen:
                left_out["repeated"] += 1  # a client may send a request with its id again
            else:
                seen.add(hash(id))
                row = KeyedRow(Row(place, 1, place, values), key_text(key, place, column), id)
                yield _ServedRow(row, prediction, record.model, time)


def _served_tables(served: Iterator[_ServedRow]) -> Iterator[Table]:
    schema = None
    while part := list(islice(served, RECORD_ROWS)):
        batch = prediction_batch([(one.row, one.prediction) for one in part], "", None, part[0].time, schema)
        schema = batch.schema
        table = pa.Table.from_batches([batch])
        for name, values in (("model", [one.model for one in part]), ("scored_at", [one.time for one in part])):
            at = schema.get_field_index(name)
            table = table.set_column(at, schema.field(at), pa.array(values, schema.field(at).type))
        yield table


def _number(part: Path) -> int:
    """The number of a file, which only grows. Raises DataError."""
    try:
        return int(part.stem)
    except ValueError:
        raise _no_predictions(part, "its name is no number") from None


def _no_predictions(part: Path, why: str) -> DataError:
    return DataError(f"{part} is no file of predictions", why, "name a folder that aifx score wrote")


def _checked(names: Sequence[str], where: str) -> Sequence[str]:
    """The columns. Raises UsageError for those of no predictions."""
    if lacking := [name for name in OWN.names if name not in names]:
        what, why = f"{where} has no predictions", f"it has no column {lacking[0]!r}, but {', '.join(names)}"
        raise UsageError(what, why, f"name what aifx score wrote, which has {ID}, key and others")
    return names


def _scored(scorings: Iterable[str]) -> tuple[tuple[str, str], ...]:
    found = (json.loads(one) for one in scorings)
    return tuple(dict.fromkeys((str(source), str(key)) for _, source, key in found))
