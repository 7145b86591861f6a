"""What a process that hangs was doing: `hang-<time>.txt` in the run's folder."""

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
from pathlib import Path
from typing import Any

import psutil

from aifx.core.files import open_file, replace_file
from aifx.core.processes import run as run_program
from aifx.core.project import RunDirectory
from aifx.parallel.group import Group
from aifx.training.watchdog import Hang

LAST_LINES, LAST_BYTES = 20, 1 << 16
PART_S = 3.0
"""Limit of each part of the report: what it asks may hang as well."""

DRIVER_S = 2.5
WRITE_S = 5.0


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
    """What `read` returns, or `otherwise` if that takes longer; an error is described."""
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
