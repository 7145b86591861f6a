"""CSV: the first row names the columns, and each value is a number or a text.

pyarrow splits the file into values of bytes; a column whose values all are whole numbers becomes int64, one of other
numbers double, and any other a string. A number is only what is written as JSON writes it, so that "007" stays text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from aifx.data.readers.base import SAMPLE_BYTES, BadRow, Batch, ColumnsChanged, DamagedFile, ReadOptions, split_valid
from aifx.data.readers.csv_rows import CsvText, NotCsv, csv_rows
from aifx.data.readers.lines import line_blocks
from aifx.data.readers.streams import MARKS, Begun, Ended, Marking, open_utf8, unmarked

if TYPE_CHECKING:
    from pyarrow import DataType, Schema, Table

BLOCK_BYTES = 8 << 20
"""That are parsed at a time. A row must fit into them."""

WHOLE = r"^(?:0|-?[1-9][0-9]{0,17})$"
NUMBER = r"^-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?$"
"""Of 18 digits at most, so that an identifier of more digits stays text."""


def find_schema(path: str, compression: str, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The columns of a file, with the types of all of its values or of those at its beginning."""
    import pyarrow as pa

    block_bytes = BLOCK_BYTES if is_whole else SAMPLE_BYTES
    with _Rows(path, compression, options, block_bytes) as rows, suppress(DamagedFile):
        types = {name: pa.null() for name in rows.names}
        for index, table in enumerate(rows):
            for name in rows.names:
                column = table.column(name)
                if index == 0:
                    types[name] = _type_of(column)
                else:
                    types[name] = next(kind for kind in _wider(types[name]) if _converted(column, kind) is not None)
            if not is_whole:
                break
    if options.text_column in types:
        types[options.text_column] = pa.string()
    return pa.schema(list(types.items()))


def read(path: str, compression: str, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The rows of a file. Raises ColumnsChanged if a value is not of the type of its column."""
    import pyarrow as pa

    damage: DamagedFile | None = None
    with _Rows(path, compression, options, BLOCK_BYTES) as rows:
        try:
            for table in rows:
                columns = []
                for field in schema:
                    column = _converted(table.column(field.name), field.type)
                    if column is None:
                        raise ColumnsChanged
                    columns.append(column)
                batch = Batch(pa.table(columns, schema=schema), pa.array(rows.numbers), rows.take_bad())
                yield split_valid(batch, options.text_column, rows.raw(table), rows.undecodable(table))
        except DamagedFile as found:
            damage = found
        if bad := rows.take_bad(is_end=True):
            yield Batch(schema.empty_table(), pa.array([], pa.int64()), bad)
    if damage is not None:
        raise damage


class _Rows:
    """The rows of a file as tables of binary columns, without its header, empty lines and rows of other lengths.

    Attributes:
        names: of the columns.
        numbers: of the rows of the last table, from 0 after the header.
    """

    def __init__(self, path: str, compression: str, options: ReadOptions, block_bytes: int) -> None:
        self._delimiter = "\t" if path.lower().removesuffix(compression).endswith(".tsv") else ","
        self._open = partial(open_utf8, path, compression, options)
        self._opening = self._open()
        self._block_bytes = block_bytes
        self._bad: list[Any] = []  # InvalidRow, of rows that no table was after yet
        self._next, self._embedded = 0, 0  # the next row's number, and line ends within the values before it
        self._lines: list[BadRow] = []

    def __enter__(self) -> _Rows:
        stream = self._opening.__enter__()
        begun = b""
        try:
            while data := stream.read(SAMPLE_BYTES - len(begun)):
                begun += data
        except DamagedFile:
            if not begun:
                raise
        rows = csv_rows(io.StringIO(begun.decode(errors="replace"), newline=""), self._delimiter)
        try:
            header = next((cells for _, cells in rows if cells), [])
        except NotCsv as e:
            raise DamagedFile(f"its first row cannot be read: {e}", e.line) from None
        twice = sorted({name for name in header if header.count(name) > 1})
        if twice:
            raise DamagedFile(f"its first row names {twice[0]!r} twice")
        self.names = header
        first = len(begun) - len(begun.lstrip(b"\r\n"))  # of the header, behind empty lines
        self._embedded = begun.count(b"\n", 0, first) + sum(name.count("\n") for name in header)
        self._stream = Marking(Begun(stream, begun[first:]))
        return self

    def __exit__(self, *error: Any) -> None:
        self._opening.__exit__(*error)

    def __iter__(self) -> Iterator[Table]:
        import pyarrow as pa

        if not self.names:
            return
        last: Any = None
        is_whole = is_large = False
        try:
            for rows in self._parsed():
                if last is not None:
                    yield self._numbered(last)
                last = pa.Table.from_batches([rows.slice(1) if last is None else rows])
            last, is_whole = self._without_end(last)
        except pa.ArrowInvalid:  # a row does not fit into a block
            is_large = True
        if last is not None:
            yield self._numbered(last)
        if self._stream.damage is not None:
            raise self._stream.damage
        if not is_whole:
            raise self._unended(is_large)

    def _without_end(self, table: Table) -> tuple[Table, bool]:
        """The last table without the row behind the end of the file, and whether that is a row of its own.

        The row has no value. In a quote that does not end, its bytes are a part of the last row, which then goes
        instead. So does the last row if damage cuts it.
        """
        rows = len(table) + len(self._bad)
        is_bad = bool(self._bad) and self._bad[-1].number - 2 == self._next + rows - 1
        is_own = not is_bad and not any(len(column[-1].as_py()) for column in table.columns)
        end = self._next + rows - (2 if is_own and self._stream.damage and self._stream.is_within_line else 1)
        self._bad = [row for row in self._bad if row.number - 2 < end]
        return table.slice(0, end - self._next - len(self._bad)), is_own

    def _unended(self, is_large: bool) -> DamagedFile:
        """The damage if the row after the last does not end, or not within a block: with the line of its quote."""
        number = self._bad[-1].number - 1 if self._bad else self._next
        line = 2 + number + self._embedded + sum(row.text.count("\n") for row in self._bad)
        seen, row = 1, b""
        with self._open() as stream, suppress(DamagedFile):
            for block in line_blocks(stream):
                after = seen + block.count(b"\n")
                if after >= line:
                    row += b"".join(islice(io.BytesIO(block), max(line - seen, 0), None))
                seen = after
                if len(row) > self._block_bytes:
                    break
        within = f" within {self._block_bytes >> 20} MiB" if is_large else ""
        try:
            next(csv_rows(io.StringIO(row.decode(errors="replace"), newline=""), self._delimiter), None)
        except NotCsv as e:
            return DamagedFile(f"{e}{within}", line + e.line - 1)
        return DamagedFile(f"the row that begins on this line does not end{within}", line)

    def _parsed(self) -> Iterator[Any]:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv

        def skip(row: Any) -> str:
            self._bad.append(row)
            return "skip"

        yield from arrow_csv.open_csv(
            pa.PythonFile(Ended(self._stream, f"\n{self._delimiter * (len(self.names) - 1)}\n".encode()), "r"),
            read_options=arrow_csv.ReadOptions(
                use_threads=False, block_size=self._block_bytes, column_names=[str(n) for n in range(len(self.names))]
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=self._delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=skip
            ),
            convert_options=arrow_csv.ConvertOptions(
                check_utf8=False,
                column_types={str(n): pa.binary() for n in range(len(self.names))},
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        )

    def _numbered(self, table: Table) -> Table:
        """Number the rows of a table, leave out its empty rows, and find the lines of the bad rows before its end."""
        import numpy as np
        from pyarrow import compute as pc

        table = table.rename_columns(self.names)
        bad = np.array([row.number - 2 for row in self._bad], np.int64)
        numbers = np.setdiff1d(np.arange(self._next, self._next + len(table) + len(bad)), bad)[: len(table)]
        embedded = np.zeros(len(table), np.int64)
        filled = np.zeros(len(table), bool)
        for column in table.columns:
            embedded += pc.count_substring(column, "\n").to_numpy()
            filled |= pc.greater(pc.binary_length(column), 0).to_numpy()
        self._line_numbers = 2 + numbers + self._embedded + np.cumsum(embedded) - embedded
        end = int(numbers[-1]) + 1 if len(numbers) else self._next
        while self._bad and self._bad[0].number - 2 < end:
            row = self._bad.pop(0)
            before = int(embedded[numbers < row.number - 2].sum())
            self._add_bad(row, self._embedded + before)
            more = row.text.count("\n")
            self._embedded += more
            self._line_numbers[numbers > row.number - 2] += more
        self._next = end
        self._embedded += int(embedded.sum())
        self.numbers = numbers[filled]
        self._line_numbers = self._line_numbers[filled]
        return table if filled.all() else table.filter(filled)

    def _add_bad(self, row: Any, embedded: int) -> None:
        if row.text.strip():
            reason = f"{row.actual_columns} values instead of {row.expected_columns}"
            self._lines.append(BadRow(row.number + embedded, reason, unmarked(row.text)))

    def take_bad(self, *, is_end: bool = False) -> list[BadRow]:
        """The bad rows before the end of the last table, or of the file."""
        while is_end and self._bad:
            row = self._bad.pop(0)
            self._add_bad(row, self._embedded)
            self._embedded += row.text.count("\n")
        found, self._lines = self._lines, []
        return found

    def undecodable(self, table: Table) -> dict[int, str]:
        """Why rows are bad that have bytes that are not UTF-8."""
        from pyarrow import compute as pc

        if not self._stream.has_marks:
            return {}
        return {
            index: f"column {name!r} is not UTF-8"
            for name, column in zip(table.column_names, table.columns, strict=True)
            for index in pc.indices_nonzero(pc.match_substring_regex(column, MARKS)).to_pylist()
        }

    def raw(self, table: Table) -> Any:
        """A function that gives line and bytes of a row of `table`."""
        lines = self._line_numbers

        def row(index: int) -> tuple[int, bytes]:
            text = CsvText()
            values = [column[index].as_py().decode() for column in table.columns]
            csv.writer(text, delimiter=self._delimiter).writerow(values)
            return int(lines[index]), unmarked(text.getvalue().removesuffix("\n"))

        return row


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
