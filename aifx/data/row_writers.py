"""Writing predictions: JSON Lines, CSV or Parquet, a batch of records at a time."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from aifx.core.errors import DataError, UsageError
from aifx.core.files import replacing
from aifx.core.json_values import encode_json

Record = Mapping[str, Any]

FORMATS = ("jsonl", "csv", "parquet")
AS_JSONL = "aifx predict INPUT --output FILE.jsonl"


def output_format(path: Path, rows: str = "predictions") -> str:
    """The format that the file's extension names.

    Args:
        rows: what is written, for messages.

    Raises UsageError for another extension or a place where no file can be.
    """
    format = path.suffix.lower().removeprefix(".")
    if format not in FORMATS:
        what = f"--output {path}: no writer for {path.suffix or 'a name without extension'}"
        known = ", ".join(f".{known}" for known in FORMATS)
        raise UsageError(what, f"{rows} are written as {known}", f"--output {path.with_suffix('.jsonl')}")
    if path.is_dir():
        hint = f"--output {path}/{rows}.jsonl"
        raise UsageError(f"--output {path} is a directory", f"{rows} are written to one file", hint)
    if not path.parent.is_dir():
        raise UsageError(f"--output {path}: no folder {path.parent}", "", f"mkdir -p {path.parent}")
    return format


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


_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")


def escape_formula(value: Any) -> Any:
    """A text as a cell that no spreadsheet takes for a formula: with an apostrophe before it, as they write it."""
    is_formula = isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
    return f"'{value}" if is_formula else value


def unescape_formula(cell: Any) -> Any:
    """The text that `escape_formula` made a cell of."""
    is_escaped = isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell)
    return cell[1:] if is_escaped else cell


class CsvText(io.StringIO):
    """Text that `csv.writer` writes rows to, with its own `lineterminator`: each ends with a line feed alone.

    Python 3.11 leaves a carriage return in a value without quotes if the end of a line has none.
    """

    def __init__(self) -> None:
        super().__init__(newline="")

    def write(self, row: str) -> int:
        return super().write(row.removesuffix("\r\n") + "\n")


class RowWriter:
    """Writes records to a stream in one of FORMATS. The first has the columns of a table (.csv, .parquet)."""

    def __init__(self, stream: IO[bytes], format: str) -> None:
        self._stream, self._format = stream, format
        self._names: Sequence[str] = ()
        self._parquet: Any = None  # pyarrow's writer, once there is a row

    def write(self, records: Sequence[Record]) -> None:
        """Write records. Raises DataError for one whose columns, or their types, differ from those of the first."""
        if self._format == "jsonl":
            self._stream.write("".join(map(json_line, records)).encode("utf-8", "backslashreplace"))
            return
        rows, is_first = [flat(record) for record in records], not self._names
        for row in rows:
            self._names = self._names or list(row)
            if odd := sorted(row.keys() ^ set(self._names)):
                place = ", row ".join(str(row[key]) for key in ("file", "row") if key in row)
                what = f"{place}: its prediction has other columns than the first: {', '.join(odd[:3])}"
                raise DataError(what, "a table has the same columns in each row", AS_JSONL)
        if rows and self._format == "parquet":
            self._write_parquet(rows)
        elif rows:
            text = CsvText()
            writer = csv.DictWriter(text, self._names)
            if is_first:
                writer.writeheader()
            writer.writerows([{name: _cell(value) for name, value in row.items()} for row in rows])
            self._stream.write(text.getvalue().encode("utf-8", "backslashreplace"))

    def _write_parquet(self, rows: list[dict[str, Any]]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        if self._parquet is None:
            found = pa.Table.from_pylist(rows).schema
            # A column without a value is taken for numbers.
            schema = pa.schema([(f.name, pa.float64() if f.type == pa.null() else f.type) for f in found])
            self._parquet = parquet.ParquetWriter(self._stream, schema)
        try:
            self._parquet.write_table(pa.Table.from_pylist(rows, schema=self._parquet.schema))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            what = "a prediction has another type than the first"
            raise DataError(what, str(error).splitlines()[0], AS_JSONL) from None

    def close(self) -> None:
        """Write what ends the file. The caller closes the stream."""
        if self._format == "parquet":
            import pyarrow as pa
            from pyarrow import parquet

            # Without a row there is no column.
            (self._parquet or parquet.ParquetWriter(self._stream, pa.schema([]))).close()


@contextmanager
def open_writer(path: Path) -> Iterator[RowWriter]:
    """Write records to `path` in the format of its extension: the file is there once all of them are, or not at all."""
    format = output_format(path)
    with replacing(path) as stream:
        writer = RowWriter(stream, format)
        try:
            yield writer
        except BaseException:
            with suppress(Exception):
                writer.close()  # while there is a stream: pyarrow would complain later
            raise
        writer.close()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if isinstance(value, float) and not math.isfinite(value) else value
