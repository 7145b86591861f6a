"""A clock for ranks of collective tests that other work on this machine does not slow.

A rank of a test imports this and calls `install`. Then time passes only while a planted delay sleeps, and TICK_S at
each look at the clock: ranks without a delay are equally fast.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

from aifx.health import collective_tcp, collective_worker

INSTALL = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import rank_clock
rank_clock.install()
"""
"""The first lines of a program that is a rank."""

TICK_S = 1e-4
PAUSE_S = 0.002


def install() -> None:
    clock, pause = SimpleNamespace(now=0.0), asyncio.sleep

    def read() -> float:
        clock.now += TICK_S
        return clock.now

    async def sleep(delay_s: float) -> None:
        clock.now += delay_s
        await pause(PAUSE_S)

    collective_tcp.time = SimpleNamespace(perf_counter=read, monotonic=time.monotonic)
    collective_tcp.asyncio.sleep = sleep
    collective_tcp.HELLO_S = collective_worker.LATE_S = 120.0
