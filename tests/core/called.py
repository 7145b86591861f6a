"""Functions that other processes call."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator

from aifx.core.calls import advance
from aifx.core.errors import DataError

begin_calls = 0


def begin() -> None:
    global begin_calls
    begin_calls += 1


attempts = 0


def fail_once() -> None:
    global attempts
    attempts += 1
    if attempts == 1:
        raise OSError("not yet")


def attempts_text() -> Iterator[str]:
    yield "after the second attempt" if attempts == 2 else "without a beginning"


def double(number: int) -> tuple[int, int, int]:
    """The process, how often `begin` was called there, and twice the number."""
    advance(number)
    advance(10 * number)  # more than there is
    return os.getpid(), begin_calls, 2 * number


def fail(number: int) -> int:
    if number == 0:
        raise DataError("a.csv", "line 3 is torn", "mend it")
    time.sleep(600)
    return number


def odd(number: int) -> int:
    class Odd(Exception):
        """Which no other process knows."""

    raise Odd(number)


def die(number: int) -> int:
    os.kill(os.getpid(), 9)
    return number


def large(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield bytes([number]) * (3 << 20)
    sys.stdout.write("of a library\n")


def pid_and_sleep() -> Iterator[int]:
    yield os.getpid()
    time.sleep(600)
