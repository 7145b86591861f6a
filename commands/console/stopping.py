"""Signals from aifx's entry point to its exit: SIGINT ends with 130 and SIGTERM with 75, with one document and no
traceback.

A process goes through three phases. While it *starts* (imports, arguments) there is nothing to finish: a signal ends
it at once. While a command's *body* runs, a signal raises KeyboardInterrupt or Terminated in the main thread, and the
command may catch it. While it *ends*, the answer is being written: the first signal changes nothing any more, a second
one or `ENDING_S` ends the process at once.

This module imports little, so that it hears signals early.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import time
from contextlib import contextmanager, suppress

from aifx.core.errors import ExitCode, Terminated

TYPE_CHECKING = False  # importing typing takes as long as all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType
    from typing import NoReturn, Protocol

    class Caller(Protocol):
        """A program that calls aifx and expects its own way to report a failure (`aifx.commands.doctor`)."""

        def fail(self, error: BaseException) -> int: ...


PATIENCE_S = 5.0
"""How long SIGTERM waits for the main thread, which may be in a compiler and hears no signal there."""

ENDING_S = 3.0
"""How long the answer may still take after a signal: its reader may have stalled."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)
MARK = 0  # no signal's number
STARTING, RUNNING, ENDING = "starting", "running", "ending"


def exit_code_of(signum: int) -> ExitCode:
    return ExitCode.INTERRUPTED if signum == signal.SIGINT else ExitCode.PREEMPTED


class EntrySignals:
    """The signals of a process whose only command aifx runs. Entered in the main thread, once, and never left."""

    def __init__(self, args: Sequence[str]) -> None:
        self.args = list(args)
        self.caller: Caller | None = None
        self.phase = STARTING
        self.seen: int | None = None  # the first signal of the body, as the C handler heard it
        self._raised = False
        self._count = 0
        self._marked = False  # the thread that listens has read MARK
        self._writer = -1  # of the pipe that the C handlers write to
        self._lock = _thread.allocate_lock()
        self._ignored = {number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN}

    def install(self) -> None:
        """Install the handlers of the phase, in place of what a library left."""
        for number in SIGNALS:
            if number not in self._ignored:
                # asyncio.run cancels its tasks at Ctrl-C only if the handler is Python's own.
                is_pythons = number == signal.SIGINT and self.phase == RUNNING
                signal.signal(number, signal.default_int_handler if is_pythons else self._handle)
        if self._writer >= 0:
            signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)

    def run_body(self) -> None:
        """The command's body begins."""
        import threading

        if self._writer < 0:
            reader, self._writer = os.pipe()
            os.set_blocking(self._writer, False)
            threading.Thread(target=self._listen, args=(reader,), name="aifx-entry-signals", daemon=True).start()
        self.phase = RUNNING
        self.install()
        sys.unraisablehook = self._raise_again

    def _raise_again(self, dropped: sys.UnraisableHookArgs) -> None:
        """Raise an interrupt again that hit code which lets no exception through, as JAX's in garbage collections."""
        if self.phase != RUNNING or not issubclass(dropped.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(dropped)
            return
        self._raised = False
        signal.signal(signal.SIGURG, _do_nothing)
        number = signal.SIGTERM if issubclass(dropped.exc_type, Terminated) else signal.SIGINT
        _thread.start_new_thread(_interrupt_soon, (_thread.get_ident(), number))

    def end(self) -> None:
        """The answer is being written from here on."""
        with self._lock:  # held for good by a thread that ends the process
            self.phase = ENDING
        self.install()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.phase == STARTING:
            self._leave(signum)
        elif self.phase == ENDING:
            self._count += 1
            if self._count > 1:
                os._exit(exit_code_of(signum))
        elif self._raised:
            self._leave(signum)
        else:
            self._raised = True
            raise Terminated

    def _listen(self, reader: int) -> None:
        """Hear signals while the main thread is busy outside of the interpreter."""
        import threading

        with suppress(OSError):
            while data := os.read(reader, 1):
                signum = data[0]
                self._marked = self._marked or signum == MARK
                if signum not in SIGNALS:
                    continue
                self.seen = self.seen or signum
                if self.phase == ENDING:
                    time.sleep(ENDING_S)
                    os._exit(exit_code_of(signum))
                if signum == signal.SIGTERM and signal.getsignal(signum) == self._handle:
                    threading.Thread(target=self._await_main, args=(signum,), daemon=True).start()

    def catch_up(self) -> None:
        """Wait until the thread that listens has heard the signals so far: it may have to wait for its turn."""
        if self._writer < 0:
            return
        self._marked = False
        with suppress(BlockingIOError):
            os.write(self._writer, bytes([MARK]))
        until = time.monotonic() + PATIENCE_S
        while self.seen is None and not self._marked and time.monotonic() < until:
            time.sleep(0.001)

    def _await_main(self, signum: int) -> None:
        time.sleep(PATIENCE_S)
        with self._lock:
            if self.phase == RUNNING and not self._raised:
                self._leave(signum)

    def _leave(self, signum: int) -> NoReturn:
        """End the process at once, with its one document or its error."""
        code = int(exit_code_of(signum))
        with suppress(BaseException):
            if self.caller is not None:
                code = self.caller.fail(Terminated())
                sys.stdout.flush()
            else:
                write_interrupted(signum, self.args)
        os._exit(code)

    def close(self) -> None:
        """Ignore signals: aifx has finished, and Python is about to remove its handlers."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    """Let a signal end a sleep, after which Python handles the others that came."""


def _interrupt_soon(thread: int, number: int) -> None:
    """Send a signal to the thread once it has left `_raise_again`, in which an interrupt would be dropped as well."""
    is_inside = True
    while is_inside:
        time.sleep(0.01)
        frame = innermost = sys._current_frames().get(thread)
        is_inside = False
        while frame is not None:
            is_inside = is_inside or frame.f_code is EntrySignals._raise_again.__code__
            frame = frame.f_back
    if innermost is None:
        return
    at = innermost.f_lasti
    signal.pthread_kill(thread, number)
    # Python does not see a signal that comes just before a system call until that call ends, which may be a long sleep.
    while sys._current_frames().get(thread) is innermost and innermost.f_lasti == at:
        time.sleep(0.05)
        signal.pthread_kill(thread, signal.SIGURG)


_entry: EntrySignals | None = None


def enter(args: Sequence[str], find_caller: Callable[[Sequence[str]], Caller | None]) -> None:
    """Hear signals from the entry point on, those that came during a restart of the program included.

    Nothing is heard in a process that somebody else's program started.
    """
    global _entry
    with blocked():
        _entry = EntrySignals(args)
        _entry.install()
        atexit.register(_entry.close)  # the first one registered runs last
        os.register_at_fork(after_in_child=_forget)
        _entry.caller = find_caller(_ours(args))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def is_entered() -> bool:
    """Whether this process was started for this command alone."""
    return _entry is not None


def run_body() -> None:
    """A command's body begins, or a library that replaced handlers has ended."""
    if _entry is not None:
        _entry.run_body()


def end_body() -> None:
    """The command's answer is being written from here on."""
    if _entry is not None:
        _entry.end()


def cause_of(error: BaseException) -> BaseException:
    """The interrupt behind `error`, if a signal came: libraries turn one that hits their imports into other errors."""
    if _entry is not None and _entry.seen is None and not isinstance(error, KeyboardInterrupt):
        _entry.catch_up()
    seen = _entry.seen if _entry is not None else None
    is_told = getattr(error, "exit_code", None) in (ExitCode.INTERRUPTED, ExitCode.PREEMPTED)
    if seen is None or is_told or isinstance(error, KeyboardInterrupt):
        return error
    return KeyboardInterrupt() if seen == signal.SIGINT else Terminated()


def write_interrupted(signum: int, args: Sequence[str]) -> None:
    """Write the answer of a command that a signal ends before it has one.

    It goes past Python's buffers and imports nothing, since the main thread may be anywhere.
    """
    code, why = int(exit_code_of(signum)), "SIGTERM" if signum == signal.SIGTERM else ""
    if "--json" in _ours(args):
        lines = ('    "what": "interrupted"', f'    "why": "{why}"', '    "hint": ""', f'    "exit_code": {code}')
        body = ",\n".join(lines)
        os.write(1, f'{{\n  "schema_version": 1,\n  "error": {{\n{body}\n  }}\n}}\n'.encode())
    else:
        os.write(2, f"error: interrupted\n{why and f'  {why}{chr(10)}'}".encode())


def _ours(args: Sequence[str]) -> Sequence[str]:
    """The arguments before `--`."""
    return args[: args.index("--")] if "--" in args else args


@contextmanager
def blocked() -> Iterator[None]:
    """Signals that come now wait: the program replaces itself, and hears them when it has entered again."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forget() -> None:
    """A forked child is not aifx: signals end it as they end any process, and aifx does not hear them."""
    global _entry
    _entry = None
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)


class Stop:
    """With what code a command that was interrupted ends."""

    def __init__(self) -> None:
        self.code = ExitCode.INTERRUPTED


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[Stop]:
    """SIGTERM raises Terminated in here, each time."""
    stop = Stop()

    def end(*_: object) -> NoReturn:
        stop.code = ExitCode.PREEMPTED
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
