"""A run that has gone wrong: say where, keep what a post-mortem needs."""

from __future__ import annotations

import numpy as np

from aifx.errors import Diverged
from aifx.train.meter import NotFinite
from aifx.train.records import RunInfo, TrainResult
from aifx.train.story import Story


def report_divergence(found: NotFinite, info: RunInfo, latest: int | None, story: Story) -> TrainResult:
    """Keeps the batch in the run's folder, tells the ledger, and returns the result with the error to show.

    Args:
        latest: step of the latest checkpoint; it was saved after a finite step.
    """
    path = info.run.path / f"not-finite-step-{found.step}.npz"
    np.savez(path, **found.batch)  # type: ignore[arg-type]
    rows = len(next(iter(found.batch.values())))
    story.event("nan", step=found.step, loss=found.loss, grad_norm=found.grad_norm, batch=path.name, rows=rows)
    kept = "nothing was saved before" if latest is None else f"the checkpoint of step {latest} is kept"
    numbers = f"loss {found.loss}, gradient norm {found.grad_norm}"
    slower = f"--set optimizer.learning_rate={info.config.optimizer.learning_rate / 2:g}"
    error = Diverged(
        f"step {found.step} of run {info.run.name!r} is not finite: {numbers}",
        f"its batch (training batch {found.step - 1}, rows 0 to {rows - 1}) is in {path}; {kept}",
        f"aifx train --run {info.run.name} {slower}" + (" --fork NAME" if latest is not None else ""),
    )
    return TrainResult(
        run=info.run,
        status="diverged",
        step=found.step,
        num_steps=info.num_steps,
        unit=info.unit,
        resumed_from=info.first_step or None,
        error=error,
    )
