"""Text and JSON as they are written to stdout and stderr, without rich, which takes a while to import."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from aifx.core.errors import AifxError
from aifx.core.json_values import encode_json
from aifx.core.sanitize import escape_in_json, one_line


def write_all(stream: TextIO, text: str) -> bool:
    """Whether `text` could be written. True also if the reader has gone: it needs no other message."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        return True
    except OSError:
        return False
    return True


def ignore_reader(stream: TextIO) -> None:
    """Let what is still written to a stream, whose reader has gone, go to nobody."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


def is_plain(stream: TextIO) -> bool:
    """Whether text goes to `stream` as it is: it is no terminal, and no variable says that it is like one."""
    return not any(map(os.environ.get, ("FORCE_COLOR", "TTY_COMPATIBLE"))) and not stream.isatty()


def failure_text(failure: AifxError, *, colored: bool = False) -> str:
    """Format a failure: the error, the reason, and the next command. Control characters are made visible."""

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
