"""CSV: the first row names the columns.

`csv_rows` splits lines into rows with Python's module. For `aifx data add`, pyarrow splits blocks of rows whose quotes
are only where values begin and end, so that both agree; `csv_rows` splits the other blocks. A value is a number or a
text: a column whose values all are whole numbers becomes int64, one of other numbers double, and any other a string. A
number is only what is written as JSON writes it, so that "007" stays text.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from aifx.data.readers.arrow import arrow_csv, pa, pc
from aifx.data.readers.base import SAMPLE_BYTES, BadRow, Batch, ColumnsChanged, DamagedFile, ReadOptions, split_valid
from aifx.data.readers.sources import SourceFile
from aifx.data.readers.streams import line_blocks, open_utf8

csv.field_size_limit(2**31 - 1)  # Python's own limit of 131,072 characters is less than a document

BLOCK_BYTES = 8 << 20
"""That are parsed at a time."""

QUOTE_CHARACTERS = 1 << 26
"""After which a quote counts as one that does not end: the rest of a file may be larger than the memory."""

WHOLE = r"^(?:0|-?[1-9][0-9]{0,17})$"
NUMBER = r"^-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$"
"""Numbers of 18 digits at most, so that an identifier of more digits stays text."""


class NotCsv(ValueError):
    """Text that is not CSV.

    Attributes:
        line: at fault, from 1: that of the quote, if one does not end.
    """

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


class CsvRow(NamedTuple):
    """A row that is not empty.

    Attributes:
        line: on which it begins, from 1.
        text: its lines.
    """

    line: int
    cells: list[str]
    text: str


def delimiter_of(text: str) -> str:
    """The separator of the values of a first line: commas, or semicolons or tabs if it has no comma."""
    first = text.lstrip("\r\n").partition("\n")[0]
    return next((mark for mark in ",;\t" if mark in first), ",")


def csv_rows(lines: Iterable[str], delimiter: str = "", *, strict: bool = False) -> Iterator[CsvRow]:
    """The rows of lines, without empty ones.

    Args:
        lines: with their ends.
        delimiter: by default that of the first row.
        strict: whether text behind a quote that has ended is an error.

    Raises NotCsv.
    """
    row: list[str] = []  # the lines of the row that is being read
    size = 0  # of them, in characters
    has_ended = False
    given = iter(lines)
    begin: list[str] = []
    for line in given if not delimiter else ():
        begin.append(line)
        if line.strip("\r\n"):
            break
    delimiter = delimiter or delimiter_of("".join(begin))

    def noted() -> Iterator[str]:
        nonlocal size, has_ended
        for line in chain(begin, given):
            row.append(line)
            size += len(line)
            yield line
            if size > QUOTE_CHARACTERS:  # and the reader asks for more of the row
                break
        has_ended = True

    reader = csv.reader(noted(), delimiter=delimiter, strict=strict)
    while True:
        first = reader.line_num + 1
        row.clear()
        size = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if not has_ended:
                where = f" in the row that begins on line {first}" if first < reader.line_num else ""
                raise NotCsv(reader.line_num, f"{error}{where}") from None
            cells = next(csv.reader(row, delimiter=delimiter))
        if has_ended:  # the reader asked for more, so it is within a quote: that of the last cell
            at = first + sum(cell.count("\n") for cell in cells[:-1])
            within = f" within {QUOTE_CHARACTERS:,} characters" if size > QUOTE_CHARACTERS else ""
            raise NotCsv(at, f"the quote that begins on this line does not end{within}")
        if cells:
            yield CsvRow(first, cells, "".join(row))


def find_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> pa.Schema:
    """The columns of a file, with the types of all of its values or of those at its beginning."""
    order = [pa.null(), pa.int64(), pa.float64(), pa.string()]
    with open_utf8(file, options) as stream:
        rows = _Rows(stream, file, BLOCK_BYTES if is_whole else SAMPLE_BYTES)
        types = dict.fromkeys(rows.names, order[0])
        with suppress(DamagedFile):
            for index, part in enumerate(rows):
                for name in rows.names:
                    column = part.table.column(name)
                    wider = order[order.index(types[name]) :]
                    fitting = (kind for kind in wider if _converted(column, kind) is not None)
                    types[name] = next(fitting) if index else _type_of(column)
                if not is_whole:
                    break
    if options.text_column in types:
        types[options.text_column] = pa.string()
    return pa.schema(list(types.items()))


def read(file: SourceFile, schema: pa.Schema, options: ReadOptions) -> Iterator[Batch]:
    """The rows of a file. Raises ColumnsChanged if a value is not of the type of its column."""
    with open_utf8(file, options) as stream:
        for part in _Rows(stream, file, BLOCK_BYTES):
            columns = [_converted(part.table.column(field.name), field.type) for field in schema]
            if any(column is None for column in columns):
                raise ColumnsChanged
            batch = Batch(pa.table(columns, schema=schema), pa.array(part.numbers), part.bad)
            yield split_valid(batch, options.text_column, part.raw)


class _Part(NamedTuple):
    """Rows as bytes, in the columns of the header, and the bad rows between them.

    Attributes:
        numbers: of the rows, from 0.
        raw: gives the line and the bytes of the row with an index in the table.
    """

    table: pa.Table
    numbers: np.ndarray
    raw: Callable[[int], tuple[int, bytes]]
    bad: Sequence[BadRow] = ()

    def with_values(self) -> _Part:
        """Without the rows of which all values are empty."""
        filled = np.zeros(len(self.table), bool)
        for column in self.table.columns:
            filled |= pc.greater(pc.binary_length(column), 0).to_numpy()
        if filled.all():
            return self
        kept, raw = np.flatnonzero(filled), self.raw
        return _Part(self.table.take(kept), self.numbers[kept], lambda index: raw(kept[index]), self.bad)


class _Lines:
    """The lines of blocks as text, with a lone surrogate in place of each byte that is not UTF-8.

    Attributes:
        number: of the last one, from 1.
        is_in_first: whether the first block has more.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks, self._text = blocks, io.StringIO()
        self.number, self.is_in_first = 0, True

    def __iter__(self) -> Iterator[str]:
        for nth, block in enumerate(self._blocks):
            text = block.decode("utf-8", "surrogateescape")
            self._text = io.StringIO(text, newline="")
            for line in self._text:
                self.number += 1
                self.is_in_first = nth == 0 and self._text.tell() < len(text)
                yield line

    def rest(self) -> bytes:
        """The bytes of the lines of the block that were not taken."""
        return self._text.read().encode("utf-8", "surrogateescape")


# How blocks are split into rows. A block ends after a line, and that may be within quotes (RFC 4180, 2.6). If each
# quote is where a value begins or ends, a place is within quotes if the number of quotes before it is odd: a doubled
# quote (RFC 4180, 2.7) ends a value and begins the next. Then the whole rows of a block end at its last line feed that
# is not within quotes. pyarrow parses them, and the rest goes before the next block. Any other block goes to
# `csv_rows`, line by line: one with a quote within a value, a carriage return without line feed, or a row with another
# number of values. It reads on into the next blocks until the row that began last in the first one ends, and what
# follows that row is the rest. Line and row numbers continue over blocks, with either parser.
class _Rows:
    """The rows of a file below its header, a block at a time. Iterating raises DamagedFile after the rows before it.

    Attributes:
        names: of the columns.
    """

    def __init__(self, stream: Any, file: SourceFile, block_bytes: int) -> None:
        delimiter = "\t" if file.suffix == ".tsv" else ""
        self._blocks = line_blocks(stream, block_bytes)
        self._damage: DamagedFile | None = None
        lines = _Lines(self._blocks)
        try:
            header = next(csv_rows(lines, delimiter), CsvRow(1, [], ""))
        except NotCsv as e:
            raise DamagedFile(f"its first row cannot be read: {e}", e.line) from None
        self.names = [name.encode("utf-8", "surrogateescape").decode(errors="replace") for name in header.cells]
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise DamagedFile(f"its first row names {twice[0]!r} twice")
        self._delimiter = delimiter or delimiter_of(header.text)
        self._rest = lines.rest()
        self._line, self._number = lines.number + 1, 0  # of the next row

    def __iter__(self) -> Iterator[_Part]:
        while self.names and self._damage is None:
            try:
                block = self._rest + next(self._blocks, b"")
            except DamagedFile as e:
                self._damage, block = e, self._rest
            if not block:
                break
            yield (self._parsed(block) or self._split(block)).with_values()
        if self._damage is not None:
            raise self._damage

    def _parsed(self, block: bytes) -> _Part | None:
        """The whole rows of a block by pyarrow; None unless its quotes are where values begin and end."""
        quotes = _quotes(block, ord(self._delimiter))
        # pyarrow takes a byte order mark away from the beginning of what it reads.
        has_lone_return = b"\r" in block and block.count(b"\r") != block.count(b"\r\n")
        if quotes is None or has_lone_return or block.startswith(codecs.BOM_UTF8):
            return None
        end = _end_of_rows(block, quotes)
        try:
            table = arrow_csv.read_csv(
                pa.BufferReader(pa.py_buffer(block).slice(0, end)),
                read_options=arrow_csv.ReadOptions(use_threads=False, block_size=end + 1, column_names=self.names),
                parse_options=arrow_csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    check_utf8=False,
                    column_types=dict.fromkeys(self.names, pa.binary()),
                    strings_can_be_null=False,
                    quoted_strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid:  # no row, or one of another length
            return None
        line = self._line
        numbers = np.arange(self._number, self._number + len(table))
        self._rest = block[end:]
        self._line += block.count(b"\n", 0, end)
        self._number += len(table)

        @cache
        def rows() -> list[CsvRow]:  # if one of them is bad
            return list(csv_rows(_Lines([block[:end]]), self._delimiter))

        return _Part(table, numbers, lambda index: _raw(rows()[index], line))

    def _split(self, block: bytes) -> _Part:
        """The rows that begin in a block, of which the last may end further on, by `csv_rows`."""
        rows: list[CsvRow] = []
        numbers, bad = [], []
        line = self._line
        lines = _Lines(chain([block], self._blocks))

        try:
            for row in csv_rows(lines, self._delimiter):
                if len(row.cells) == len(self.names):
                    rows.append(row)
                    numbers.append(self._number)
                elif row.text.strip():
                    at, text = _raw(row, line)
                    bad.append(BadRow(at, f"{len(row.cells)} values instead of {len(self.names)}", text))
                self._number += 1
                if not lines.is_in_first:
                    break
        except NotCsv as e:
            self._damage = self._damage or DamagedFile(str(e), line + e.line - 1)
        except DamagedFile as e:
            self._damage = e
        self._rest = lines.rest()
        self._line += lines.number
        columns = {
            name: pa.array([row.cells[index].encode("utf-8", "surrogateescape") for row in rows], pa.binary())
            for index, name in enumerate(self.names)
        }
        return _Part(pa.table(columns), np.array(numbers, np.int64), lambda index: _raw(rows[index], line), bad)


LINE_FEED, RETURN, QUOTE = b'\n\r"'


def _quotes(block: bytes, delimiter: int) -> np.ndarray | None:
    """The places of the quotes in bytes that begin with a row; None if one is not where a value begins or ends."""
    data = np.frombuffer(block, np.uint8)
    quotes = np.flatnonzero(data == QUOTE)
    opening, closing = quotes[::2], quotes[1::2]  # two within a value end one and begin the next
    around = np.zeros(256, bool)
    around[[LINE_FEED, RETURN, QUOTE, delimiter]] = True
    before, after = opening[opening > 0] - 1, closing[closing + 1 < len(data)] + 1
    return quotes if around[data[before]].all() and around[data[after]].all() else None


def _end_of_rows(block: bytes, quotes: np.ndarray) -> int:
    """Where the last whole row of a block ends: that before a quote that is open at the end, if there is one."""
    if len(quotes) % 2 == 0:
        return len(block)
    for opening in range(len(quotes) - 1, -1, -2):
        start = int(quotes[opening - 1]) if opening else 0  # where the value before it ends
        if (at := block.rfind(b"\n", start, int(quotes[opening]))) >= 0:
            return at + 1
    return 0


def _raw(row: CsvRow, first: int) -> tuple[int, bytes]:
    """The line and the bytes of a row of text that begins on the line `first`."""
    text = row.text.encode("utf-8", "surrogateescape")
    return first + row.line - 1, text.removesuffix(b"\n").removesuffix(b"\r")


def _type_of(column: Any) -> pa.DataType:
    values = column.filter(pc.greater(pc.binary_length(column), 0))
    if not len(values):
        return pa.null()
    for pattern, kind in ((WHOLE, pa.int64()), (NUMBER, pa.float64())):
        if pc.all(pc.match_substring_regex(values, pattern)).as_py():
            return kind
    return pa.string()


def _converted(column: Any, kind: pa.DataType) -> Any:
    """The values of a binary column in a type; None if one is not of that type. Empty values are null in numbers."""
    text = pa.chunked_array([chunk.view(pa.string()) for chunk in column.chunks], pa.string())
    if pa.types.is_string(kind):
        return text
    size = pc.binary_length(column)
    if pa.types.is_null(kind):
        return pa.nulls(len(column)) if pc.max(size).as_py() in (0, None) else None
    padded = pc.or_(
        pc.and_(pc.starts_with(column, b"0"), pc.greater(size, 1)),
        pc.and_(pc.starts_with(column, b"-0"), pc.greater(size, 1)),
    )
    if pa.types.is_integer(kind):
        is_other = pc.or_(padded, pc.greater(size, 19))
    else:
        is_other = pc.invert(pc.or_(pc.equal(size, 0), pc.match_substring_regex(column, NUMBER)))
    if pc.any(is_other).as_py():
        return None
    try:
        return pc.if_else(pc.equal(size, 0), None, text).cast(kind)
    except ValueError:  # ArrowInvalid
        return None
