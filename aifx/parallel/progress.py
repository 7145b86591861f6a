"""The progress of a process, alone or among those of a job, and which of them is stuck. Imports no jax."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["start", "compilation", "data", "step", "evaluation", "checkpoint"]
"""The kind of a phase, which decides how long it may go without progress."""


@dataclass
class Progress:
    """The progress of a process.

    Attributes:
        position: how many phases and calls of the group it has passed.
        phase: the last one that it began, and its kind.
        work: how often it has reported progress within a phase.
        moved_at: when `position` or `work` changed.
        waits: for all others, so that it cannot be the one that is stuck.
    """

    position: int = 0
    phase: str = "the start"
    kind: Kind = "start"
    work: int = 0
    moved_at: float = field(default_factory=time.monotonic)
    behind_since: float = math.inf
    waits: bool = False

    def advance(self, phase: str | None = None, kind: Kind | None = None) -> None:
        self.kind = kind or self.kind
        self.move(self.position + 1, self.phase if phase is None else phase, self.work)

    def work_on(self) -> None:
        self.move(self.position, self.phase, self.work + 1)

    def move(self, position: int, phase: str, work: int) -> None:
        if (position, work) != (self.position, self.work):
            self.moved_at = time.monotonic()  # first: another thread must not see the new position with the old time
            self.position, self.phase, self.work = position, phase, work


def find_stuck(everyone: Mapping[int, Progress], now: float, limit_s: float) -> Iterator[int]:
    """The processes that have been behind another, without going on, for longer than `limit_s`."""
    leading = max(progress.position for progress in everyone.values())
    for index, progress in everyone.items():
        is_behind = progress.position < leading and not progress.waits
        progress.behind_since = min(progress.behind_since, now) if is_behind else math.inf
        if is_behind and now - max(progress.behind_since, progress.moved_at) > limit_s:
            yield index
