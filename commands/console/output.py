"""Where a command's answer and its messages go."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from aifx.commands.console.writing import failure_text, ignore_reader, is_colored, is_plain, to_json, write_all
from aifx.core.errors import AifxError, ExitCode
from aifx.core.json_values import plain
from aifx.core.results import SCHEMA_VERSION, Result
from aifx.core.sanitize import escape_controls, one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text


class Output:
    """The output of a command. Control characters are escaped, whatever the source of the text.

    Attributes:
        json: whether stdout carries one JSON document and nothing else.
        stdout: the stream that the command began with.
        exit_code: with which the command ends if nothing fails.
    """

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self._document: str | None = None
        self.stdout = sys.stdout
        self.exit_code = ExitCode.OK

    @functools.cached_property
    def out(self) -> Console:
        """stdout, for people. Text is taken as it is: styles are given as rich objects, not as [markup]."""
        from aifx.commands.console.consoles import make_console

        return make_console(stderr=False)

    @functools.cached_property
    def err(self) -> Console:
        """stderr: progress, panels, messages. It does not raise if the reader has gone."""
        from aifx.commands.console.consoles import make_console

        return make_console(stderr=True)

    @property
    def animated(self) -> bool:
        """Whether stderr is a terminal on which something may move."""
        return self.err.is_terminal and not self.err.is_dumb_terminal

    def result(self, result: Result) -> None:
        """The result of a verb: its document is the answer for programs, its exit code that of the command."""
        self.exit_code = result.exit_code
        if self.json:
            self._answer(result.document())

    def document(self, document: object) -> None:
        """The answer for programs: with --json the one document on stdout, written when the command ends in order.

        Adds `schema_version`; a number that is not finite becomes null. docs/schemas/ has the schema of each document.
        """
        if self.json:
            self._answer({"schema_version": SCHEMA_VERSION, **plain(document)})

    def _answer(self, document: Mapping[str, Any]) -> None:
        assert self._document is None, "a command answers with one document"
        self._document = to_json(document)

    def print(self, *parts: RenderableType, soft_wrap: bool | None = None) -> None:
        """The answer for people: a line of text or a rich object on stdout. Nothing with --json.

        `soft_wrap` leaves lines that are too long to the terminal; by default for text, not for rich objects.
        """
        if not self.json:
            if soft_wrap is None:
                soft_wrap = all(isinstance(part, str) for part in parts)
            text = parts[0] if len(parts) == 1 and soft_wrap else None
            if "out" in vars(self) or not isinstance(text, str) or not _write_line(sys.stdout, text):
                self.out.print(*parts, soft_wrap=soft_wrap)

    def row(self, label: Text, text: Text) -> None:
        """A line of two parts on stdout, the second folded under itself within 80 columns. Nothing with --json."""
        if self.json:
            return
        from aifx.commands.console.consoles import beside

        for line in beside(self.out, label, text):
            self.out.print(line, soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        right: Iterable[str] = (),
        wrap: bool = False,
        is_dense: bool = False,
    ) -> None:
        """A table on stdout; None is shown as "-". Off a terminal no cell is cut. Nothing with --json.

        A terminal that is too narrow gets a line for each cell.

        Args:
            right: the columns whose cells stand at the right, as numbers do.
            wrap: fold the last column within 80 columns, also off a terminal.
            is_dense: fold the last column only, and below the others, on a terminal that is too narrow.
        """
        if self.json:
            return
        from aifx.commands.console.consoles import fits, labels_and_texts, make_table, padded, records

        columns = [one_line(column) for column in columns]
        cells = [["-" if cell is None else one_line(str(cell)) for cell in row] for row in rows]
        right = {one_line(column) for column in right}
        is_narrow = self.out.is_terminal and not fits(self.out, columns, cells)
        if wrap or (is_narrow and is_dense):
            for label, text in labels_and_texts(self.out, columns, cells, right=right):
                self.row(label, text)
        elif self.out.is_terminal and not is_narrow:
            self.out.print(make_table(columns, cells, right=right))
        elif self.out.is_terminal:
            for label, text in records(columns, cells):
                self.row(label, text)
        else:
            self.print("\n".join("  ".join(row).rstrip() for row in padded(columns, cells, right)))

    def log(self, text: str) -> None:
        """Write a message on stderr."""
        if "err" in vars(self) or not _write_line(sys.stderr, text):
            self.err.print(text, soft_wrap=True)

    def report(self, faults: Iterable[AifxError]) -> None:
        """Write failures that do not end the command on stderr."""
        for fault in faults:
            write_all(sys.stderr, failure_text(fault, colored=is_colored(sys.stderr)))

    def write(self, text: str, *, exact: bool = False) -> None:
        """Text on stdout at once, for an answer that streams.

        `exact` leaves control characters as they are, for an answer that is data and does not go to a terminal.
        Raises BrokenPipeError when the reader has gone; `terminal` then ends the command quietly.
        """
        self.stdout.write(text if exact else escape_controls(text))
        self.stdout.flush()

    def flush(self) -> None:
        """Writes the document, if there is one."""
        if self._document is not None:
            text, self._document = self._document, None
            with suppress(BrokenPipeError):
                self.stdout.write(text + "\n")
                self.stdout.flush()


def _write_line(stream: TextIO, text: str) -> bool:
    """Write a line where rich would add nothing to it, and need not be imported. Otherwise write none, return False."""
    if not is_plain(stream):
        return False
    try:
        stream.write(escape_controls(text).expandtabs() + "\n")
        stream.flush()
    except BrokenPipeError:  # the rest goes to nobody, and the command ends as it would have
        ignore_reader(stream)
    return True
