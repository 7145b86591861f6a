"""A watch over the progress of a process: one that hangs writes a report, and ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from aifx.config.guards_section import GuardsSection
from aifx.core.progress import Progress as Activity
from aifx.core.progress import overhear
from aifx.parallel.group import Group

TICK_S = 0.25

AWAKE_S = 1.0
"""A thread that slept so much longer than it asked was stopped, with its process."""

SLOWER = 20.0
"""A step, or the wait for its batch, hangs if it takes so many times the usual step and guards.step_timeout_s."""


@dataclass(frozen=True)
class Hang:
    """A phase in which a process made no progress for longer than its limit."""

    phase: str
    idle_s: float
    limit_s: float
    setting: str

    def __str__(self) -> str:
        return f"no progress in {self.phase} for {self.idle_s:.0f} s ({self.setting}, limit {self.limit_s:.0f} s)"


class Watchdog:
    """Looks at the progress of this process while it is entered.

    The progress is that of `Group.mark`, and what long activities report (`aifx.core.progress`).

    Args:
        on_hang: called once, in the thread that watches.
    """

    def __init__(self, section: GuardsSection, group: Group, on_hang: Callable[[Hang], None]) -> None:
        self._section = section
        self._group = group
        self._on_hang = on_hang
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._num_steps = 0
        self._step_s: float | None = None  # the usual step's time
        self._overhearing = overhear(self._hear)

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

    def step_took(self, seconds: float) -> None:
        """Learn how long a step takes. The first one, which is slow, counts only until the second one is over."""
        self._num_steps += 1
        usual_s = self._step_s if self._num_steps > 2 else None
        self._step_s = seconds if usual_s is None else 0.9 * usual_s + 0.1 * seconds

    def limit(self) -> tuple[float, str]:
        """Of the present phase in seconds, and the setting that it comes from; infinite if there is none.

        The first step of a process also loads and tunes programs, so it has the limit of other phases.
        """
        section = self._section
        if self._group.progress.kind not in ("data", "step") or self._step_s is None:
            return section.hang_timeout_s or float("inf"), "guards.hang_timeout_s"
        limit_s = max(section.step_timeout_s, SLOWER * self._step_s) if section.step_timeout_s else float("inf")
        return limit_s, "guards.step_timeout_s"

    def _hear(self, activity: Activity | None) -> None:
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
