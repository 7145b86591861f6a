"""Writing predictions: JSON Lines, CSV or Parquet, a batch of records at a time."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from aifx.core.errors import DataError, UsageError
from aifx.core.files import replacing
from aifx.core.json_values import encode_json
from aifx.data.parquet import import_pyarrow

Record = Mapping[str, Any]


class RowWriter(Protocol):
    def write(self, records: Sequence[Record]) -> None: ...

    def close(self) -> None: ...


def output_format(path: Path) -> str:
    """The format that the file's extension names.

    Raises UsageError for another extension or a place where no file can be, EnvironmentFault for Parquet without
    pyarrow.
    """
    format = path.suffix.lower().removeprefix(".")
    if format not in WRITERS:
        known = ", ".join(f".{known}" for known in WRITERS)
        raise UsageError(
            f"--output {path}: no writer for {path.suffix or 'a name without extension'}",
            f"predictions are written as {known}",
            f"aifx predict INPUT --output {path.with_suffix('.jsonl')}",
        )
    if path.is_dir():
        raise UsageError(
            f"--output {path} is a directory", "predictions are one file", f"--output {path}/predictions.jsonl"
        )
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: no folder {path.parent}", "", f"mkdir -p {path.parent}")
    if format == "parquet":
        import_pyarrow(f"{path} cannot be written")
    return format


@contextmanager
def open_writer(path: Path) -> Iterator[RowWriter]:
    """Write records to `path` in the format of its extension: the file is there once all of them are, or not at all."""
    format = output_format(path)
    with replacing(path) as stream:
        writer = WRITERS[format](stream)
        try:
            yield writer
        except BaseException:
            with suppress(Exception):
                writer.close()  # while there is a stream: pyarrow would complain later
            raise
        writer.close()


def json_line(record: Record, *, ascii: bool = False) -> str:
    """A record as a line of JSON. A number that is not finite is null."""
    return encode_json(record, ensure_ascii=ascii) + "\n"


def flat(record: Record, prefix: str = "") -> dict[str, Any]:
    """The record as columns: nested values by their path with dots, lists as JSON text."""
    columns: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            columns |= flat(value, f"{prefix}{name}.")
        else:
            columns[f"{prefix}{name}"] = encode_json(value) if isinstance(value, (list, tuple)) else value
    return columns


class JsonlWriter:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, records: Sequence[Record]) -> None:
        self._stream.write("".join(map(json_line, records)).encode("utf-8", "backslashreplace"))

    def close(self) -> None: ...


class _Columns:
    """The columns of a table, which its first record decides."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def take(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """Flat records. Raises DataError for one whose columns differ from those of the first."""
        rows = [flat(record) for record in records]
        if rows and not self.names:
            self.names = list(rows[0])
        for row in rows:
            if row.keys() != set(self.names):
                odd = sorted(row.keys() ^ set(self.names))
                place = ", row ".join(str(row[key]) for key in ("file", "row") if key in row)
                what = f"{place}: its prediction has other columns than the first: {', '.join(odd[:3])}"
                raise DataError(
                    what, "a table has the same columns in each row", "aifx predict INPUT --output FILE.jsonl"
                )
        return rows


class CsvWriter:
    def __init__(self, stream: IO[bytes]) -> None:
        self._text = io.TextIOWrapper(stream, "utf-8", errors="backslashreplace", newline="", write_through=True)
        self._columns = _Columns()

    def write(self, records: Sequence[Record]) -> None:
        is_first = not self._columns.names
        rows = self._columns.take(records)
        writer = csv.DictWriter(self._text, self._columns.names, lineterminator="\n")
        if is_first and rows:
            writer.writeheader()
        writer.writerows([{name: _cell(value) for name, value in row.items()} for row in rows])

    def close(self) -> None:
        self._text.flush()
        self._text.detach()  # the caller closes the stream


class ParquetWriter:
    def __init__(self, stream: IO[bytes]) -> None:
        self._arrow, self._parquet = import_pyarrow("Parquet cannot be written")
        self._stream = stream
        self._columns = _Columns()
        self._writer: Any = None

    def write(self, records: Sequence[Record]) -> None:
        rows = self._columns.take(records)
        if not rows:
            return
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(self._stream, self._schema(rows))
        try:
            self._writer.write_table(self._arrow.Table.from_pylist(rows, schema=self._writer.schema))
        except (self._arrow.ArrowInvalid, self._arrow.ArrowTypeError) as error:
            why = str(error).splitlines()[0]
            raise DataError(
                "a prediction has another type than the first", why, "aifx predict INPUT --output FILE.jsonl"
            ) from None

    def close(self) -> None:
        if self._writer is None:  # no row, no column
            self._writer = self._parquet.ParquetWriter(self._stream, self._arrow.schema([]))
        self._writer.close()

    def _schema(self, rows: list[dict[str, Any]]) -> Any:
        """Of the first rows; a column without a value is taken for numbers."""
        found = self._arrow.Table.from_pylist(rows).schema
        null = self._arrow.null()
        return self._arrow.schema([(f.name, self._arrow.float64() if f.type == null else f.type) for f in found])


WRITERS: dict[str, Callable[[IO[bytes]], RowWriter]] = {
    "jsonl": JsonlWriter,
    "csv": CsvWriter,
    "parquet": ParquetWriter,
}


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if isinstance(value, float) and not math.isfinite(value) else value
