"""Calls of functions in processes of this machine, which end with their block, and with this process however it ends.

Functions, what they are given, what they return and what they raise travel as pickles. A process imports the modules
that these name, along this process's `sys.path`, but no script that was started.

As a program (`python -m aifx.core.calls`), it is such a process: it reads calls from stdin and answers to stdout.
"""

from __future__ import annotations

import io
import logging
import pickle
import queue
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, BinaryIO, Generic, Literal, TypeVar

from aifx.core.errors import EnvironmentFault
from aifx.core.processes import Child, begin_child, pump

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

REPORT_S = 0.1
"""At least so long passes between two reports of progress within a call."""

WORK_MODULE = "aifx.core.calls"
LENGTH_BYTES = 8

Kind = Literal["value", "end", "error", "progress"]


class CallProcess(Generic[R]):
    """A process that calls one function again and again: one call at a time. It is ended with the block."""

    def __init__(self, function: Callable[..., Iterator[R]], begin: Callable[[], object] | None = None) -> None:
        """Start it.

        Args:
            function: returns what the call yields, one value after another.
            begin: called first of all.
        """
        program = _frame((begin, function))  # before the process, which it would leave behind if it cannot be pickled
        self.child = Child.of_module(WORK_MODULE)
        self._read = bytearray()
        self._send(sys.path)
        self._write(program)

    def __enter__(self) -> CallProcess[R]:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Kill it."""
        self.child.__exit__()

    def start(self, *arguments: Any, size: int = 0) -> None:
        """Begin a call; `size` is its amount of work."""
        self._send((arguments, size))

    def answers(self) -> Iterator[tuple[Kind, Any]]:
        """The answers that have come since the last time, after a `pump`.

        Raises EnvironmentFault if it has ended, which it does not by itself.
        """
        self._log_lines()
        ended = self.child.ended  # before the output, so that none is missed
        self._read += self.child.take_output()
        while (frame := _take_frame(self._read)) is not None:
            kind, value = pickle.loads(frame)
            if kind in ("end", "error"):  # lines that it wrote before may still be in their pipe
                pump([self.child], 0.0)
                self._log_lines()
            yield kind, value
        if ended is not None:
            why = f"{ended.how}: it may have needed more memory than there is"
            hint = "give it more --memory"
            raise EnvironmentFault("the process that does the work ended without an answer", why, hint)

    def _log_lines(self) -> None:
        for line in self.child.take_error_lines():
            logger.warning("%s", line.decode("utf-8", "replace"))

    def values(self, *arguments: Any) -> Iterator[R]:
        """Call, and yield what the function yields. Raises what it raises, and as `answers` does."""
        self.start(*arguments)
        while True:
            pump([self.child])
            for kind, value in self.answers():
                if kind == "error":
                    raise value
                if kind == "end":
                    return
                if kind == "value":
                    yield value

    def finish(self) -> None:
        """Let it end by itself, after its last call."""
        self._send(None)
        self.child.wait()

    def _send(self, value: Any) -> None:
        self._write(_frame(value))

    def _write(self, frame: bytes) -> None:
        with suppress(BrokenPipeError):  # it has ended, which `answers` reports
            self.child.write(frame)


def call_each(
    function: Callable[[T], R],
    items: Sequence[T],
    workers: int,
    sizes: Sequence[int] = (),
    report: Callable[[int], None] = lambda amount: None,
    begin: Callable[[], object] | None = None,
) -> Iterator[tuple[int, R]]:
    """The index and result of each call, as they end; in this process if there is one item or one worker.

    Raises what the function raises, after ending the other calls; EnvironmentFault if something else ends a process.

    Args:
        sizes: amount of work of each item.
        report: called with amounts of work that are done; during a call, with those that it gives to `advance`.
        begin: called first in each process.
    """
    workers = min(workers, len(items))
    sizes = sizes or [0] * len(items)
    if workers <= 1:
        for index, (item, size) in enumerate(zip(items, sizes, strict=True)):
            yield index, _reporting(function, item, size, report)
        return
    waiting = iter(enumerate(zip(items, sizes, strict=True)))
    with ExitStack() as stack:
        processes = [stack.enter_context(CallProcess(_Once(function), begin)) for _ in range(workers)]
        calls = dict[int, int]()  # the index of the item, by the number of the process

        def start(number: int) -> None:
            if (following := next(waiting, None)) is not None:
                calls[number], (item, size) = following
                processes[number].start(item, size=size)

        for number in range(workers):
            start(number)
        while calls:
            pump([processes[number].child for number in calls])
            for number in list(calls):
                for kind, value in processes[number].answers():
                    if kind == "error":
                        raise value
                    if kind == "progress":
                        report(value)
                    elif kind == "value":
                        yield calls[number], value
                    else:
                        del calls[number]
                        start(number)
        for process in processes:
            process.finish()


@contextmanager
def generated(
    function: Callable[..., Iterator[R]], *arguments: Any, begin: Callable[[], object] | None = None
) -> Generator[Iterator[R]]:
    """The values that `function(*arguments)` yields in a process of its own, which is killed when the block ends.

    So a signal ends what the function does, although a library may not return to Python for hours. Raises what the
    function raises, EnvironmentFault if the process is ended by something else.

    Args:
        begin: called first in the process.
    """
    with CallProcess(function, begin) as process:
        yield process.values(*arguments)


def advance(amount: int) -> None:
    """Report a part of the work of the call that runs in this process."""
    global _left
    amount = min(amount, _left)
    _left -= amount
    if _report is not None:
        _report(amount)


_report: Callable[[int], None] | None = None
_left = 0  # of the work of the call


def _reporting(function: Callable[[T], R], item: T, size: int, report: Callable[[int], None]) -> R:
    """Call the function, and report `size` in all."""
    global _report, _left
    _report, _left = report, size
    try:
        result = function(item)
        advance(size)
        return result
    finally:
        _report, _left = None, 0


class _Once(Generic[T, R]):
    """A function as one that yields its result."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self._function = function

    def __call__(self, item: T) -> Iterator[R]:
        yield self._function(item)


def _frame(value: Any) -> bytes:
    data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def _take_frame(read: bytearray) -> bytes | None:
    """Take the first frame; None if it is not whole yet."""
    if len(read) < LENGTH_BYTES:
        return None
    end = LENGTH_BYTES + int.from_bytes(read[:LENGTH_BYTES], "little")
    if len(read) < end:
        return None
    frame = bytes(read[LENGTH_BYTES:end])
    del read[:end]
    return frame


class _Server:
    """Takes calls and answers them. Runs in the process."""

    def __init__(self) -> None:
        self._requests = queue.SimpleQueue[bytes]()
        self._channel: BinaryIO = begin_child(self._receive, at_once=True)
        self._done, self._reported_at = 0, time.monotonic()

    def serve(self) -> None:
        sys.path[:] = pickle.loads(self._requests.get())
        program, function = self._requests.get(), None
        while True:
            request = self._requests.get()
            try:
                if (call := pickle.loads(request)) is None:
                    return
                if function is None:
                    begin, called = pickle.loads(program)
                    if begin is not None:
                        begin()
                    function = called
                self._call(function, *call)
                self._answer("end", None)
            except Exception as error:
                self._answer("error", _portable(error))

    def _call(self, function: Callable[..., Iterator[Any]], arguments: Sequence[Any], size: int) -> None:
        global _report, _left
        _report, _left = self._progress, size
        try:
            for value in function(*arguments):
                advance(_left)
                self._flush_progress()
                self._answer("value", value)
        finally:
            _report, _left = None, 0

    def _progress(self, amount: int) -> None:
        self._done += amount
        if time.monotonic() >= self._reported_at + REPORT_S:
            self._flush_progress()

    def _flush_progress(self) -> None:
        if self._done:
            self._answer("progress", self._done)
        self._done, self._reported_at = 0, time.monotonic()

    def _answer(self, kind: Kind, value: Any) -> None:
        self._channel.write(_frame((kind, value)))
        self._channel.flush()

    def _receive(self) -> None:
        """Take requests until the parent has ended."""
        stream = io.FileIO(0, closefd=False)  # without a lock, which a thread must not hold when Python ends
        read = bytearray()
        while data := stream.read(1 << 16):
            read += data
            while (frame := _take_frame(read)) is not None:
                self._requests.put(frame)


def _portable(error: Exception) -> Exception:
    """The error with its traceback as a note, as something that can be pickled."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


if __name__ == "__main__":
    from aifx.core import calls  # whose `advance` is that of the functions: this module is __main__ here

    calls._Server().serve()
