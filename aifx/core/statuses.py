"""The statuses that a run can have."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, get_args

ProcessStatus: TypeAlias = Literal["completed", "early_stopped", "interrupted", "preempted", "diverged"]
"""The statuses of a training process that ended in order."""

Status: TypeAlias = Literal["running", ProcessStatus, "failed", "killed"]
"""The status of a run: a process holds it, or how its last process ended; "killed" if that recorded nothing."""

FINISHED: Final = ("completed", "early_stopped")
"""The statuses of a run that has nothing left to do."""

STOPPED: Final = ("interrupted", "preempted")
"""The statuses of a run that was stopped. It resumes when it is started again."""


def stop_status(value: Any) -> Status:
    """The status in a `stop` event; "failed" if it is not one that a process can end with."""
    known: tuple[ProcessStatus, ...] = get_args(ProcessStatus)
    return next((status for status in known if status == value), "failed")
