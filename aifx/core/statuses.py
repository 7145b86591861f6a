"""The statuses that a run can have."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, get_args

ProcessStatus: TypeAlias = Literal["completed", "early_stopped", "interrupted", "preempted", "diverged"]
"""How a training process ends in order."""

Status: TypeAlias = Literal["running", ProcessStatus, "failed", "killed"]
"""How a run is: a process holds it, the last one ended in order or with an error, or it ended without a word."""

FINISHED: Final = ("completed", "early_stopped")
"""Of a run that has nothing left to do."""

STOPPED: Final = ("interrupted", "preempted")
"""Of a run that was told to stop, and goes on when it is started again."""

STATUSES: tuple[str, ...] = get_args(Status)


def stop_status(value: Any) -> Status:
    """The status in a `stop` event; "failed" if it is not one that a process can end with."""
    known: tuple[ProcessStatus, ...] = get_args(ProcessStatus)
    return next((status for status in known if status == value), "failed")
