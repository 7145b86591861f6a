"""Child processes, within limits and gone with all that they started when their block ends.

    with Child.of_module("aifx.benchmarking.worker", request, silence_s=600) as child:
        for event in child.events():
            ...
    print(child.ended.why)

A child has a session of its own, so that Ctrl-C reaches only this process, which decides what becomes of it. `run` is
for a program that answers and ends, `run_many` for one per node of a fleet. A program of ours begins with `connect`.

Nothing here has a thread: whoever waits also reads. `pump` does both, for any number of children.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import selectors
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

from aifx.core.errors import ExitCode
from aifx.core.parsing import parse_json
from aifx.core.redaction import redact

MAX_BYTES = 32 << 20
"""Of a child's output that nobody has taken yet."""

MAX_ERROR_BYTES = 1 << 20
"""Of what it writes to stderr, the end is kept."""

CHUNK = 1 << 16
POLL_S = 0.25
"""An exit is noticed this late while something that the child started holds its output open."""

EXIT_S = 0.002
"""Between looks at a child that has closed its output: it is about to exit."""

REAP_S = 1.0
"""A process in uninterruptible sleep outlives SIGKILL. It is not waited for longer."""

FOLLOW_S = 5.0
"""What a child of ours may take to clean up if its parent is gone."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
        code: its exit code; None if a signal ended it, or if it hangs in the kernel.
        signal: the signal that ended it, or None.
        last_lines: the end of what it wrote to stderr.
        output: what it wrote to stdout, without the lines that were taken.
        cut: the limit that it exceeded, for which it was ended; "stopped" if its block ended first.
    """

    code: int | None
    signal: int | None
    last_lines: tuple[str, ...]
    output: bytes
    duration_s: float
    cut: Literal["", "silence", "limit", "output", "stopped"] = ""

    @property
    def succeeded(self) -> bool:
        return self.code == 0 and not self.cut

    @property
    def last_line(self) -> str:
        """The last line of stderr, without secrets, at most 300 characters."""
        return redact(self.last_lines[-1])[:300] if self.last_lines else ""

    @property
    def how(self) -> str:
        """`exit 1` or `signal 9 (Killed)`."""
        if self.signal is None:
            return f"exit {self.code}"
        return f"signal {self.signal} ({signal.strsignal(self.signal) or 'unknown'})"

    @property
    def why(self) -> str:
        return f"{self.how}: {self.last_line}" if self.last_line else self.how


class Child:
    """A process that this one has started. `ended` is None while it runs.

    Leaving the block ends it: with SIGTERM, which also passes on Ctrl-C and SIGTERM of this process, if it has a grace,
    and with SIGKILL.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        name: str = "",
        silence_s: float = math.inf,
        limit_s: float = math.inf,
        grace_s: float = 0.0,
        follows: bool = False,
        shares_group: bool = False,
    ) -> None:
        """Start it. Raises OSError if it cannot be started.

        Args:
            name: for the caller, who may have many.
            silence_s: it is ended if it writes nothing to stdout for so long. May be changed while it runs.
            limit_s: it is ended after so long.
            grace_s: time between SIGTERM and SIGKILL; with 0 it is killed at once.
            follows: its stdin is a pipe that closes when this process ends; otherwise /dev/null.
            shares_group: whether it stays in this process's group, and so dies with it if that is killed as a whole.
        """
        self.name, self.silence_s, self.grace_s = name, silence_s, grace_s
        self.ended: Ended | None = None
        self._cut: Literal["", "silence", "limit", "output", "stopped"] = ""
        self._shares_group = shares_group
        self._out, self._error = bytearray(), bytearray()
        self._began = self._heard = time.monotonic()
        self._until = self._began + limit_s
        self._process = self._start(argv, env, cwd, follows)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._streams: dict[IO[bytes], bytearray] = {
            self._process.stdout: self._out,
            self._process.stderr: self._error,
        }
        for stream in self._streams:
            os.set_blocking(stream.fileno(), False)

    @classmethod
    def of_module(cls, module: str, *arguments: str, **options: Any) -> Child:
        """A module of ours as a program, which ends with this process however that ends."""
        # -P, since the working directory may hold a module of the same name.
        return cls([sys.executable, "-P", "-m", module, *arguments], follows=True, **options)

    def _start(
        self, argv: Sequence[str], env: Mapping[str, str] | None, cwd: Path | None, follows: bool
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE if follows else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=not self._shares_group,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        _end([self])

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects that it writes to stdout, one per line, until it has ended."""
        while True:
            yield from self.take_events()
            if self.ended is not None:
                return
            pump([self], math.inf)

    def take_events(self) -> Iterator[dict[str, Any]]:
        """Yield those that have been read since the last call."""
        for line in self.take_lines():
            with suppress(ValueError):
                if isinstance(event := parse_json(line), dict):
                    yield event

    def take_lines(self, max_bytes: int = MAX_BYTES) -> list[bytes]:
        """The lines that have been read since the last call, each cut to `max_bytes`. One without an end is torn: it
        waits for its rest."""
        *lines, rest = bytes(self._out).split(b"\n") if b"\n" in self._out else [bytes(self._out)]
        self._out[:] = rest[:max_bytes]
        return [line[:max_bytes] for line in lines]

    def wait(self) -> Ended:
        """Wait for its end, and read until then."""
        while self.ended is None:
            pump([self], math.inf)
        return self.ended

    def send_signal(self, number: int) -> None:
        """Send a signal to it, not to what it started."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def limit(self, limit_s: float) -> None:
        """End it so long from now at the latest."""
        self._until = min(self._until, time.monotonic() + limit_s)

    def _due(self) -> float:
        return min(self._until, self._heard + self.silence_s)

    def _is_over(self) -> bool:
        """Whether it has exited or must be ended."""
        now = time.monotonic()
        if self._process.poll() is None:
            if len(self._out) > MAX_BYTES:
                self._cut = "output"
            elif now >= self._until:
                self._cut = "limit"
            elif now >= self._heard + self.silence_s:
                self._cut = "silence"
            else:
                return False
        return True

    def _read(self, stream: IO[bytes]) -> bool:
        """Read a part of a stream. Returns whether there may be more."""
        try:
            part = os.read(stream.fileno(), CHUNK)
        except BlockingIOError:
            return False
        into = self._streams[stream]
        if not part:
            del self._streams[stream]
            stream.close()
        elif into is self._error:
            into += part
            del into[:-MAX_ERROR_BYTES]
        elif len(into) <= MAX_BYTES:
            into += part
            self._heard = time.monotonic()
        return bool(part)

    def _close(self) -> None:
        """Note its end, with what its pipes still hold."""
        for stream in list(self._streams):
            for _ in range(MAX_ERROR_BYTES // CHUNK):  # something that it started may go on writing
                if not self._read(stream):
                    break
            stream.close()
        if self._process.stdin is not None:
            self._process.stdin.close()
        code = self._process.poll()
        if code is None:
            threading.Thread(target=self._process.wait, daemon=True).start()  # so that no zombie is left
        lines = tuple(self._error.decode("utf-8", "replace").strip().splitlines())
        exit_code, number = (None, -code) if code is not None and code < 0 else (code, None)
        self.ended = Ended(exit_code, number, lines, bytes(self._out), time.monotonic() - self._began, self._cut)


def run(argv: Sequence[str], **options: Any) -> Ended:
    """Run a program to its end; `options` are those of `Child`. Raises OSError if it cannot be started."""
    with Child(argv, **options) as child:
        return child.wait()


def run_many(children: Iterable[Child], at_once: int, wait_s: float = math.inf) -> Generator[Child | None]:
    """Yield each child when it has ended, and None when none has for `wait_s` or POLL_S.

    Close the iterator (`contextlib.closing`) to end those that still run.

    Args:
        children: taken from here, and so started, when there is room.
        at_once: how many may run at a time.
    """
    more, running = iter(children), list[Child]()
    try:
        while True:
            while len(running) < at_once and (child := next(more, None)) is not None:
                running.append(child)
            if not running:
                return
            pump(running, wait_s)
            ended = [child for child in running if child.ended is not None]
            running = [child for child in running if child.ended is None]
            yield from ended
            if not ended:
                yield None
    finally:
        _end(running)


def pump(children: Sequence[Child], wait_s: float) -> None:
    """Read what the children have written, after waiting at most `wait_s` or POLL_S for it. End those that have exited
    or exceeded a limit."""
    running = [child for child in children if child.ended is None]
    left_s = min((child._due() for child in running), default=0.0) - time.monotonic()
    _read(running, max(min(wait_s, left_s, POLL_S), 0.0))
    if over := [child for child in running if child._is_over()]:
        _end(over)


def _read(children: Sequence[Child], wait_s: float) -> None:
    if any(not child._streams for child in children):
        wait_s = min(wait_s, EXIT_S)
    with selectors.DefaultSelector() as selector:
        for child in children:
            for stream in child._streams:
                selector.register(stream, selectors.EVENT_READ, child)
        for key, _ in selector.select(wait_s):
            key.data._read(key.fileobj)


def _end(children: Sequence[Child]) -> None:
    """End children that still run, and note the end of all: SIGTERM, their grace, then SIGKILL for whatever is left of
    them and of what they started."""
    children = [child for child in children if child.ended is None]
    running = [child for child in children if child._process.poll() is None]
    family = [one for child in running for one in _descendants(child._process.pid)]
    try:
        for child in running:
            child._cut = child._cut or "stopped"
            if child.grace_s:
                child.send_signal(signal.SIGTERM)
        _await(running, max((child.grace_s for child in running), default=0.0))
    finally:
        for child in children:
            child.send_signal(signal.SIGKILL)
            if not child._shares_group:
                with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
                    os.killpg(child._process.pid, signal.SIGKILL)
        _kill(family)
        _await(running, REAP_S)
        for child in children:
            child._close()


def _await(children: Sequence[Child], wait_s: float) -> None:
    """Wait at most `wait_s` for them to exit, and read: they may have more to say than a pipe holds."""
    until = time.monotonic() + wait_s
    while (left_s := until - time.monotonic()) > 0:
        children = [child for child in children if child._process.poll() is None]
        if not children:
            return
        _read(children, min(left_s, POLL_S))


def _descendants(pid: int) -> list[Any]:
    """The processes that `pid` has started, with theirs, whatever sessions they are in (`psutil.Process`)."""
    import psutil

    with suppress(psutil.Error):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        import psutil

        with suppress(psutil.Error):
            process.kill()


def connect() -> Callable[[Mapping[str, Any]], None]:
    """Begin as a child of ours. Returns a function that writes an event.

    The events have stdout for themselves: what libraries print there goes to stderr. If the parent ends, however that
    may be, this process leaves like on SIGTERM, with SystemExit. After FOLLOW_S it is killed, with what it started.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if stat.S_ISFIFO(os.fstat(0).st_mode):  # a person may have started it, too
        signal.signal(signal.SIGTERM, _leave)
        threading.Thread(target=_follow, daemon=True, name="follow").start()

    def emit(event: Mapping[str, Any]) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    return emit


def _leave(*_: object) -> NoReturn:
    raise SystemExit(int(ExitCode.PREEMPTED))


def _follow() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock a thread must not hold when Python ends
    atexit.register(lambda: _kill(_descendants(os.getpid())))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(FOLLOW_S)
    _kill(_descendants(os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL)
