"""The checkpoint of a run that a command opens."""

from __future__ import annotations

import logging

from aifx.checkpoint.manifest import list_checkpoints, step_directories
from aifx.config import Config
from aifx.core.errors import CheckpointError
from aifx.core.project import RunDirectory
from aifx.core.steps import StepChoice

logger = logging.getLogger(__name__)


def choose_step(
    run: RunDirectory, config: Config, choice: StepChoice | None, *, reported: set[str] | None = None
) -> int:
    """Return the step to open; "best" is the newest if no checkpoint was validated.

    Reports the damaged checkpoints that cannot be the best one, but for what is in `reported`, which keeps it for the
    next call. Raises CheckpointError.
    """
    steps = list(step_directories(run.checkpoints))
    if not steps:
        what = f"no checkpoint in {run.checkpoints}"
        raise CheckpointError(what, "the run saved nothing yet", f"aifx train --run {run.name}")
    if isinstance(choice, int):
        if choice not in steps:
            what = f"run {run.name} has no checkpoint of step {choice}"
            raise CheckpointError(what, f"it has {', '.join(map(str, steps))}", f"aifx ckpt ls --run {run.name}")
        return choice
    infos = list_checkpoints(run.checkpoints) if (choice or config.eval.checkpoint) == "best" else []
    best = next((info.step for info in infos if info.is_best), None)
    if best is None:
        return steps[-1]
    for info in infos:
        if info.damaged:
            why = f"the checkpoint of step {info.step} is damaged ({info.damaged}); it cannot be the best one"
            if reported is None or why not in reported:
                logger.warning(why)
            if reported is not None:
                reported.add(why)
    return best
