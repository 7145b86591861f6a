"""The stop that a command passes to a training: the first signal asks it to save, the second one ends the process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from aifx.core.errors import ExitCode
from aifx.core.lifecycle import STOPS, exit_code_of, exit_now, exit_soon, on_signals
from aifx.core.statuses import ProcessStatus

ECHO_S = 1.0
"""Schedulers signal all processes of a job, and so does the one that started this one: a signal comes twice."""

BeforeExit = Callable[[ProcessStatus | None, str], None]
"""Called with the run's status (None: failed) and a line on why, right before the process ends without unwinding. All
callbacks together may take `lifecycle.ENDING_S`."""


def status_of(signum: int) -> ProcessStatus:
    return "interrupted" if signum == signal.SIGINT else "preempted"


class StopSignals:
    """Handles SIGINT, SIGTERM and SIGHUP while entered; to be entered in the main thread, before the heavy imports.

    Until `guard` is called there is nothing to save: the first signal ends the process. From then on the first one sets
    `requested`, for the loop to see between two steps, and starts a clock; the second one, or the clock, ends it. Under
    `aifx launch`, the same signal within ECHO_S is not a second one. In another thread, a caller stops by other means.
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
        self._count = 0
        self._first_at = 0.0
        self._handling = ExitStack()

    def __enter__(self) -> StopSignals:
        self._handling.enter_context(on_signals(self._act, STOPS))
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        self._handling.close()

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
        """End the process at once, as a second signal would. Called from a thread that found it cannot go on.

        Returns if a signal is ending the process already, or if it has finished.
        """
        with self._lock:
            if self._done:
                return
            self._done = self._leaving = True
        self._exit("preempted" if code == ExitCode.PREEMPTED else None, why, code)

    def _act(self, signum: int) -> None:
        with self._lock:
            if self._done:
                return
            self._count += 1
            first = self._count == 1
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
        exit_soon(code)
        for callback in reversed(self.before_exit):
            with suppress(Exception):  # whatever it is, the process ends, and with this code
                callback(status, why)
        exit_now(code)
