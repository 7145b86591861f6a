"""Rows of input files: what a trained model makes predictions for, read one at a time.

Each row knows where it comes from, so that an error can name the file and the line.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aifx.core.errors import DataError, UsageError, nearest
from aifx.data.readers.csv import CsvRow, NotCsv, csv_rows, delimiter_of
from aifx.data.readers.encodings import DecodeErrors
from aifx.data.readers.formats import format_of
from aifx.data.readers.jsonl import parse_records
from aifx.data.readers.parquet import batches_of
from aifx.data.readers.sources import SourceFile, named_file
from aifx.data.readers.streams import read_lines

FORMATS = ("jsonl", "csv", "parquet")
"""Formats whose rows have named fields; tasks may read more."""

PARQUET_ROWS = 256  # read at a time

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*")


@dataclass(frozen=True)
class Row:
    """A row of a file, its values by field."""

    file: str
    number: int  # in the file, from 1
    place: str  # for messages: the file with the line
    values: Mapping[str, Any]
    line: int | None = None  # of a file of lines: that it begins on, from 1


def input_file(name: str, format: str | None = None) -> SourceFile:
    """The input that a command line names: a path, a URL, or `-` for standard input.

    By default its format is what the suffix says, and JSON Lines on standard input.
    """
    file = named_file(name, Path())
    if format is None and not file.is_stdin:
        return file
    return replace(file, format=format_of(f".{format or 'jsonl'}"))


def input_files(names: Iterable[str], format: str | None, output: Path | None) -> list[SourceFile]:
    """The inputs that a command line names. Raises UsageError for one that excludes another or is the output."""
    files = [input_file(name, format) for name in names]
    if sum(file.is_stdin for file in files) > 1:
        raise UsageError("- can be given once", "stdin is read to its end", "cat A B | aifx predict -")
    if output is not None and output.exists():
        for file in files:
            if not file.is_stdin and file.path.exists() and output.samefile(file.path):
                raise UsageError(f"--output {output} is an input, too", "it would be replaced", "name another file")
    return files


def read_rows(file: SourceFile, *, text_field: str = "text", errors: DecodeErrors | None = None) -> Iterator[Row]:
    """The rows of a .jsonl, .csv, .parquet or .txt file, in order. A .txt file is one row, with its text in
    `text_field`. Values of .csv are text.

    Args:
        errors: as in `lines.read_lines`; not for .parquet.

    Raises DataError naming the file and the line.
    """
    if file.format == "jsonl":
        for number, (line, values) in enumerate(parse_records(read_lines(file, errors), file.name), 1):
            yield Row(file.name, number, f"{file.name}:{line}", values, line)
    elif file.format == "csv":
        try:
            yield from _csv(file, errors)
        except NotCsv as error:
            what = f"{file.name}:{error.line}: not CSV"
            raise DataError(what, str(error), f"sed -n {error.line}p {file.name}") from None
    elif file.format == "parquet":
        yield from _parquet(file)
    elif file.format == "text":
        yield Row(file.name, 1, file.name, {text_field: "".join(read_lines(file, errors))})
    else:
        raise unknown_format(file, (*FORMATS, "txt"))


def unknown_format(file: SourceFile, known: Iterable[str]) -> UsageError:
    """The error for a file whose format has no reader."""
    names = list(known)
    why = f"inputs are {', '.join(f'.{name}' for name in names)}"
    if file.path.is_dir():
        return UsageError(f"{file.name} is a folder", why, f"aifx predict {file.name}/*.{names[0]}")
    is_by_suffix = format_of(file.suffix) == file.format
    name = file.suffix.removeprefix(".") if is_by_suffix else file.format
    described = f"format {name!r}" if name else "a file without suffix"
    hint = f"if it is {names[0]} inside: aifx predict {file.name} --input-format {names[0]}"
    return UsageError(f"{file.name}: no reader for {described}", why, hint)


def field(values: Mapping[str, Any], name: str) -> Any:
    """The value of a field. Raises ValueError for a row without it."""
    if name not in values:
        known = [str(key) for key in values]
        near = nearest(name, known)
        has = f"the row has {', '.join(sorted(known))}" if known else "the row is empty"
        raise ValueError(f"no field {name!r}: {f'did you mean {near!r}?' if near else has}")
    return values[name]


def _csv(file: SourceFile, errors: DecodeErrors | None) -> Iterator[Row]:
    """Rows below a header. A row may span lines; its place is the line that it begins on."""
    lines = read_lines(file, errors, newline="")
    rows = csv_rows(lines, "\t" if file.suffix == ".tsv" else "", strict=True)
    header = next(rows, CsvRow(1, [], ""))
    names = header.cells
    if twice := [name for name in names if names.count(name) > 1]:
        what = f"{file.name}:{header.line}: the header has {twice[0]!r} twice"
        raise DataError(what, "each column has its own name", "rename one")
    has_semicolons = file.suffix != ".tsv" and delimiter_of(header.text) == ";"
    for number, (line, cells, _) in enumerate(rows, 1):
        place = f"{file.name}:{line}"
        if len(cells) != len(names):
            why = f"it has {len(cells)} cells and the header has {len(names)}"
            hint = f"sed -n {line}p {file.name}"
            raise DataError(f"{place}: the row does not fit the header", why, hint)
        if has_semicolons and (odd := next(filter(_DECIMAL_COMMA.fullmatch, cells), None)) is not None:
            what = f"{place}: column {names[cells.index(odd)]!r} has decimal commas, such as {odd!r}"
            hint = f"sed 's/\\([0-9]\\),\\([0-9]\\)/\\1.\\2/g' {shlex.quote(file.name)} > points.csv"
            raise DataError(what, "numbers have a decimal point", hint)
        yield Row(file.name, number, place, dict(zip(names, cells, strict=True)), line)


def _parquet(file: SourceFile) -> Iterator[Row]:
    if file.is_stream:
        raise UsageError("a Parquet file cannot be read from a stream", "its index is at the end", "name the file")
    count = 0
    for batch in batches_of(file, rows=PARQUET_ROWS):
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:  # not UTF-8, or times beyond those of Python
            what = f"{file.name}: rows {count + 1} to {count + len(batch)} cannot be read"
            raise DataError(what, str(error).partition(". ")[0], "write the column otherwise") from None
        for number, values in enumerate(rows, count + 1):
            yield Row(file.name, number, f"{file.name}: row {number}", values)
        count += len(rows)
