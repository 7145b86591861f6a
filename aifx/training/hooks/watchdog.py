"""A watch over the progress of a process: one that hangs writes `hang-<time>.txt` into the run's folder, and ends."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from aifx.config.sections import GuardsSection
from aifx.core.files import open_file, replace_file
from aifx.core.processes import run as run_program
from aifx.core.progress import Progress as Activity
from aifx.core.progress import overhear
from aifx.core.project import RunDirectory
from aifx.data.base import Batch
from aifx.parallel.group import Group
from aifx.training.hook import Hook
from aifx.training.records import Record

TICK_S = 0.25

AWAKE_S = 1.0
"""A thread that slept so much longer than it asked was stopped, with its process."""

SLOWER = 20.0
"""A step, or the wait for its batch, hangs if it takes so many times the usual step and guards.step_timeout_s."""

LAST_LINES, LAST_BYTES = 20, 1 << 16
PART_S = 3.0
"""Limit of each part of the report: what it asks may hang as well."""

DRIVER_S = 2.5
WRITE_S = 5.0


@dataclass(frozen=True)
class Hang:
    """A phase in which a process made no progress for longer than its limit."""

    phase: str
    idle_s: float
    limit_s: float
    setting: str

    def __str__(self) -> str:
        return f"no progress in {self.phase} for {self.idle_s:.0f} s ({self.setting}, limit {self.limit_s:.0f} s)"


class Watchdog(Hook):
    """Looks at the progress of this process while it is entered.

    The progress is that of `Group.mark`, and what long activities report (`aifx.core.progress`).

    Args:
        on_hang: called once, in the thread that watches.
    """

    all_processes = True

    def __init__(self, section: GuardsSection, group: Group, on_hang: Callable[[Hang], None]) -> None:
        self._section = section
        self._group = group
        self._on_hang = on_hang
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._num_steps = 0
        self._step_s: float | None = None  # the usual step's time
        self._overhearing = overhear(self._activity_reported)

    def __enter__(self) -> Watchdog:
        self._group.mark("the start", "start")
        self._overhearing.__enter__()
        self._thread = threading.Thread(target=self._watch, name="aifx-watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._overhearing.__exit__(None, None, None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def after_step(self, record: Record, batch: Batch) -> None:
        """Learn how long a step takes. The first one, which is slow, counts only until the second one is over."""
        self._num_steps += 1
        usual_s = self._step_s if self._num_steps > 2 else None
        self._step_s = record.step_time_s if usual_s is None else 0.9 * usual_s + 0.1 * record.step_time_s

    def limit(self) -> tuple[float, str]:
        """The limit of the present phase in seconds, and the setting that it comes from; infinite if there is none.

        The first step of a process also loads and tunes programs, so it has the limit of other phases.
        """
        section = self._section
        if self._group.progress.kind not in ("data", "step") or self._step_s is None:
            return section.hang_timeout_s or float("inf"), "guards.hang_timeout_s"
        limit_s = max(section.step_timeout_s, SLOWER * self._step_s) if section.step_timeout_s else float("inf")
        return limit_s, "guards.step_timeout_s"

    def _activity_reported(self, activity: Activity | None) -> None:
        self._group.work_on()

    def _watch(self) -> None:
        progress = self._group.progress
        ticked_at = awake_since = time.monotonic()
        while not self._over.wait(TICK_S):
            now = time.monotonic()
            if now - ticked_at > TICK_S + AWAKE_S:  # the process was stopped itself: it has not hung
                awake_since = now
            ticked_at = now
            limit_s, setting = self.limit()
            idle_s = now - max(progress.moved_at, awake_since)
            if idle_s > limit_s:
                return self._on_hang(Hang(progress.phase, idle_s, limit_s, setting))
        return None


def report_hang(hang: Hang, run: RunDirectory, group: Group) -> Path | None:
    """Write the report. Returns its file, or None if the disk does not take it in time."""
    others = f"-process-{group.index}" if group.size > 1 else ""
    path = run.path / f"hang-{time.strftime('%Y%m%d-%H%M%S')}{others}.txt"
    text = "".join(_parts(hang, run, group))

    def write() -> Path:
        replace_file(path, text.encode("utf-8", "replace"), below=run.path)
        return path

    written: Path | None = _within(WRITE_S, write, None)
    return written


def _parts(hang: Hang, run: RunDirectory, group: Group) -> Iterator[str]:
    sections: dict[str, Callable[[], str]] = {
        "Threads": _threads,
        "Last events": lambda: _last_lines(run.events),
        "Last records": lambda: _last_lines(run.metrics),
        "Processes of the job": lambda: _everyone(group),
        "Devices": _devices,
        "NVIDIA driver": _driver,
        "Child processes": _children,
        "Machine": _machine,
    }
    yield f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}: {hang}\n"
    yield f"run {run.name}, process {group.index} of {group.size} (pid {os.getpid()}) on {socket.gethostname()}\n"
    for title, read in sections.items():
        yield f"\n== {title}\n{_within(PART_S, read, 'no answer in time').rstrip()}\n"


def _within(limit_s: float, read: Callable[[], Any], otherwise: Any) -> Any:
    """The result of `read`, or `otherwise` if it takes longer than `limit_s`; an error is described."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(read())
        except Exception as error:  # the rest of the report is still of use
            found.append(otherwise if otherwise is None else f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit_s)
    return found[0] if found else otherwise


def _threads() -> str:
    """The stack of each thread, the latest call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read()
    for ident, name in names.items():
        text = text.replace(f"hread 0x{ident:016x}", f"hread {name} 0x{ident:016x}")
    return text


def _last_lines(path: Path) -> str:
    with open(open_file(path), "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - LAST_BYTES, 0))
        return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-LAST_LINES:])


def _everyone(group: Group) -> str:
    now = time.monotonic()
    return "\n".join(
        f"process {index} on {host}: {progress.phase} for {now - progress.moved_at:.0f} s, position {progress.position}"
        for index, (host, progress) in sorted(group.everyone().items())
    )


def _devices() -> str:
    import jax

    return "\n".join(f"{device}: {json.dumps(device.memory_stats() or {})}" for device in jax.local_devices())


def _driver() -> str:
    ended = run_program([sys.executable, "-P", "-m", "aifx.machine.nvml"], limit_s=DRIVER_S)
    return ended.output.decode("utf-8", "replace") if ended.succeeded else ended.cut or ended.why


def _children() -> str:
    children = psutil.Process().children(recursive=True)
    return "\n".join(f"pid {c.pid} {c.status()}: {' '.join(c.cmdline())[:200]}" for c in children) or "none"


def _machine() -> str:
    memory = psutil.virtual_memory()
    load = ", ".join(f"{x:.2f}" for x in psutil.getloadavg())
    return f"load {load}; {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB of memory available"
