"""Child processes, within limits and gone with all that they started when their block ends.

    with Child.of_module("aifx.benchmarking.worker", request, silence_s=600) as child:
        for event in child.events():
            ...

A child has a session and a process group of its own, so that Ctrl-C reaches only this process, which decides what
becomes of it. What a child of aifx starts stays in its group, so that they end together. No thread reads in the
background: the caller that waits also reads.
"""

from __future__ import annotations

import io
import json
import math
import os
import selectors
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal, TypeAlias

from aifx.core.lifecycle import follow, leave_on_sigterm, num_acted_on
from aifx.core.parsing import parse_json
from aifx.core.redaction import redact

PROGRAM = "import sys; sys.argv[0] = 'aifx'; from aifx.commands.main import main; main()"

MAX_BYTES = 32 << 20  # of output that nobody has taken yet
MAX_ERROR_BYTES = 1 << 20  # of stderr, whose end is kept
CHUNK = 1 << 16
POLL_S = 0.25  # between looks whether a child has exited whose output something else holds open
EXIT_S = 0.002  # the same for one that has closed its output
REAP_S = 1.0  # a process in uninterruptible sleep outlives SIGKILL, and is not waited for longer

_is_child = False  # of aifx, after `connect`

Cut = Literal["", "silence", "limit", "output", "stopped"]


@dataclass(frozen=True)
class Ended:
    """The end of a child.

    Attributes:
        code: its exit code; None if a signal ended it, or if it hangs in the kernel.
        last_lines: the end of what it wrote to stderr.
        output: what it wrote to stdout, without the lines that were taken.
        cut: the limit that it exceeded and was ended for; "stopped" if its block ended first.
    """

    code: int | None
    signal: int | None
    last_lines: tuple[str, ...]
    output: bytes
    duration_s: float
    cut: Cut = ""

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
        return signal_text(self.signal) if self.signal else f"exit {self.code}"

    @property
    def why(self) -> str:
        return f"{self.how}: {self.last_line}" if self.last_line else self.how


def signal_text(number: int) -> str:
    """ "signal 9 (Killed)"."""
    try:
        return f"signal {number} ({signal.strsignal(number)})"
    except ValueError:  # a number that no signal has
        return f"signal {number}"


class Child:
    """A process that this one has started. `ended` is None while it runs.

    If its block is left, it is ended: Ctrl-C and SIGTERM reach it as SIGTERM, or as SIGKILL without a grace.
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
        holds: int | None = None,
    ) -> None:
        """Start it. Raises OSError if it cannot be started.

        Args:
            name: for the caller, who may have many.
            silence_s: it is ended if it writes nothing to stdout for so long. May be changed while it runs.
            limit_s: it is ended after so long.
            grace_s: between SIGTERM and SIGKILL when it is ended; with 0 it is killed at once.
            follows: its stdin is a pipe that closes when this process ends; otherwise /dev/null.
            holds: a descriptor that it inherits, such as one with a lock, also if this process is killed.
        """
        self.name, self.silence_s = name, silence_s
        self.ended: Ended | None = None
        self._cut: Cut = ""
        self._owns_group = not _is_child
        self._began = self._last_output = time.monotonic()
        self._until = self._began + limit_s
        self._signals = iter([(signal.SIGTERM, grace_s), (signal.SIGKILL, REAP_S)][not grace_s :])
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        self._process = subprocess.Popen(
            argv, env=env, cwd=cwd, stdin=pipe if follows else null, stdout=pipe, stderr=pipe,
            start_new_session=self._owns_group, pass_fds=() if holds is None else (holds,),
        )  # fmt: skip
        self._out, self._error = bytearray(), bytearray()
        self._fresh = 0  # bytes of stderr that nobody has taken
        streams = (self._process.stdout, self._out), (self._process.stderr, self._error)
        self._streams: dict[IO[bytes], bytearray] = {stream: into for stream, into in streams if stream is not None}
        for stream in self._streams:
            os.set_blocking(stream.fileno(), False)

    @classmethod
    def of_module(cls, module: str, *arguments: str, **options: Any) -> Child:
        """A module of aifx as a program, which begins with `connect` and ends with this process."""
        # -P, since the working directory may hold a module of the same name.
        return cls([sys.executable, "-P", "-m", module, *arguments], follows=True, **options)

    def __enter__(self) -> Child:
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        _end([self])

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects that it writes to stdout, one per line, until it has ended."""
        while self.ended is None:
            pump([self])
            yield from self.take_events()

    def take_events(self) -> Iterator[dict[str, Any]]:
        """Yield the JSON objects that have been read since the last call."""
        for line in self.take_lines():
            with suppress(ValueError):
                if isinstance(event := parse_json(line), dict):
                    yield event

    def take_lines(self, max_bytes: int = MAX_BYTES) -> list[bytes]:
        """The whole lines that have been read since the last call, each cut to `max_bytes`."""
        *lines, rest = bytes(self._out).split(b"\n")
        self._out[:] = rest[:max_bytes]
        return [line[:max_bytes] for line in lines]

    def take_output(self) -> bytes:
        """The bytes of stdout that have been read since the last call."""
        taken = bytes(self._out)
        self._out.clear()
        return taken

    def take_error_lines(self) -> list[bytes]:
        """The whole lines of stderr that have been read since the last call. `Ended` has their end as well."""
        begin = max(len(self._error) - self._fresh, 0)
        lines, newline, rest = bytes(self._error[begin:]).rpartition(b"\n")
        if self.ended is not None and rest:  # the last line has no end
            lines, newline, rest = lines + newline + rest, b"\n", b""
        self._fresh = len(rest)
        return lines.split(b"\n") if newline else []

    def write(self, data: bytes) -> None:
        """Write to the stdin of a child that follows, which has to read it. Raises BrokenPipeError if it has ended."""
        stdin = self._process.stdin
        if stdin is None or stdin.closed:
            raise BrokenPipeError
        stdin.write(data)
        stdin.flush()

    def wait(self) -> Ended:
        """Wait for its end, and read until then."""
        while self.ended is None:
            pump([self])
        return self.ended

    def send_signal(self, number: int) -> None:
        """Send a signal to it alone, not to what it started."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _check(self) -> None:
        """Note its end if it has exited. Take the next step towards that if it has exceeded a limit."""
        now = time.monotonic()
        if self._process.poll() is not None:
            self._close()
        elif len(self._out) > MAX_BYTES and not self._cut:
            self._stop("output")
        elif now >= self._until:
            self._stop("limit")
        elif now >= self._last_output + self.silence_s:
            self._stop("silence")

    def _stop(self, cut: Cut) -> None:
        """Send the next signal of its end."""
        self._cut = self._cut or cut
        number, wait_s = next(self._signals, (None, 0.0))
        if number is None:  # it hangs in the kernel
            self._close()
        elif number == signal.SIGKILL:
            self._kill()
        else:
            self.send_signal(number)
        self.silence_s, self._until = math.inf, time.monotonic() + wait_s

    def _kill(self) -> None:
        self.send_signal(signal.SIGKILL)
        if self._owns_group:
            with suppress(ProcessLookupError, PermissionError):  # nothing of it is left
                os.killpg(self._process.pid, signal.SIGKILL)

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
            self._fresh += len(part)
            del into[:-MAX_ERROR_BYTES]
        elif len(into) <= MAX_BYTES:
            into += part
            self._last_output = time.monotonic()
        return bool(part)

    def _close(self) -> None:
        """Note its end, with what its pipes still hold, and end what it has left behind."""
        self._kill()
        for stream in list(self._streams):
            for _ in range(MAX_ERROR_BYTES // CHUNK):  # something that it started may go on writing
                if not self._read(stream):
                    break
            stream.close()
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):  # of what it has not read
                self._process.stdin.close()
        code = self._process.poll()
        exit_code, number = (None, -code) if code is not None and code < 0 else (code, None)
        lines = tuple(self._error.decode("utf-8", "replace").strip().splitlines())
        duration_s = time.monotonic() - self._began
        self.ended = Ended(exit_code, number, lines, bytes(self._out), duration_s, self._cut)


def aifx_command(*arguments: str, ends_with: int | None = None) -> list[str]:
    """The argv of `aifx ARGUMENTS` by this Python, whatever the PATH has.

    Args:
        ends_with: the kernel sends it SIGTERM when its parent, the process of this number, ends.
    """
    follow = "" if ends_with is None else f"from aifx.core.lifecycle import end_with; end_with({ends_with}); "
    # -P, since the working directory may hold a module of the same name.
    return [sys.executable, "-P", "-c", follow + PROGRAM, *arguments]


Apart: TypeAlias = "subprocess.Popen[bytes]"
"""A process in a group of its own, which outlives this one."""

KILLED = 128 + signal.SIGKILL
"""The exit code that a shell reports of a process that was killed."""


def start_apart(argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, holds: int) -> Apart:
    """Start a process group that outlives this process. Its streams are /dev/null. Raises OSError.

    Args:
        holds: a descriptor that it inherits, such as one with a lock.
    """
    null = subprocess.DEVNULL
    return subprocess.Popen(
        argv, env=dict(env), cwd=cwd, pass_fds=(holds,), stdin=null, stdout=null, stderr=null, start_new_session=True
    )


def end_group(group: int, *, at_once: bool = False) -> None:
    """Send SIGTERM, or SIGKILL with `at_once`, to a process group, which may have ended."""
    with suppress(OSError):
        os.killpg(group, signal.SIGKILL if at_once else signal.SIGTERM)


def run(argv: Sequence[str], *, given_up: Callable[[], bool] = lambda: False, **options: Any) -> Ended:
    """Run a program to its end; `options` are those of `Child`. Raises OSError if it cannot be started.

    It is ended as soon as `given_up` returns True, which is asked each POLL_S.
    """
    with Child(argv, **options) as child:
        while child.ended is None and not given_up():
            pump([child])
    assert child.ended is not None
    return child.ended


def run_many(children: Iterable[Child], at_once: int, wait_s: float = math.inf) -> Generator[Child | None]:
    """Yield each child when it has ended, and None when none has for `wait_s` or POLL_S.

    `contextlib.closing` ends those that still run. A child is taken from `children`, and so started, when fewer than
    `at_once` run.
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


def pump(children: Iterable[Child], wait_s: float = math.inf) -> None:
    """Read what children have written, after waiting for `wait_s` or POLL_S at most, and note those that have ended.
    One that exceeds a limit gets SIGTERM, then SIGKILL with all of its group."""
    running = [child for child in children if child.ended is None]
    due = min((min(child._until, child._last_output + child.silence_s) for child in running), default=0.0)
    wait_s = min(wait_s, due - time.monotonic(), POLL_S if all(child._streams for child in running) else EXIT_S)
    with selectors.DefaultSelector() as selector:
        for child in running:
            for stream in child._streams:
                selector.register(stream, selectors.EVENT_READ, child)
        for key, _ in selector.select(max(wait_s, 0.0)):
            key.data._read(key.fileobj)
    for child in running:
        child._check()


def _end(children: Sequence[Child]) -> None:
    """End those that run, and wait for it: a second Ctrl-C kills them at once, also where it raises no exception."""
    running = [child for child in children if child.ended is None]
    acted_on = num_acted_on()
    try:
        for child in running:
            child._stop("stopped")
        while running:
            pump(running)
            running = [child for child in running if child.ended is None]
            if num_acted_on() > acted_on:
                _kill(running)
    except BaseException:
        _kill(running)
        raise


def _kill(children: Iterable[Child]) -> None:
    for child in children:
        child._kill()


def connect() -> Callable[[Mapping[str, Any]], None]:
    """Begin as a child of aifx. Returns a function that writes an event.

    The events have stdout for themselves: what libraries print there goes to stderr. If the parent ends in whatever
    way, this process leaves with SystemExit as on SIGTERM. After FOLLOW_S its group is killed.
    """
    # Not through sys.stdin, whose lock a thread must not hold when Python ends.
    channel = begin_child(lambda: os.read(0, 1))

    def emit(event: Mapping[str, Any]) -> None:
        channel.write(f"{json.dumps(event)}\n".encode())
        channel.flush()

    return emit


def begin_child(read: Callable[[], object], *, at_once: bool = False) -> BinaryIO:
    """Begin as a child of aifx that is sent something, otherwise as `connect`. Returns the former stdout.

    Args:
        read: takes, in a thread, what comes from descriptor 0, and returns at its end: the parent has ended.
        at_once: the child is killed then.
    """
    global _is_child
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a killed child would lose what it has printed
    if stat.S_ISFIFO(os.fstat(0).st_mode):  # a person may have started it, too
        _is_child = True
        leave_on_sigterm()
        follow(read, at_once=at_once)
    return channel
