"""Tables on terminals: whole rows, or a line for each cell."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from aifx.commands.console.output import Output

COLUMNS = ("checkpoint", "saved", "validation", "bits_per_byte", "size", "")
ROWS = [("300", "56 s ago", "5.6840", "6.9056", "214.0 kB", "best"), ("200", "3 min ago", "5.7", "7.0", "214.0 kB", "")]


def printed(width: int, columns: Sequence[str], rows: Sequence[Sequence[str]], *, is_dense: bool = False) -> list[str]:
    out = Output(json=False)
    out.out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    out.table(columns, rows, is_dense=is_dense)
    text = out.out.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.parametrize("width", [64, 80])
def test_a_table_that_fits_has_a_line_per_row(width: int) -> None:
    header, *rows = printed(width, COLUMNS, ROWS)
    assert header.split() == [name for name in COLUMNS if name]
    assert [row.split()[0] for row in rows] == ["300", "200"]


def test_a_narrow_terminal_gets_a_line_per_cell() -> None:
    lines = printed(63, COLUMNS, ROWS)
    assert lines[:3] == ["checkpoint       300", "  saved          56 s ago", "  validation     5.6840"]
    assert [line.strip() for line in lines if "best" in line] == ["best"]
    assert len(lines) == 11  # a cell that is empty has none
    assert max(map(len, lines)) <= 63


def test_a_dense_table_has_its_last_column_below_the_others() -> None:
    lines = printed(63, COLUMNS, ROWS, is_dense=True)
    assert [line.split()[0] for line in lines if line.split()] == ["checkpoint", "300", "best", "200"]
    assert max(map(len, lines)) <= 63
    assert printed(80, COLUMNS, ROWS, is_dense=True) == printed(80, COLUMNS, ROWS)


def test_long_texts_are_folded_in_their_column() -> None:
    header, *rows = printed(60, ("name", "text"), [("a", "word " * 30)])
    assert header.split() == ["name", "text"]
    assert len(rows) == 3
