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
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from aifx.data.readers.base import (
    SAMPLE_BYTES,
    BadRow,
    Batch,
    ColumnsChanged,
    DamagedFile,
    ReadOptions,
    split_valid,
)
from aifx.data.readers.lines import line_blocks
from aifx.data.readers.streams import open_utf8

if TYPE_CHECKING:
    from pyarrow import DataType, Schema, Table

    from aifx.data.readers.sources import SourceFile

csv.field_size_limit(2**31 - 1)  # Python's own limit of 131,072 characters is less than a document

BLOCK_BYTES = 8 << 20
"""That are parsed at a time."""

QUOTE_CHARACTERS = 1 << 26
"""After which a quote counts as one that does not end: the rest of a file may be larger than the memory."""

WHOLE = r"^(?:0|-?[1-9][0-9]{0,17})$"
NUMBER = r"^-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$"
"""Of 18 digits at most, so that an identifier of more digits stays text."""


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
    """What separates the values of a first line: commas, or semicolons or tabs if it has no comma."""
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


def find_schema(file: SourceFile, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The columns of a file, with the types of all of its values or of those at its beginning."""
    import pyarrow as pa

    with _opened(file, options, BLOCK_BYTES if is_whole else SAMPLE_BYTES) as rows, suppress(DamagedFile):
        types = {name: pa.null() for name in rows.names}
        for index, part in enumerate(rows):
            for name in rows.names:
                column = part.table.column(name)
                if index == 0:
                    types[name] = _type_of(column)
                else:
                    types[name] = next(kind for kind in _wider(types[name]) if _converted(column, kind) is not None)
            if not is_whole:
                break
    if options.text_column in types:
        types[options.text_column] = pa.string()
    return pa.schema(list(types.items()))


def read(file: SourceFile, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The rows of a file. Raises ColumnsChanged if a value is not of the type of its column."""
    import pyarrow as pa

    with _opened(file, options, BLOCK_BYTES) as rows:
        for part in rows:
            columns = []
            for field in schema:
                column = _converted(part.table.column(field.name), field.type)
                if column is None:
                    raise ColumnsChanged
                columns.append(column)
            batch = Batch(pa.table(columns, schema=schema), pa.array(part.numbers), part.bad)
            yield split_valid(batch, options.text_column, part.raw)


class _Part(NamedTuple):
    """Rows as bytes, in the columns of the header, and the bad rows between them.

    Attributes:
        numbers: of the rows, from 0.
        raw: gives the line and the bytes of the row with an index in the table.
    """

    table: Table
    numbers: np.ndarray
    raw: Callable[[int], tuple[int, bytes]]
    bad: Sequence[BadRow] = ()

    def with_values(self) -> _Part:
        """Without the rows of which all values are empty."""
        from pyarrow import compute as pc

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

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks, self._text = blocks, io.StringIO()
        self.number = self._end = 0
        self.is_in_first = True

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._text.readline()
        if not line:
            self.is_in_first = not self.number
            text = next(self._blocks).decode("utf-8", "surrogateescape")
            self._text, self._end = io.StringIO(text, newline=""), len(text)
            line = self._text.readline()
        self.number += 1
        self.is_in_first &= self._text.tell() < self._end
        return line

    def rest(self) -> bytes:
        """The bytes of the lines of the block that were not taken."""
        return self._text.read().encode("utf-8", "surrogateescape")


class _Rows:
    """The rows of a file below its header, a block at a time. Iterating raises DamagedFile after the rows before it.

    Attributes:
        names: of the columns.
    """

    def __init__(self, stream: Any, delimiter: str, block_bytes: int) -> None:
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
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        quotes = _quotes(block, ord(self._delimiter))
        # pyarrow takes a byte order mark away from the beginning of what it reads.
        if quotes is None or _has_lone_return(block) or block.startswith(codecs.BOM_UTF8):
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
        def rows() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            """Where each row begins and ends, and its line."""
            data = np.frombuffer(block, np.uint8, end)
            line_ends = np.flatnonzero(data == LINE_FEED) + 1
            ends = line_ends if data[-1] == LINE_FEED else np.append(line_ends, end)
            ends = ends[np.searchsorted(quotes, ends) % 2 == 0]
            starts = np.append(0, ends[:-1])
            is_empty = (data[starts] == LINE_FEED) | ((data[starts] == RETURN) & (ends - starts == 2))
            starts, ends = starts[~is_empty], ends[~is_empty]
            return starts, ends, np.searchsorted(line_ends, starts, "right") + line

        def raw(index: int) -> tuple[int, bytes]:
            start, stop, at = (int(values[index]) for values in rows())
            return at, _without_end(block[start:stop])

        return _Part(table, numbers, raw)

    def _split(self, block: bytes) -> _Part:
        """The rows that begin in a block, of which the last may end further on, by `csv_rows`."""
        import pyarrow as pa

        rows: list[CsvRow] = []
        numbers, bad = [], []
        line = self._line
        lines = _Lines(chain([block], self._blocks))

        def raw(row: CsvRow) -> tuple[int, bytes]:
            return line + row.line - 1, _without_end(row.text.encode("utf-8", "surrogateescape"))

        try:
            for row in csv_rows(lines, self._delimiter):
                if len(row.cells) == len(self.names):
                    rows.append(row)
                    numbers.append(self._number)
                elif row.text.strip():
                    at, text = raw(row)
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
        return _Part(pa.table(columns), np.array(numbers, np.int64), lambda index: raw(rows[index]), bad)


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


def _has_lone_return(block: bytes) -> bool:
    return b"\r" in block and block.count(b"\r") != block.count(b"\r\n")


def _without_end(row: bytes) -> bytes:
    return row.removesuffix(b"\n").removesuffix(b"\r")


@contextmanager
def _opened(file: SourceFile, options: ReadOptions, block_bytes: int) -> Iterator[_Rows]:
    with open_utf8(file, options) as stream:
        yield _Rows(stream, "\t" if file.suffix == ".tsv" else "", block_bytes)


def _type_of(column: Any) -> DataType:
    import pyarrow as pa
    from pyarrow import compute as pc

    values = column.filter(pc.greater(pc.binary_length(column), 0))
    if not len(values):
        return pa.null()
    for pattern, kind in ((WHOLE, pa.int64()), (NUMBER, pa.float64())):
        if pc.all(pc.match_substring_regex(values, pattern)).as_py():
            return kind
    return pa.string()


def _wider(kind: DataType) -> list[DataType]:
    import pyarrow as pa

    order = [pa.null(), pa.int64(), pa.float64(), pa.string()]
    return order[order.index(kind) :]


def _converted(column: Any, kind: DataType) -> Any:
    """The values of a binary column in a type; None if one is not of that type. Empty values are null in numbers."""
    import pyarrow as pa
    from pyarrow import compute as pc

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
