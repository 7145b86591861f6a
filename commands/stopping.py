"""SIGTERM for commands that end by Ctrl-C with what was found until then."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from aifx.errors import ExitCode, Terminated


@dataclass
class Stop:
    """With what code a command that was interrupted ends."""

    code: ExitCode = ExitCode.INTERRUPTED


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[Stop]:
    """SIGTERM raises Terminated in here."""
    stop = Stop()

    def end(*_: object) -> NoReturn:
        stop.code = ExitCode.PREEMPTED
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
