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
from functools import cache, partial
from string import whitespace
from typing import Any

import numpy as np

from aifx.core.errors import DataError
from aifx.core.parsing import parse_json
from aifx.data.readers.arrow import arrow_json, pa
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
from aifx.data.readers.sources import SourceFile
from aifx.data.readers.streams import line_blocks, open_utf8

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


def find_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> pa.Schema:
    """The columns of a file: of all of it, or of its beginning."""
    with open_utf8(file, options) as stream:
        blocks = line_blocks(stream, BLOCK_BYTES if is_whole else SAMPLE_BYTES)
        return schema_of(blocks, options, is_whole=is_whole)


def schema_of(blocks: Iterator[bytes], options: ReadOptions, *, is_whole: bool) -> pa.Schema:
    """The columns of blocks of lines: of all of them, or of the first."""
    schema = pa.schema([])
    try:
        for block in blocks:
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


def read(file: SourceFile, schema: pa.Schema, options: ReadOptions) -> Iterator[Batch]:
    """The rows of a file. Raises ColumnsChanged if a row has more columns or wider types than `schema`."""
    first_row, first_line = 0, 1
    with open_utf8(file, options) as stream:
        for block in line_blocks(stream):
            batch, num_rows, num_lines = block_batch(block, schema, options, first_row, first_line)
            yield batch
            first_row += num_rows
            first_line += num_lines


def block_batch(
    block: bytes, schema: pa.Schema, options: ReadOptions, first_row: int, first_line: int
) -> tuple[Batch, int, int]:
    """The rows of a block of lines, with the number of its rows, bad ones included, and of its line ends."""
    split = cache(partial(block.split, b"\n"))
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    line_ends = ends if block.endswith(b"\n") else np.append(ends, len(block))
    bad: list[BadRow] = []
    if (rows := _parse_whole(block, line_ends, schema)) is not None:
        lines = indices = np.arange(len(rows))
        num_rows = len(rows)
    else:
        lines = np.array([number for number, line in enumerate(split()) if line.strip()], np.int64)
        num_rows = len(lines)
        rows, indices = _parse_lines(split(), lines, schema, options, first_line, bad)
        lines = lines[indices]

    def raw(index: int) -> tuple[int, bytes]:
        return first_line + int(lines[index]), split()[lines[index]]

    batch = Batch(rows, pa.array(first_row + indices), bad)
    return split_valid(batch, options.text_column, raw), num_rows, len(ends)


def _parse_whole(block: bytes, line_ends: np.ndarray, schema: pa.Schema) -> pa.Table | None:
    """All rows of a block; None if a line of it is bad or empty.

    Each line must begin with "{" and end with "}". Then no object goes on in the next line, so that as many rows as
    lines are one object in each line.
    """
    data = np.frombuffer(block, np.uint8)
    last = line_ends - 1
    if b"\r" in block:
        last = last - (data[last] == ord("\r"))
    firsts = np.append(0, line_ends[:-1] + 1)
    if (data[firsts] != ord("{")).any() or (data[last] != ord("}")).any():
        return None
    try:
        rows = _parse(block, schema)
    except ValueError:  # ArrowInvalid
        return None
    return rows if len(rows) == len(line_ends) else None


def _parse_lines(
    lines: list[bytes], numbers: np.ndarray, schema: pa.Schema, options: ReadOptions, first_line: int, bad: list[BadRow]
) -> tuple[pa.Table, np.ndarray]:
    """The good rows of the lines with these `numbers` and their indices in `numbers`; the others are added to `bad`.

    pyarrow names no line when it refuses some. So they are parsed in one call, then each half of those that it refused,
    and so on: `k` bad lines of `n` take about `k * log2(n)` calls.
    """
    good: list[np.ndarray] = []
    tables = [schema.empty_table()]
    waiting = [(0, len(numbers))] if len(numbers) else []
    while waiting:
        start, stop = waiting.pop()
        part = [lines[number] for number in numbers[start:stop]]
        try:
            if any(map(NULL.match, part)):
                raise ValueError("null")
            if len(part) > 1 and not all(line[:1] == b"{" and line[-1:] == b"}" for line in map(bytes.strip, part)):
                raise ValueError("a line that is no object, or more than one line of it")
            rows = _parse(b"\n".join(part), schema)
            if len(rows) != len(part):
                raise ValueError("more than one JSON value")
        except ValueError as e:  # ArrowInvalid
            if len(part) > 1:
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]
                continue
            if _widened(schema, part[0], options) is not None:
                raise ColumnsChanged from None
            reason = _reason(part[0], str(e).removeprefix("JSON parse error: "))
            bad.append(BadRow(first_line + int(numbers[start]), reason, part[0]))
        else:
            tables.append(rows)
            good.append(np.arange(start, stop))
    return pa.concat_tables(tables), np.concatenate([np.zeros(0, np.int64), *good])


def _parse(block: bytes, schema: pa.Schema) -> pa.Table:
    return arrow_json.read_json(
        io.BytesIO(block),
        read_options=arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=arrow_json.ParseOptions(
            explicit_schema=schema, newlines_in_values=False, unexpected_field_behavior="error"
        ),
    )


def _reason(line: bytes, why: str) -> str:
    """The reason why a line is bad."""
    try:
        value = json.loads(line)
    except UnicodeDecodeError as e:
        return f"byte 0x{line[e.start]:02x} is not UTF-8"
    except (ValueError, RecursionError) as e:
        return f"not JSON: {e}"
    return why.removesuffix(" in row 0") if isinstance(value, dict) else "not a JSON object"


def _widened(schema: pa.Schema, line: bytes, options: ReadOptions) -> pa.Schema | None:
    """The columns with those that a good line adds or widens; None if it changes nothing or is bad."""
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
