"""Disturbances of a measurement: other load, a quota that was hit, other clocks, throttling."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from aifx.machine.nvml import FAULT_REASONS, open_gpus, read_clocks

logger = logging.getLogger(__name__)

OTHER_LOAD = 0.05
"""Share of the machine's cores: if others use more, the report has a note."""

CLOCK = 0.05
THROTTLED = 0.02

SLOWED = ("software_power_cap", *FAULT_REASONS)
"""Reasons for a lower clock than a load would get, faults or not."""


@contextmanager
def watch_machine(*, watch_others: bool = True) -> Iterator[None]:
    """Around a launch: compares the counters of before and after, and logs what disturbed it.

    Args:
        watch_others: other processes disturb it; not if one of them is what is measured.
    """
    started, cores = time.monotonic(), psutil.cpu_count() or 1
    busy_s, own_s, throttled_s = _busy_s(), _own_s(), _throttled_s()
    clock_mhz, gpus = _clock_mhz(), _gpu_clocks()
    try:
        yield
    finally:
        elapsed = max(time.monotonic() - started, 1e-3)
        others = (_busy_s() - busy_s - (_own_s() - own_s)) / elapsed / cores
        if watch_others and others > OTHER_LOAD:
            logger.warning(f"other processes used {others:.0%} of this machine's cores: figures may be too slow")
        throttled = (_throttled_s() - throttled_s) / elapsed
        if throttled > THROTTLED:
            logger.warning(f"the control group's CPU quota held it back for {throttled:.0%} of the time")
        now_mhz = _clock_mhz()
        if clock_mhz and now_mhz and abs(now_mhz / clock_mhz - 1) > CLOCK:
            logger.warning(f"the CPU's clock went from {clock_mhz:.0f} to {now_mhz:.0f} MHz")
        for name, (sm_mhz, reasons) in _gpu_clocks().items():
            before = gpus.get(name, (sm_mhz, []))[0]
            if reasons:
                logger.warning(f"{name} was slowed by {', '.join(reasons)} at the end ({before} to {sm_mhz} MHz)")


def _busy_s() -> float:
    """Seconds that all cores together have worked; on a virtual machine, what others took from it among them."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _own_s() -> float:
    """This process's, and its ended children's."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _throttled_s() -> float:
    """Seconds for which the control group was throttled (cgroup v2, cpu.stat); 0 without a group or a quota."""
    try:
        text = Path("/sys/fs/cgroup/cpu.stat").read_text()
    except OSError:
        return 0.0
    values = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
    return int(values.get("throttled_usec", 0)) / 1e6


def _clock_mhz() -> float | None:
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):
        return None
    return frequency.current if frequency and frequency.current else None


def _gpu_clocks() -> dict[str, tuple[int, list[str]]]:
    """The clock of each NVIDIA GPU, and the reasons that slow it; empty without a driver."""
    found = {}
    for name, ask in open_gpus().items():
        now = read_clocks(ask)
        if now["clock_mhz"] is not None and now["reasons"] is not None:
            found[name] = now["clock_mhz"], [reason.replace("_", " ") for reason in now["reasons"] if reason in SLOWED]
    return found
