"""The choice of a run's checkpoint: a step, or the best or the last one."""

from __future__ import annotations

from typing import Literal, TypeAlias

from aifx.core.errors import UsageError

StepChoice: TypeAlias = int | Literal["best", "last"]


def parse_step(step: int | str | None) -> StepChoice | None:
    """The checkpoint that a caller or a command line names. Raises UsageError for anything else."""
    if step is None or isinstance(step, int):
        return step
    if step == "best" or step == "last":
        return "best" if step == "best" else "last"
    if not step.isascii() or not step.isdigit():
        raise UsageError(f"{step!r} is not a step", "a step is a number, best or last", "aifx ckpt ls")
    return int(step)
