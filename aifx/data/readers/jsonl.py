"""JSON lines: each line is an object.

Training parses each line with Python, whose values are exact. For `aifx data add`, pyarrow parses a block of lines at
once, with the types that the file's columns have. If it refuses a block, the halves are parsed, and so on, until the
lines at fault are alone. So pyarrow alone decides which line is good.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from string import whitespace
from typing import TYPE_CHECKING, Any

import numpy as np

from aifx.core.errors import DataError
from aifx.core.parsing import parse_json
from aifx.data.readers.base import (
    BLOCK_BYTES,
    SAMPLE_BYTES,
    BadRow,
    Batch,
    ColumnsChanged,
    DamagedFile,
    ReadOptions,
    joined,
    split_valid,
)
from aifx.data.readers.lines import line_blocks
from aifx.data.readers.streams import open_utf8

if TYPE_CHECKING:
    from pyarrow import Schema, Table

    from aifx.data.readers.sources import SourceFile

NULL = re.compile(rb"[ \t\r\n]*null")
"""A line that pyarrow must not see: it crashes on a block that begins with a null, and takes a later one for a row."""

DEEPEST = 32
"""Levels of nested values."""


def parse_records(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of the lines of the file `name`, each with the number of its line, from 1. Raises DataError."""
    hint = 'each line is one JSON object, such as {"text": "Call me Ishmael."}'
    for number, line in enumerate(lines, 1):
        if not line.strip(whitespace):
            continue
        place = f"{name}:{number}"
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"{place}: not JSON", str(error), hint) from None
        if not isinstance(record, dict):
            raise DataError(f"{place}: not a JSON object", f"it is {type(record).__name__}", hint)
        yield number, record


def find_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The columns of a file: of all of it, or of its beginning."""
    import pyarrow as pa

    schema = pa.schema([])
    with open_utf8(file, options) as stream:
        try:
            for block in line_blocks(stream, BLOCK_BYTES if is_whole else SAMPLE_BYTES):
                for line in block.splitlines():
                    schema = _widened(schema, line, options) or schema
                if not is_whole:
                    break
        except DamagedFile:
            if not schema.names:
                raise
    if options.text_column is not None and options.text_column not in schema.names:
        schema = schema.append(pa.field(options.text_column, pa.string()))
    return schema


def read(file: SourceFile, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The rows of a file. Raises ColumnsChanged if a row has more columns or wider types than `schema`."""
    first_row, first_line = 0, 1
    with open_utf8(file, options) as stream:
        for block in line_blocks(stream):
            reader = _Block(block, schema, options, first_line)
            batch = reader.batch(first_row)
            first_row += reader.num_rows
            first_line += reader.line_ends
            yield batch


class _Block:
    """A block of lines."""

    def __init__(self, block: bytes, schema: Schema, options: ReadOptions, first_line: int) -> None:
        self._block, self._schema, self._options, self._first_line = block, schema, options, first_line
        self._lines: list[bytes] | None = None
        self._bad: list[BadRow] = []
        self._bad_numbers: list[int] = []
        self.num_rows = 0
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        self.line_ends = len(ends)
        self._ends = ends if block.endswith(b"\n") else np.append(ends, len(block))

    def batch(self, first_row: int) -> Batch:
        import pyarrow as pa

        rows = self._whole()
        if rows is None:
            numbered = [(n, line) for n, line in enumerate(self._split()) if line.strip()]
            self._numbered = numbered
            tables, good = [], []
            for start, stop, table in self._halves(0, len(numbered)):
                tables.append(table)
                good.append(np.arange(start, stop))
            rows = pa.concat_tables(tables) if tables else self._schema.empty_table()
            indices = np.concatenate(good) if good else np.zeros(0, np.int64)
            self.num_rows = len(numbered)
            lines = [numbered[index][0] for index in indices]
        else:
            self.num_rows = len(rows)
            indices, lines = np.arange(len(rows)), None

        def raw(index: int) -> tuple[int, bytes]:
            line = index if lines is None else lines[index]
            return self._first_line + line, self._split()[line]

        batch = Batch(rows, pa.array(first_row + indices), self._bad)
        return split_valid(batch, self._options.text_column, raw)

    def _split(self) -> list[bytes]:
        if self._lines is None:
            self._lines = self._block.split(b"\n")
        return self._lines

    def _whole(self) -> Table | None:
        """All rows, if all lines are good and none is empty."""
        if not self._has_plain_lines():
            return None
        try:
            rows = _parse(self._block, self._schema)
        except ValueError:  # ArrowInvalid
            return None
        return rows if len(rows) == len(self._ends) else None

    def _has_plain_lines(self) -> bool:
        """Whether each line begins with "{" and ends with "}".

        Then no object goes on in the next line, so that as many rows as lines are one object in each line.
        """
        data = np.frombuffer(self._block, np.uint8)
        last = self._ends - 1
        if self._block.find(b"\r") >= 0:
            last = last - (data[last] == ord("\r"))
        firsts = np.append(0, self._ends[:-1] + 1)
        return bool((data[firsts] == ord("{")).all() and (data[last] == ord("}")).all())

    def _halves(self, start: int, stop: int) -> Iterator[tuple[int, int, Table]]:
        if start == stop:
            return
        lines = [line for _, line in self._numbered[start:stop]]
        try:
            if any(map(NULL.match, lines)):
                raise ValueError("null")
            if len(lines) > 1 and not all(line[:1] == b"{" and line[-1:] == b"}" for line in map(bytes.strip, lines)):
                raise ValueError("a line that is no object, or more than one line of it")
            rows = _parse(b"\n".join(lines), self._schema)
            if len(rows) == stop - start:
                yield start, stop, rows
                return
            why = "more than one JSON value"
        except ValueError as e:  # ArrowInvalid
            why = str(e).removeprefix("JSON parse error: ")
        if stop - start == 1:
            number, line = self._numbered[start]
            if _widened(self._schema, line, self._options) is not None:
                raise ColumnsChanged
            self._bad.append(BadRow(self._first_line + number, _reason(line, why), line))
            return
        middle = (start + stop) // 2
        yield from self._halves(start, middle)
        yield from self._halves(middle, stop)


def _parse(block: bytes, schema: Schema) -> Table:
    from pyarrow import json as arrow_json

    return arrow_json.read_json(
        io.BytesIO(block),
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=arrow_json.ParseOptions(
            explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="error"
        ),
    )


def _reason(line: bytes, why: str) -> str:
    """Why a line is bad."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError as e:
        return f"byte 0x{line[e.start]:02x} is not UTF-8"
    except (ValueError, RecursionError) as e:
        return f"not JSON: {e}"
    return why.removesuffix(" in row 0") if isinstance(value, dict) else "not a JSON object"


def _widened(schema: Schema, line: bytes, options: ReadOptions) -> Schema | None:
    """The columns with those that a good line adds or widens; None if it changes nothing or is bad."""
    import pyarrow as pa

    try:
        record = json.loads(line) if line.strip() else None
        if not isinstance(record, dict):
            return None
        found = pa.schema([(name, _type_of(value)) for name, value in record.items()])
        if options.text_column in record:
            index = found.get_field_index(options.text_column)
            if found.types[index] not in (pa.string(), pa.null()):
                return None
            found = found.set(index, pa.field(options.text_column, pa.string()))
        wider = joined(schema, found)
    except (ValueError, TypeError, RecursionError):
        return None
    return None if wider.equals(schema) else wider


def _type_of(value: Any, depth: int = 0) -> Any:
    """The Arrow type of a JSON value. Raises ArrowTypeError if a list holds values of several kinds."""
    import pyarrow as pa

    if depth > DEEPEST:
        raise RecursionError
    match value:
        case None:
            return pa.null()
        case bool():
            return pa.bool_()
        case int():
            return pa.int64() if -(2**63) <= value < 2**63 else pa.float64()
        case float():
            return pa.float64()
        case str():
            return pa.string()
        case list():
            item = pa.schema([("item", pa.null())])
            for each in value:
                item = joined(item, pa.schema([("item", _type_of(each, depth + 1))]))
            return pa.list_(item.types[0])
    return pa.struct([(name, _type_of(each, depth + 1)) for name, each in value.items()])
