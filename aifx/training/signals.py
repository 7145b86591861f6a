"""Stopping: a signal is heard at once, acted on where it is safe, and never waited for beyond a bound.

Python runs a signal handler only between two bytecodes of the main thread, seconds late behind a compilation. The C
part of the handler, which runs at once, writes the signal's number into `signal.set_wakeup_fd`; a thread reads it
there. No signal is blocked, so that processes started from here inherit nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from aifx.core.errors import ExitCode
from aifx.core.statuses import ProcessStatus

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

LAST_WORDS_S = 2.0
"""Limit of the callbacks that run right before the process ends."""

ECHO_S = 1.0
"""Schedulers signal all processes of a job, and so does the one that started this one: a signal comes twice."""

BeforeExit = Callable[[ProcessStatus | None, str], None]
"""Called with the run's status (None: failed) and a line on why, right before the process ends without unwinding."""


def exit_code_of(signum: int) -> ExitCode:
    return ExitCode.INTERRUPTED if signum == signal.SIGINT else ExitCode.PREEMPTED


def status_of(signum: int) -> ProcessStatus:
    return "interrupted" if signum == signal.SIGINT else "preempted"


class StopSignals:
    """Listens to SIGINT, SIGTERM and SIGHUP while entered; to be entered in the main thread, before the heavy imports.

    Until `guard` is called there is nothing to save: the first signal ends the process. From then on the first one sets
    `requested`, for the loop to see between two steps, and starts a clock; the second one, or the clock, ends it. Under
    `aifx launch`, the same signal within ECHO_S is not a second one.

    SIGHUP ignored from the start (nohup) stays ignored. So does a SIGINT from the keyboard to a process that a shell
    started in the background; one sent on purpose to such a process is heard.
    """

    def __init__(self) -> None:
        self.before_exit: list[BeforeExit] = []  # the latest added is called first
        self.requested: signal.Signals | None = None
        self.kept = "nothing was saved yet"
        self.hint = ""  # of a failure of another process
        self._guarded = False
        self._timeout_s = 30.0
        self._done = False
        self._leaving = False
        self._lock = threading.Lock()
        # By number, since a signal is announced twice and another one may come in between.
        self._woken = Counter[int]()  # signals seen by the C handlers
        self._handled = Counter[int]()  # signals seen by the Python handlers: the same ones, later
        self._acted = Counter[int]()
        self._first_at = 0.0
        self._before: dict[signal.Signals, Any] = {}
        self._writer: int | None = None
        self._fd_before = -1

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python gives signals to the main thread alone; a caller elsewhere stops by other means
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._writer = writer
        self._fd_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for signum in SIGNALS:
            if stays_ignored(signum):
                continue
            self._before[signum] = signal.signal(signum, self._handle)
            signal.siginterrupt(signum, False)
        threading.Thread(target=self._listen, args=(reader,), name="aifx-signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        if self._writer is None:
            return
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._writer)
        self._writer = None

    def guard(self, timeout_s: float) -> None:
        """There is something to save from now on, and saving it may take `timeout_s`."""
        with self._lock:
            self._timeout_s = timeout_s
            self._guarded = True

    def finish(self) -> None:
        """The run's last word is being written: a signal that comes now changes nothing any more.

        Does not return if a signal is ending the process: a second last word would follow the first.
        """
        with self._lock:
            self._done = True
            is_leaving = self._leaving
        if is_leaving:
            threading.Event().wait()

    def leave(self, code: ExitCode, why: str) -> None:
        """End the process where it stands, as a second signal would. Called from a thread that found it cannot go on.

        Returns if a signal is ending the process already, or if it has finished.
        """
        with self._lock:
            if self._done:
                return
            self._done = self._leaving = True
        self._exit("preempted" if code == ExitCode.PREEMPTED else None, why, code)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # An event loop in the main thread may have put its own wake-up file in place of ours for a while.
        self._handled[signum] += 1
        if self._handled[signum] > self._woken[signum]:
            threading.Thread(target=self._act, args=(signum,), daemon=True).start()

    def _listen(self, reader: int) -> None:
        with suppress(OSError):
            while data := os.read(reader, 1):
                if data[0] in self._before:
                    self._woken[data[0]] += 1
                    self._act(data[0])
        os.close(reader)

    def _act(self, signum: int) -> None:
        with self._lock:
            # One signal is announced twice, by its C and by its Python handler.
            if self._done or max(self._woken[signum], self._handled[signum]) <= self._acted[signum]:
                return
            self._acted[signum] += 1
            first = self._acted.total() == 1
            if not first and self._is_echo(signum):
                return
            self._first_at = time.monotonic()
            if first and self._guarded:
                self.requested = signal.Signals(signum)
                clock = threading.Timer(self._timeout_s, self._overdue, args=(signum,))
                clock.daemon = True
                clock.start()
                return
            self._done = self._leaving = True
        why = self.kept if first else f"stopped at once; {self.kept}"
        self._exit(status_of(signum), why, exit_code_of(signum))

    def _is_echo(self, signum: int) -> bool:
        is_soon = time.monotonic() - self._first_at < ECHO_S
        return is_soon and signum == self.requested and "AIFX_LAUNCHER" in os.environ

    def _overdue(self, signum: int) -> None:
        with self._lock:
            if self._done:
                return
            self._done = self._leaving = True
        why = f"saving took longer than checkpoint.stop_timeout_s = {self._timeout_s:g} s; {self.kept}"
        self._exit(status_of(signum), why, exit_code_of(signum))

    def _exit(self, status: ProcessStatus | None, why: str, code: ExitCode) -> None:
        def call_back() -> None:
            for callback in reversed(self.before_exit):
                with suppress(Exception):  # whatever it is, the process ends, and with this code
                    callback(status, why)

        # In a thread, for two seconds at most: a reader that stalled at our stderr must not hold the process.
        caller = threading.Thread(target=call_back, daemon=True)
        caller.start()
        caller.join(LAST_WORDS_S)
        os._exit(code)


def stays_ignored(signum: signal.Signals) -> bool:
    """Whether a process that was started to ignore a signal goes on to do so."""
    if signal.getsignal(signum) is not signal.SIG_IGN:
        return False
    return signum == signal.SIGHUP or (signum == signal.SIGINT and _keyboard_reaches_us())


def _keyboard_reaches_us() -> bool:
    """Whether ^C at the terminal goes to this process: it is in the terminal's foreground group."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False
