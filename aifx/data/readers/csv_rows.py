"""Rows of CSV by Python's module, with the line of a quote that does not end."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from typing import Any

csv.field_size_limit(2**31 - 1)  # Python's own limit of 131,072 characters is less than a document

QUOTE_CHARACTERS = 1 << 26
"""After which a quote counts as one that does not end: the rest of a file may be larger than the memory."""


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def escape_formula(value: Any) -> Any:
    """A text as a cell that no spreadsheet takes for a formula: with an apostrophe before it, as they write it."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value) else value


def unescape_formula(cell: Any) -> Any:
    """The text that `escape_formula` made a cell of."""
    is_escaped = isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell)
    return cell[1:] if is_escaped else cell


class CsvText(io.StringIO):
    """What `csv.writer` writes rows to, with its own `lineterminator`: each ends with a line feed alone.

    Python 3.11 leaves a carriage return in a value without quotes if the end of a line has none.
    """

    def __init__(self) -> None:
        super().__init__(newline="")

    def write(self, row: str) -> int:
        return super().write(row.removesuffix("\r\n") + "\n")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d+)?", text) is not None


class NotCsv(ValueError):
    """Text that is not CSV.

    Attributes:
        line: at fault, from 1: that of the quote, if one does not end.
    """

    def __init__(self, line: int, why: str) -> None:
        super().__init__(why)
        self.line = line


def csv_rows(lines: Iterable[str], delimiter: str = ",", *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of the line that it ends on, from 1.

    Args:
        lines: with their ends.
        strict: whether text behind a quote that has ended is an error.

    Raises NotCsv.
    """
    row: list[str] = []  # the lines of the row that is being read
    size = 0  # of them, in characters
    has_ended = False

    def noted() -> Iterator[str]:
        nonlocal size, has_ended
        for line in lines:
            row.append(line)
            size += len(line)
            yield line
            if size > QUOTE_CHARACTERS:  # and the reader asks for more of the row
                break
        has_ended = True

    reader = csv.reader(noted(), delimiter=delimiter, strict=strict)
    while True:
        begin = reader.line_num + 1
        row.clear()
        size = 0
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if not has_ended:
                where = f" in the row that begins on line {begin}" if begin < reader.line_num else ""
                raise NotCsv(reader.line_num, f"{error}{where}") from None
            cells = next(csv.reader(row, delimiter=delimiter))
        if has_ended:  # the reader asked for more, so it is within a quote: that of the last cell
            line = begin + sum(cell.count("\n") for cell in cells[:-1])
            within = f" within {QUOTE_CHARACTERS:,} characters" if size > QUOTE_CHARACTERS else ""
            raise NotCsv(line, f"the quote that begins on this line does not end{within}")
        yield reader.line_num, cells
