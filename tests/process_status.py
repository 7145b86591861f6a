"""The status of a process that a test signals, as Linux shows it."""

from __future__ import annotations

from pathlib import Path

import psutil


def is_stopped(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_STOPPED


def has_received(pid: int, signum: int) -> bool:
    """Whether no such signal is pending: a second one would be the same."""
    return not any(_masks(pid, name) >> (signum - 1) & 1 for name in ("SigPnd", "ShdPnd"))


def catches(pid: int, signum: int) -> bool:
    """Whether the process has a handler of the signal."""
    return bool(_masks(pid, "SigCgt") >> (signum - 1) & 1)


def _masks(pid: int, name: str) -> int:
    """A field of signals: man 5 proc."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith(f"{name}:"))
