"""Every device at work, within a budget of time: rates against the catalogue's, results against what they must be.

The devices are loaded by a child process (`aifx.health.stress.child`) that tells each finding as it has it. Where it
hangs or dies, what was measured is kept, the device is named, and the rest goes on without it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal

from aifx.core.redaction import redact
from aifx.health.jax_probe import BESIDE_A_JOB, HELD
from aifx.health.stress.record import ALL, Ended, Record

START_LIMIT_S = 120.0
"""For JAX to list its devices: large machines take their time."""

GRACE_S = 5.0
MOST_RESTARTS = 8
CHILD = "aifx.health.stress.child"


def budget_of(level: str, num_devices: int) -> float:
    """Seconds that a level may take: a start, with room for compilation."""
    return {"quick": 45.0, "full": 240.0}[level] + {"quick": 15.0, "full": 60.0}[level] * num_devices


def collect(
    level: Literal["quick", "full"],
    budget_s: float,
    tell: Callable[[str], None] = lambda _: None,
    child: str = CHILD,
) -> dict[str, Any]:
    """The fact `stress`: what was measured within `budget_s`, all of it also after Ctrl-C (`ended` is "interrupted").

    Args:
        tell: told in a few words what begins.
        child: the module that loads the devices.
    """
    record, began = Record(level), time.monotonic()
    until = began + budget_s
    ended: Ended = "interrupted"
    why, without = "", set[str]()
    with _sampled(record):
        try:
            for _ in range(MOST_RESTARTS):
                arguments = [
                    level,
                    f"{max(until - time.monotonic(), 0):.1f}",
                    str(record.next_step),
                    ",".join(sorted(without)),
                ]
                ended, why = _run([sys.executable, "-P", "-m", child, *arguments], record, until, tell)
                stuck = {name for name, told in record.devices.items() if told["state"] == "hung"} - without
                if ended in ("hung", "died") and record.running is not None:
                    where = str(record.running["device"])
                    record.fail(where, "hung" if ended == "hung" else "failed", f"{record.running['what']}: {why}")
                    stuck |= {where} - {ALL}
                without |= stuck
                if not stuck or without >= record.devices.keys() or time.monotonic() > until:
                    break
                record.running = None
        except KeyboardInterrupt:
            ended, why = "interrupted", "by Ctrl-C or SIGTERM"
            running = record.running
            record.left_out.append(f"{running['what']} of {running['device']}, and what follows" if running else "all")
    if ended == "finished" and record.left_out:
        ended, why = "out of time", f"the budget was {budget_s:g} s"
    return record.facts(ended, why, time.monotonic() - began)


def _run(command: list[str], record: Record, until: float, tell: Callable[[str], None]) -> tuple[Ended, str]:
    """One child to its end."""
    environ = {**os.environ, **BESIDE_A_JOB}
    with tempfile.TemporaryFile() as said:
        # In a session of its own, so that Ctrl-C reaches us alone and what is known can be told.
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, env=environ, start_new_session=True
        )
        assert child.stdout is not None
        lines = _lines(child.stdout)
        limit_s, began = START_LIMIT_S, time.monotonic()
        try:
            while True:
                left_s = until + GRACE_S - time.monotonic()
                try:
                    line = lines.get(timeout=max(min(limit_s + GRACE_S, left_s), 0.0))
                except queue.Empty:
                    return _silent(record, time.monotonic() - began, is_over=left_s <= limit_s + GRACE_S)
                if line is None:
                    why = _last_words(child, said)
                    return "held" if not record.devices and HELD.search(why) else "died", why
                event = json.loads(line)
                record.take(event, time.monotonic())
                limit_s = GRACE_S
                if event["event"] == "begin":
                    began = time.monotonic()
                    limit_s = float(event["limit_s"])
                    tell(event["what"] if event["device"] == ALL else f"{event['device']}: {event['what']}")
                elif event["event"] == "end":
                    return "finished", ""
                elif event["event"] == "hung":
                    return "hung", event["what"]
        finally:
            _end(child)


def _silent(record: Record, waited_s: float, is_over: bool) -> tuple[Ended, str]:
    """What it means that nothing was heard so long, at the end of the budget or of the step's own limit."""
    why = f"nothing was heard for {waited_s:.0f} s"
    if record.running is None:
        return ("out of time", why) if record.devices else ("hung", f"JAX gave no devices: {why}")
    if is_over and waited_s < float(record.running.get("suspect_s", 0.0)):
        return "out of time", str(record.running["what"])
    return "hung", why


def _lines(stream: IO[bytes]) -> queue.Queue[bytes | None]:
    """What comes, line by line; None at its end."""
    found: queue.Queue[bytes | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            found.put(line)
        found.put(None)

    threading.Thread(target=read, daemon=True, name="stress").start()
    return found


def _last_words(child: subprocess.Popen[bytes], said: IO[bytes]) -> str:
    try:
        code = child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        return "it closed its output"
    said.seek(max(said.seek(0, os.SEEK_END) - 4000, 0))
    words = said.read().decode("utf-8", "replace").strip().splitlines()
    ended = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit {code}"
    return f"{ended}: {redact(words[-1])[:200]}" if words else ended


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill it. One that hangs in the kernel does not die of this, and is not waited for."""
    child.kill()
    threading.Thread(target=child.wait, daemon=True).start()


@contextmanager
def _sampled(record: Record) -> Iterator[None]:
    """Temperatures and clocks go into the record meanwhile."""
    sampler = subprocess.Popen(
        [sys.executable, "-P", "-m", "aifx.health.stress.sensors"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert sampler.stdout is not None
    stream = sampler.stdout

    def read() -> None:
        for line in stream:
            record.samples.append((time.monotonic(), json.loads(line)))

    threading.Thread(target=read, daemon=True, name="sensors").start()
    try:
        yield
    finally:
        _end(sampler)
