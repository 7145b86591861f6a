"""The live panel on a terminal: one frame, whatever the terminal does between two pictures."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console
from rich.panel import Panel

from aifx.commands.console.live import LiveDisplay

CONTROL = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])")


class Terminal(io.StringIO):
    """A terminal that wraps behind its last column, as late as real ones do, and re-wraps lines when it is narrowed."""

    encoding = "utf-8"  # type: ignore[assignment]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.rows, self.row, self.column = width, [""], 0, 0

    def write(self, text: str) -> int:
        at = 0
        while at < len(text):
            if match := CONTROL.match(text, at):
                self._control(match[1], match[2])
                at = match.end()
            else:
                self._put(text[at])
                at += 1
        return len(text)

    def _control(self, arguments: str, kind: str) -> None:
        if kind == "A":
            self.row = max(0, self.row - int(arguments or 1))
        elif kind == "K":
            self.rows[self.row] = ""
        else:
            assert arguments.startswith("?") or kind == "m", (arguments, kind)

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self._next_row()
        else:
            if self.column == self.width:
                self._next_row()
            row = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = row[: self.column] + character + row[self.column + 1 :]
            self.column += 1

    def _next_row(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append("")

    def narrow(self, width: int) -> None:
        self.width = width
        wrapped = [[row[i : i + width] for i in range(0, max(len(row), 1), width)] for row in self.rows]
        self.row = sum(map(len, wrapped[: self.row]))
        self.rows = [part for parts in wrapped for part in parts]

    @property
    def frames(self) -> tuple[int, int]:
        """Count the visible upper and lower borders."""
        text = "\n".join(self.rows)
        return text.count("╭"), text.count("╰")


@pytest.fixture
def terminal() -> Terminal:
    return Terminal(80)


def display(terminal: Terminal) -> LiveDisplay:
    class Sized(Console):
        @property
        def width(self) -> int:
            return terminal.width

        @width.setter
        def width(self, width: int) -> None:
            raise AssertionError

    console = Sized(file=terminal, force_terminal=True, color_system=None, force_interactive=True, legacy_windows=False)
    return LiveDisplay(console, lambda: Panel("a line\nanother", width=min(console.width, 100)))


def test_an_echoed_control_c_leaves_no_second_border(terminal: Terminal) -> None:
    live = display(terminal)
    live.start()
    for _ in range(3):
        live.refresh()
        terminal.write("^C")
    live.console.print("saving")
    live.stop()
    assert terminal.frames == (1, 1)
    assert terminal.rows[0].strip() == "saving"
    assert terminal.rows[-1] == ""
    assert terminal.rows[-2].startswith("╰"), "the frame stays without an empty line below it"


def test_a_narrower_terminal_leaves_no_second_border(terminal: Terminal) -> None:
    live = display(terminal)
    live.start()
    live.refresh()
    for width in (50, 120, 30, 10):
        terminal.narrow(width)
        live.refresh()
        assert terminal.frames == (1, 1), width
    live.stop()
    assert terminal.frames == (1, 1)
