"""What a run tells of itself, to everyone who listens: records and events, from any thread, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aifx.core.errors import EnvironmentFault
from aifx.core.project import RunDirectory
from aifx.core.statuses import ProcessStatus
from aifx.runs.records import Ledger
from aifx.training.records import Observer, Record, RunInfo, TrainResult


class EventDispatcher:
    """The ledger and the observers of a run. What an observer raises ends the run: its record is not lost unseen."""

    def __init__(self, run: RunDirectory, observers: Sequence[Observer]) -> None:
        self._ledger = Ledger(run.events)
        self._observers = list(observers)
        self._lock = threading.RLock()
        self._ended = False

    def start(self, info: RunInfo) -> None:
        for observer in self._observers:
            observer.start(info)

    def record(self, record: Record) -> None:
        with self._lock:
            for observer in self._observers:
                observer.record(record)

    def event(self, name: str, **fields: Any) -> None:
        """In the ledger when this returns."""
        with self._lock:
            self._ledger.write(name, **fields)
            for observer in self._observers:
                observer.event(name, fields)

    def ended_abruptly(self, status: ProcessStatus, why: str) -> None:
        """The process is about to end where it stands. Called from another thread, which must not wait for ours."""
        if not self._ended:
            with suppress(EnvironmentFault, OSError):
                self._ledger.write("stop", status=status, why=why)

    def end(self, result: TrainResult | None, error: str | None = None) -> None:
        """The last word: what the result was, or what failed. The ledger has it before any observer may fail.

        Every observer is stopped, also one that never heard of a start. What the first of them raises is raised, but
        for a run that has failed: what failed first is what is told.
        """
        if self._ended:
            return
        self._ended = True
        if result is None:
            with suppress(EnvironmentFault, OSError):  # the disk may be what failed
                self._ledger.write("stop", status="failed", error=error)
        else:
            self._ledger.write("stop", **result.end())
        self._ledger.close()
        failed: Exception | None = None
        for observer in reversed(self._observers):  # the log file hears what the others say at last
            try:
                observer.stop(result)
            except Exception as e:  # the others are stopped all the same
                failed = failed or e
        if failed is not None and result is not None:
            raise failed
