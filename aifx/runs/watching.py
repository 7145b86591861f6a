"""A run that another process trains, read again and again."""

from __future__ import annotations

from typing import Any

from aifx.checkpoint.manifest import step_directories
from aifx.core.json_values import number
from aifx.core.project import RunDirectory
from aifx.machine.catalogue import utilization
from aifx.runs.reading import MetricsTail
from aifx.runs.status import run_status


class WatchedRun:
    """What was read of a run so far: its status, the losses of its steps, and its last record."""

    def __init__(self, run: RunDirectory) -> None:
        self.losses: list[float | None] = []
        self.last: dict[str, Any] = {}
        self._run = run
        self._tail = MetricsTail(run.metrics)
        self.look()

    def look(self) -> bool:
        """Read what is new. Returns whether the run is alive."""
        # The status first: once it says that the run has ended, its last record is there to be read.
        self.status = run_status(self._run)
        records, restart = self._tail.read()
        if restart:
            self.losses.clear()
        self.losses += [number(record.get("loss")) for record in records]
        self.last = records[-1] if records else self.last
        return self.status.alive

    @property
    def utilization(self) -> str:
        """ "MFU 31.0% (52.4%)" of the last step; empty if it is not known."""
        return utilization(number(self.last.get("mfu")), number(self.last.get("ceiling_fraction")))

    @property
    def saved_step(self) -> int | None:
        """The step of the last checkpoint."""
        return max(step_directories(self._run.checkpoints), default=None)

    @property
    def time_to_go_s(self) -> float | None:
        """At the speed of the last step; None if that is not known, or how many steps there are."""
        step_s, num_steps = number(self.last.get("step_time_s")), self.status.num_steps
        return step_s * (num_steps - self.status.step) if step_s and num_steps else None
