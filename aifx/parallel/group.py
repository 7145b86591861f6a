"""The processes of a job as one of them sees them, their progress, and a job of one process. Imports no jax."""

from __future__ import annotations

import functools
import math
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from aifx.config.sections import ProcessesSection
from aifx.core.errors import AifxError, ConfigError, ExitCode

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


class PeerLost(AifxError):
    """Another process of the job is gone, so that this one must end too."""

    exit_code = ExitCode.PREEMPTED


class Disagreement(ConfigError):
    """The processes of a job differ; raised in all of them."""


@dataclass(frozen=True)
class Limits:
    """Limits of the waits of a process for the others.

    Attributes:
        connect_s: until all have started.
        silence_s: for a sign of life.
        stuck_s: for one that has not come as far as another, and reports no progress.
    """

    connect_s: float = 300.0
    silence_s: float = 30.0
    stuck_s: float = 1800.0

    @classmethod
    def of(cls, section: ProcessesSection) -> Limits:
        return cls(section.connect_timeout_s, section.silent_timeout_s, section.stuck_timeout_s)

    @property
    def beat_s(self) -> float:
        return min(self.silence_s / 5, 1.0)


class Group:
    """The processes of a job, seen from one of them. This class is a job of one process, which waits for nobody.

    All processes of a job make the same calls of `gather`, `broadcast`, `first_then_others` and `finish` in one order.
    """

    index = 0
    size = 1
    error: PeerLost | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's records."""
        return self.index == 0

    @functools.cached_property
    def progress(self) -> Progress:
        """The progress of this process."""
        return Progress()

    def mark(self, phase: str, kind: Kind | None = None) -> None:
        """This process has begun `phase` ("step 12"). All processes mark the same phases in one order.

        Args:
            kind: of the phase; by default that of the one before.
        """
        self.progress.advance(phase, kind)

    def work_on(self) -> None:
        """This process has done a part of its phase, and is not stuck in it."""
        self.progress.work_on()

    def everyone(self) -> dict[int, tuple[str, Progress]]:
        """Host and progress of each process whose progress this one knows: all of them in process 0."""
        return {self.index: (socket.gethostname(), self.progress)}

    def gather(self, value: Any) -> list[Any]:
        """The `value` (JSON) of each process, by index, in process 0; an empty list in the others."""
        return [value]

    def broadcast(self, value: Any = None) -> Any:
        """The `value` (JSON) of process 0."""
        return value

    def total(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The sum of each count over the processes, in all of them."""
        found: Counter[str] = Counter()
        for each in self.gather(dict(counts)):
            found.update(each)
        return dict(self.broadcast(found))

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.gather(None)
        self.broadcast()

    @contextmanager
    def first_then_others(self) -> Iterator[None]:
        """Process 0 runs the block, then the others run it at the same time."""
        if not self.is_first:
            self.broadcast()
        yield
        if self.is_first:
            self.broadcast()

    def loss_behind(self, error: BaseException) -> PeerLost | None:
        """The loss that made a call fail, if one did. A collective fails no later than the group hears of it."""
        return None

    def fail(self, error: AifxError) -> None:
        """This process is about to end for `error`, and the others must end too."""

    def hold(self, error: AifxError) -> None:
        """Let process 0 find out what helps against `error`, while all others wait for its end. Returns in process 0.

        Schedulers end all processes of a job as soon as one of them has failed.
        """

    def finish(self) -> None:
        """Wait until all processes have finished. From then on none of them watches another."""
