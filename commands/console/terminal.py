"""What every command shares: where its words go, and how it ends.

    def ls(json: JsonOption = False) -> None:
        with terminal(json) as out:
            ...
            out.table(["run", "step"], rows)        # people; nothing with --json
            out.document({"runs": [...]})           # programs; nothing without --json

The answer goes to stdout, everything else to stderr (`out.say`, `out.err`). A failure is raised as an `AifxError`; a
verdict is `raise SystemExit(1)`. Nothing here imports more than it needs: `aifx --help` must be quick.
"""

from __future__ import annotations

import functools
import os
import select
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO

from aifx.commands.console import stopping
from aifx.commands.console.failures import as_error, is_debugging, is_of_typer, print_traceback
from aifx.commands.console.progress import ProgressDisplay
from aifx.core.errors import AifxError, ExitCode
from aifx.core.json_values import encode_json, plain
from aifx.core.logs import log_lines, python_warnings
from aifx.core.progress import listen
from aifx.core.sanitize import escape_controls, escape_in_json, one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

SCHEMA_VERSION = 1


@contextmanager
def terminal(json: bool = False, *, streams: bool = False) -> Iterator[Output]:
    """Run a command's body and turn whatever it raises into an exit code (docs/exit-codes.md).

    Args:
        streams: the answer is what the command passes to `out.write`, and nothing else is on stdout.
    """
    out = Output(json)
    try:
        # What user code prints is not part of the answer.
        with (
            log_lines(out.say, propagate=False),
            python_warnings(out.say),
            listen(ProgressDisplay(out)),
            redirect_stdout(sys.stderr) if json or streams else nullcontext(),
        ):
            stopping.run_body()
            yield out
            stopping.end_body()
        out.flush()
    except SystemExit:
        stopping.end_body()
        out.flush()
        raise
    except BaseException as error:
        stopping.end_body()
        raise SystemExit(report(stopping.cause_of(error), json=json)) from None


class Output:
    """Where a command's words go. Control characters are escaped, whatever the source of the text.

    Attributes:
        json: whether stdout carries one JSON document and nothing else.
        stdout: the stream that the command began with.
    """

    def __init__(self, json: bool = False) -> None:
        self.json = json
        self._document: str | None = None
        self.stdout = sys.stdout

    @functools.cached_property
    def out(self) -> Console:
        """stdout, for people. Text is taken as it is: styles are given as rich objects, not as [markup]."""
        from aifx.commands.console.consoles import make_console

        return make_console(stderr=False)

    @functools.cached_property
    def err(self) -> Console:
        """stderr: progress, panels, remarks. It never raises because nobody listens."""
        from aifx.commands.console.consoles import make_console

        return make_console(stderr=True)

    @property
    def animated(self) -> bool:
        """Whether stderr is a terminal on which something may move."""
        return self.err.is_terminal and not self.err.is_dumb_terminal

    def document(self, document: object) -> None:
        """The answer for programs: with --json the one document on stdout, written when the command ends in order.

        Adds `schema_version`; a number that is not finite becomes null.

        Args:
            document: a dataclass or a mapping; docs/schemas/ has its schema.
        """
        if self.json:
            assert self._document is None, "a command answers with one document"
            self._document = to_json({"schema_version": SCHEMA_VERSION, **plain(document)})

    def print(self, *parts: RenderableType, soft_wrap: bool | None = None) -> None:
        """The answer for people: a line of text or a rich object on stdout. Nothing with --json.

        Args:
            soft_wrap: leave lines that are too long to the terminal; by default for text, not for rich objects.
        """
        if not self.json:
            if soft_wrap is None:
                soft_wrap = all(isinstance(part, str) for part in parts)
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
    ) -> None:
        """A table on stdout; None is shown as "-". Off a terminal no cell is cut. Nothing with --json.

        Args:
            right: the columns whose cells stand at the right, as numbers do.
            wrap: fold the last column within 80 columns, also off a terminal.
        """
        if self.json:
            return
        from aifx.commands.console.consoles import labels_and_texts, make_table, plain_table

        columns = [one_line(column) for column in columns]
        cells = [["-" if cell is None else one_line(str(cell)) for cell in row] for row in rows]
        right = {one_line(column) for column in right}
        if wrap:
            for label, text in labels_and_texts(self.out, columns, cells, right=right):
                self.row(label, text)
        elif self.out.is_terminal:
            self.out.print(make_table(columns, cells, right=right))
        else:
            self.print(plain_table(columns, cells, right=right))

    def say(self, text: str) -> None:
        """A word on what is going on, on stderr."""
        self.err.print(text, soft_wrap=True)

    def tell(self, faults: Iterable[AifxError]) -> None:
        """Failures that do not end the command, on stderr."""
        for fault in faults:
            _wrote(sys.stderr, failure_text(fault, colored=is_colored(sys.stderr)))

    def write(self, text: str, *, exact: bool = False) -> None:
        """Text on stdout at once, for an answer that streams.

        Raises BrokenPipeError when the reader has gone; `terminal` then ends the command quietly.

        Args:
            exact: leave control characters as they are, for an answer that is data and does not go to a terminal.
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


def report(error: BaseException, *, json: bool) -> int:
    """Report a failure and return its exit code: three lines on stderr, or with `json` one document on stdout."""
    if isinstance(error, BrokenPipeError) and _reader_has_gone():
        return ExitCode.OK  # it had enough, as `head` has: nothing to tell, and nobody to tell it to
    if is_of_typer(error) and type(error).__name__ == "Exit" and (code := getattr(error, "exit_code", None)):
        return int(code)
    if is_debugging():
        print_traceback(error)
    failure = as_error(error)
    if json and _wrote(sys.stdout, to_json({"schema_version": SCHEMA_VERSION, "error": failure.document()}) + "\n"):
        return int(failure.exit_code)
    _wrote(sys.stderr, failure_text(failure, colored=is_colored(sys.stderr)))
    return int(failure.exit_code)


def _reader_has_gone() -> bool:
    """Whether it is stdout that is broken, and not some pipe of ours."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(flags & (select.POLLERR | select.POLLHUP) for _, flags in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no poll here, or no file behind stdout
        return True


def _wrote(stream: TextIO, text: str) -> bool:
    """Whether `text` could be written; a stream that is full is told elsewhere."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        return True
    except OSError:
        return False
    return True


def failure_text(failure: AifxError, *, colored: bool = False) -> str:
    """What failed, why, and what to type next; control characters made visible."""

    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if colored else text

    lines = [f"{paint('error:', '1;31')} {one_line(failure.what)}"]
    lines += [f"  {one_line(line)}" for line in failure.why.splitlines() if line.strip()]
    if failure.hint:
        lines.append(f"{paint('hint:', '1;36')} {one_line(failure.hint)}")
    return "\n".join(lines) + "\n"


def is_colored(stream: TextIO) -> bool:
    """Whether `stream` takes colour: a terminal that is not dumb, unless NO_COLOR (https://no-color.org) is set."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


def to_json(document: Any) -> str:
    """JSON on several lines, valid everywhere: NaN and infinities are null.

    Escapes control characters, and letters that stdout may lack.
    """
    is_unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    text = encode_json(document, indent=2, ensure_ascii=not is_unicode)
    return escape_in_json(text)
