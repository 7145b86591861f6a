"""The events of a run: in its ledger, and to its hooks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aifx.core.errors import EnvironmentFault
from aifx.core.project import RunDirectory
from aifx.core.statuses import ProcessStatus
from aifx.runs.records import Ledger, TimeAccount
from aifx.training.hook import Hook
from aifx.training.records import Record, RunInfo, TrainResult

logger = logging.getLogger(__name__)


class EventDispatcher(Hook):
    """The ledger of a run, and the hooks that hear its events. What a hook raises ends the run.

    `hooks` get `start`, `on_event` and `stop` from here. The loop calls `on_record` and their other methods: it has
    them in its own list as well (`assemble` in `run.py`). Process 0 of a job keeps the ledger; others get no `run`.
    """

    def __init__(self, run: RunDirectory | None, hooks: Sequence[Hook], account: TimeAccount | None = None) -> None:
        self.account = account or TimeAccount()
        self.hooks = list(hooks)
        self._ledger = None if run is None else Ledger(run.events, self.account)
        self._lock = threading.RLock()
        self._ended = False
        self.has_started = False
        """Whether training began, so that the process can have changed the run."""

    def start(self, info: RunInfo) -> None:
        self.has_started = True
        for hook in self.hooks:
            hook.start(info)

    def on_record(self, record: Record) -> None:
        """Count the step, and write an event with the time account so far if one is due."""
        with self._lock:
            self.account.step_done(record.step)
            if self._ledger is not None and self.account.is_due:
                self._ledger.write("progress")

    def event(self, name: str, **fields: Any) -> None:
        """Report an event to the ledger and the hooks. It is in the ledger when this returns."""
        with self._lock:
            if self._ledger is not None:
                self._ledger.write(name, **fields)
            for hook in self.hooks:
                hook.on_event(name, fields)

    def warn(self, text: str) -> None:
        """Log a warning, and record it as an event."""
        logger.warning(text)
        self.event("warning", text=text)

    def ended_abruptly(self, status: ProcessStatus | None, why: str) -> None:
        """Record that the process is about to end at once. Called from another thread, which must not wait for ours."""
        if not self._ended and self._ledger is not None:
            ended = {"status": status, "why": why} if status else {"status": "failed", "error": why}
            with suppress(EnvironmentFault, OSError):
                self._ledger.write("stop", **ended)

    def end(self, result: TrainResult | None, error: str | None = None, *, status: ProcessStatus | None = None) -> None:
        """Record the result, or what failed. The ledger has it before any hook may fail.

        Every hook is stopped, also one that was never started. The first error of a hook is raised, unless the run
        itself failed: then its own error counts.

        Args:
            status: of a run that failed and can go on when it is started again; by default it is "failed".
        """
        if self._ended:
            return
        self._ended = True
        failed: Exception | None = None
        if self._ledger is not None:
            failure = {"status": status, "why": error} if status else {"status": "failed", "error": error}
            ended = failure if result is None else result.end()
            try:
                self._ledger.write("stop", **ended)
                self._ledger.close()
            except (EnvironmentFault, OSError) as e:  # the disk may be what failed
                failed = e
        for hook in reversed(self.hooks):  # the log file is among the last, and has what the others log
            try:
                hook.stop(result)
            except Exception as e:  # the others are stopped all the same
                failed = failed or e
        if failed is not None and result is not None:
            raise failed
