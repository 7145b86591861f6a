"""rich consoles that keep to this house's rules; apart from terminal.py because rich takes a while to import."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from aifx.commands.console.writing import ignore_reader, is_colored
from aifx.core.sanitize import escape_controls

WIDTH = 80
"""The widest that prose is set, in columns."""

LEAST_TEXT = 24
INDENT = 10

COMMAND = re.compile("`[^`]+`[,;:.)]*")
GLUE = "\ue000"
"""Stands for a space at which no line is broken; rich breaks at every kind of space."""


class _Console(Console):
    """A console that escapes control characters in text; rich's own segments of control codes pass."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(escape_controls(text), **options)  # before it is measured and folded

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else escape_controls(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)

    def on_broken_pipe(self) -> None:
        """rich would exit 1, a bad verdict. Here the rest goes to nobody and the command ends as it would have."""
        self.quiet = True
        ignore_reader(sys.stderr if self.stderr else sys.stdout)


def fits(console: Console, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> bool:
    """Whether a table has room on a terminal. Only cells of more than `LEAST_TEXT` columns are folded for it."""
    widths = [max(cell_len(row[i]) for row in (columns, *cells)) for i in range(len(columns))]
    return sum(min(width, LEAST_TEXT) + 2 for width in widths) - 2 <= console.width


def records(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> Iterator[tuple[Text, Text]]:
    """The rows of a table for `beside`, with a line for each cell, as a narrow terminal has room for it."""
    width = max(map(cell_len, columns)) + 4
    for row in cells:
        for number, (column, cell) in enumerate(zip(columns, row, strict=True)):
            label = Text(f"  {column}" if number else column, "" if number else "bold")
            label.pad_right(width - label.cell_len)
            if cell:
                yield label, Text(cell)


def make_table(columns: Sequence[str], cells: Sequence[Sequence[str]], *, right: Set[str]) -> Table:
    """A table that folds what does not fit the terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def beside(console: Console, label: Text, text: Text) -> Iterator[Text]:
    """`text` to the right of `label`, folded there: in a pipe as on a terminal, for people read both.

    A command between backticks stays on one line if one line can hold it, to be copied.
    """
    width = max(min(console.width, WIDTH) - label.cell_len, 1)
    text = text.copy()
    text.plain = COMMAND.sub(lambda m: m[0].replace(" ", GLUE) if cell_len(m[0]) < width else m[0], text.plain)
    for number, line in enumerate(text.wrap(console, width, overflow="fold")):
        line.plain = line.plain.replace(GLUE, " ")
        whole = (Text(" " * label.cell_len) if number else label) + line
        whole.rstrip()
        yield whole


def labels_and_texts(
    console: Console, columns: Sequence[str], cells: Sequence[Sequence[str]], *, right: Set[str]
) -> Iterator[tuple[Text, Text]]:
    """The rows of a table for `beside`: the last column is the text. It goes below a label that leaves no room."""
    for number, (*others, last) in enumerate(padded(columns, cells, right)):
        style = "" if number else "bold"
        label, text = Text("  ".join([*others, ""]), style), Text(last.rstrip(), style)
        if label.cell_len > min(console.width, WIDTH) - LEAST_TEXT:
            yield label, Text("")
            if not text.plain:
                continue
            label = Text(" " * INDENT)
        yield label, text


def padded(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Set[str]) -> list[list[str]]:
    """The rows, the columns' names first, each cell as wide as its column."""
    rows = [list(columns), *map(list, cells)]
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(columns))]
    padded = []
    for row in rows:
        spaces = [" " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)]
        both = zip(columns, row, spaces, strict=True)
        padded.append([space + cell if column in right else cell + space for column, cell, space in both])
    return padded


def make_console(*, stderr: bool) -> Console:
    """A console on stdout or stderr without markup, emoji or guessed highlighting; plain unless colour is wanted."""
    system: Literal["auto"] | None = "auto" if is_colored(sys.stderr if stderr else sys.stdout) else None
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False, color_system=system, no_color=not system)
