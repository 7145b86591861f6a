"""Work that may crash or hang, such as a kernel on a device that it was never tried on, in a process of its own.

`jax_kernels` imports nothing of aifx, whose `core/calls.py` and `core/lifecycle.py` do the same.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

LIMIT_S = 60.0
"""For an item, unless its caller gives another limit."""

START_S = 120.0
"""For a process to import JAX."""


@dataclass(frozen=True)
class Failure:
    """The reason that an item has no result."""

    why: str


class TrialProcess:
    """Does `work` in a process of its own, which holds no device of this one.

    An item that raises, crashes the process or takes too long has a Failure. After a crash or a hang, which may have
    left the device in a state that nothing could use, a new process does the next item.

        with TrialProcess(work) as trials:
            result = trials.do(item)
    """

    def __init__(self, work: Callable[[Any], Any]) -> None:
        """`work` is a function of a module, since another process imports it."""
        self._work = work
        self._process: SpawnProcess | None = None

    def __enter__(self) -> TrialProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def do(self, item: Any, limit_s: float | None = None) -> Any:
        """The result of `work(item)`, or a Failure. LIMIT_S is the limit unless another is given; it may be infinite.

        Raises ChildProcessError if no process starts: that says nothing about the item.
        """
        if self._process is not None and not self._process.is_alive():  # killed, or crashed after its last result
            self._end()
        if self._process is None:
            self._start()
        self._pipe.send(item)
        return self._receive(LIMIT_S if limit_s is None else limit_s)

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, self._work), daemon=True)
        self._process.start()
        other_end.close()
        started = self._receive(START_S)
        if isinstance(started, Failure):
            raise ChildProcessError(f"a process to try kernels in does not start: {started.why}")

    def _receive(self, limit_s: float) -> Any:
        assert self._process is not None
        try:
            if self._pipe.poll(None if limit_s == math.inf else limit_s):
                return self._pipe.recv()
            failure = Failure(f"not done after {limit_s:g} s")
        except (EOFError, ConnectionResetError):
            self._process.join()
            failure = Failure(f"the process {_ending(self._process.exitcode)}")
        self._end()
        return failure

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()  # one that waits for a device does not hear SIGTERM
            self._process.join()
            self._pipe.close()
            self._process = None


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _serve(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """Answer items from the pipe, in the process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to both; the other one ends this one
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # another process may hold some of the memory
    threading.Thread(target=_end_with_parent, daemon=True).start()
    pipe.send(None)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            result = work(item)
        except Exception as error:  # the compilers' own types
            text = str(error).strip()
            result = Failure(text.splitlines()[0][:200] if text else type(error).__name__)
        pipe.send(result)


def _end_with_parent() -> None:
    """A process that was killed cannot end this one, which may be in the middle of an item."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
