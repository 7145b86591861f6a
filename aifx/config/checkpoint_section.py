"""`[checkpoint]`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aifx.config.sections import (
    RESUME_SAFE,
    Conflict,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    setting,
)


class CheckpointSection(Section):
    """Checkpoints on disk: how often they are written, and which are kept."""

    every: NonNegativeInt = setting(
        200, "Steps between checkpoints; 0 saves only at the end and when stopped.", RESUME_SAFE
    )
    mtbf_hours: PositiveFloat | None = setting(
        None,
        "Mean time between failures that the run's machines have, for the advice of `aifx runs show`.",
        RESUME_SAFE,
    )
    keep_last: PositiveInt = setting(2, "Newest checkpoints that are kept.", RESUME_SAFE)
    keep_best: NonNegativeInt = setting(1, "Best checkpoints that are also kept, by `best_by`.", RESUME_SAFE)
    best_by: str = setting(
        "auto",
        'What makes a checkpoint the best: "max" or "min" and a validation metric, such as "max accuracy". '
        "auto: the metric of the first gate, otherwise the loss; fixed when the run starts.",
    )
    best_over: PositiveInt = setting(1, "Validations whose mean ranks a checkpoint: its own, and those just before.")
    asynchronous: bool = setting(True, "Write while training goes on.", RESUME_SAFE)
    stop_timeout_s: PositiveFloat = setting(
        30.0, "Bound on saving after a signal; then the process exits.", RESUME_SAFE
    )
    disk_timeout_s: NonNegativeFloat = setting(
        300.0, "Bound on waiting for a disk that is full or fails, once a run has nothing left to do.", RESUME_SAFE
    )
    local_dir: str | None = setting(
        None, "Folder on a quick disk of this host, such as /dev/shm, for checkpoints in between.", RESUME_SAFE
    )
    local_every: PositiveInt = setting(20, "Steps between checkpoints in `local_dir`.", RESUME_SAFE)

    def conflicts(self, config: Any) -> Iterator[Conflict]:
        if self.local_dir is not None and not self.local_dir.startswith("/"):
            yield Conflict(("checkpoint.local_dir",), "it must be an absolute path", f"it is {self.local_dir!r}")
