"""Rows of input files: what a trained model makes predictions for, read one at a time.

Each row knows where it comes from, so that an error can name the file and the line.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from aifx.core.errors import DataError, UsageError, nearest
from aifx.data.readers.csv_rows import NotCsv, csv_rows
from aifx.data.readers.documents import check_regular, parse_records
from aifx.data.readers.encodings import TextFile, conversion, open_content
from aifx.data.readers.likely_encodings import SAMPLE_BYTES, likely_encodings, listed
from aifx.data.readers.parquet_columns import open_parquet

FORMATS = ("jsonl", "csv", "parquet", "txt")
"""Formats whose rows have named fields; tasks may read more."""

STDIN = "-"
PARQUET_ROWS = 256  # read at a time

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")


@dataclass(frozen=True)
class InputFile:
    """A file of rows. `path` is None for standard input; `name` is what messages and predictions call it."""

    name: str
    path: Path | None
    format: str

    def open(self) -> AbstractContextManager[IO[bytes]]:
        """The file's bytes, decompressed. Raises DataError for a file that cannot be read."""
        if self.path is None:
            return nullcontext(sys.stdin.buffer)
        check_regular(self.path, self.name, "an input is a file, or - for stdin", f"ls -l {self.name}")
        return open_content(TextFile(self.path, self.name))


@dataclass(frozen=True)
class Row:
    """A row of a file, its values by field."""

    file: str
    number: int  # in the file, from 1
    place: str  # for messages: the file with the line
    values: Mapping[str, Any]


def input_file(name: str, format: str | None = None) -> InputFile:
    """The input that a command line names: a path, or `-` for standard input.

    By default its format is what the suffix says, and JSON Lines on standard input.
    """
    if name == STDIN:
        return InputFile(STDIN, None, format or "jsonl")
    path = Path(name)
    return InputFile(name, path, format or TextFile(path, name).format.removeprefix("."))


def input_files(names: Iterable[str], format: str | None, output: Path | None) -> list[InputFile]:
    """The inputs that a command line names. Raises UsageError for one that excludes another or is the output."""
    files = [input_file(name, format) for name in names]
    if sum(file.path is None for file in files) > 1:
        raise UsageError("- can be given once", "stdin is read to its end", "cat A B | aifx predict -")
    if output is not None and output.exists():
        for file in files:
            if file.path is not None and file.path.exists() and output.samefile(file.path):
                raise UsageError(f"--output {output} is an input, too", "it would be replaced", "name another file")
    return files


def read_rows(file: InputFile, *, text_field: str = "text") -> Iterator[Row]:
    """The rows of a .jsonl, .csv, .parquet or .txt file, in order. A .txt file is one row, with its text in
    `text_field`. Values of .csv are text. Raises DataError naming the file and the line."""
    if file.format == "jsonl":
        yield from _jsonl(file)
    elif file.format == "csv":
        yield from _csv(file)
    elif file.format == "parquet":
        yield from _parquet(file)
    elif file.format == "txt":
        yield Row(file.name, 1, file.name, {text_field: "".join(_lines(file))})
    else:
        raise unknown_format(file, FORMATS)


def unknown_format(file: InputFile, known: Iterable[str]) -> UsageError:
    """The error for a file whose format has no reader."""
    names = list(known)
    why = f"inputs are {', '.join(f'.{name}' for name in names)}"
    if file.path is not None and file.path.is_dir():
        return UsageError(f"{file.name} is a folder", why, f"aifx predict {file.name}/*.{names[0]}")
    shown = f"format {file.format!r}" if file.format else "a file without suffix"
    hint = f"if it is {names[0]} inside: aifx predict {file.name} --input-format {names[0]}"
    return UsageError(f"{file.name}: no reader for {shown}", why, hint)


def field(values: Mapping[str, Any], name: str) -> Any:
    """The value of a field. Raises ValueError for a row without it."""
    if name not in values:
        known = [str(key) for key in values]
        near = nearest(name, known)
        has = f"the row has {', '.join(sorted(known))}" if known else "the row is empty"
        raise ValueError(f"no field {name!r}: {f'did you mean {near!r}?' if near else has}")
    return values[name]


def _lines(file: InputFile) -> Iterator[str]:
    """The lines of a UTF-8 file, each with its line end. A byte-order mark is dropped."""
    with file.open() as stream:
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                why = f"byte {error.start + 1} of the line is 0x{line[error.start]:02x} ({error.reason})"
                raise _not_utf8(file, number, why, likely_encodings(line + stream.read(SAMPLE_BYTES))) from None
            if number == 1 and "\0" in text and (likely := likely_encodings(line)) and likely[0] != "utf-8":
                raise _not_utf8(file, 1, f"byte {line.index(0) + 1} of the line is 0x00", likely)
            yield text.removeprefix("\ufeff") if number == 1 else text


def _not_utf8(file: InputFile, line: int, why: str, likely: Sequence[str]) -> DataError:
    if likely and likely[0] != "utf-8":
        why += f"; it seems to be {listed(likely)}"
    hint = conversion(TextFile(file.path or Path(STDIN), file.name), likely)
    return DataError(f"{file.name}:{line}: not UTF-8", why, hint)


def _jsonl(file: InputFile) -> Iterator[Row]:
    hint = 'each line is one JSON object, such as {"text": "Call me Ishmael."}'
    for number, (place, values) in enumerate(parse_records(_lines(file), file.name, hint), 1):
        yield Row(file.name, number, place, values)


def _csv(file: InputFile) -> Iterator[Row]:
    """Rows below a header. A row may span lines; its place is the line that it ends on.

    Cells are separated by commas, or by semicolons or tabs if the first line has no comma.
    """
    lines = _lines(file)
    first = next(lines, "")
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    count, names = 0, None
    try:
        for line, cells in csv_rows(chain([first], lines), delimiter, strict=True):
            place = f"{file.name}:{line}"
            if not cells:
                continue
            if names is None:
                names = cells
                if twice := [name for name in names if names.count(name) > 1]:
                    what = f"{place}: the header has {twice[0]!r} twice"
                    raise DataError(what, "each column has its own name", "rename one")
                continue
            if len(cells) != len(names):
                why = f"it has {len(cells)} cells and the header has {len(names)}"
                hint = f"sed -n {line}p {file.name}"
                raise DataError(f"{place}: the row does not fit the header", why, hint)
            if delimiter == ";" and (odd := next(filter(_DECIMAL_COMMA.fullmatch, cells), None)) is not None:
                what = f"{place}: column {names[cells.index(odd)]!r} has decimal commas, such as {odd!r}"
                hint = f"sed 's/\\([0-9]\\),\\([0-9]\\)/\\1.\\2/g' {shlex.quote(file.name)} > points.csv"
                raise DataError(what, "numbers have a decimal point", hint)
            count += 1
            yield Row(file.name, count, place, dict(zip(names, cells, strict=True)))
    except NotCsv as error:
        what = f"{file.name}:{error.line}: not CSV"
        raise DataError(what, str(error), f"sed -n {error.line}p {file.name}") from None


def _parquet(file: InputFile) -> Iterator[Row]:
    if file.path is None:
        raise UsageError("a Parquet file cannot be read from stdin", "its index is at the end", "name the file")
    with file.open() as stream, open_parquet(stream, file.name) as table:
        count = 0
        for batch in table.iter_batches(batch_size=PARQUET_ROWS):
            try:
                rows = batch.to_pylist()
            except (ValueError, OverflowError) as error:  # not UTF-8, or times beyond those of Python
                what = f"{file.name}: rows {count + 1} to {count + len(batch)} cannot be read"
                raise DataError(what, str(error).partition(". ")[0], "write the column otherwise") from None
            for number, values in enumerate(rows, count + 1):
                yield Row(file.name, number, f"{file.name}: row {number}", values)
            count += len(rows)
