"""A run that has gone wrong: say where, keep what a post-mortem needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aifx.core.errors import AifxError, ExitCode
from aifx.core.files import replacing
from aifx.data.base import Batch, not_finite_input
from aifx.data.order import batch_number
from aifx.training.dispatcher import EventDispatcher
from aifx.training.records import RunInfo, TrainResult


@dataclass(eq=False)
class NotFinite(Exception):
    """The loss or the gradient of `step` is not finite, and the run ends; `batch` is what it was computed from.

    Attributes:
        in_a_row: steps that were not finite, up to this one.
        left_out: the batches that no step takes.
    """

    step: int
    loss: float
    grad_norm: float
    batch: Batch
    in_a_row: int = 1
    left_out: Sequence[int] = ()

    def __str__(self) -> str:
        return f"step {self.step}"


def report_divergence(
    found: NotFinite, info: RunInfo, checkpoints: Sequence[int], dispatcher: EventDispatcher, *, is_first: bool = True
) -> TrainResult:
    """Keeps the batch in the run's folder, records that, and returns the result with the error to show.

    Args:
        checkpoints: their steps, in order. None holds an update that was not finite.
        is_first: of several processes, the one that keeps its part of the batch.
    """
    path = info.run.path / f"not-finite-step-{found.step}.npz"
    if is_first:
        with replacing(path, below=info.run.path) as file:
            np.savez(file, **found.batch)  # type: ignore[arg-type]
    rows = len(next(iter(found.batch.values())))
    dispatcher.event("nan", step=found.step, loss=found.loss, grad_norm=found.grad_norm, batch=path.name, rows=rows)
    numbers = f"loss {found.loss}, gradient norm {found.grad_norm}"
    kept, again = _way_out(found.step - found.in_a_row + 1, info.run.name, checkpoints)
    number = batch_number(found.step, found.left_out)
    saved = f"its batch (training batch {number}, rows 0 to {rows - 1}) is in {path}; {kept}"
    if in_batch := not_finite_input(found.batch):
        why, hint = f"{in_batch}\n{saved}", f"{again}    (once the data is corrected)"
    else:
        why, hint = saved, f"{again} --set optimizer.learning_rate={info.config.optimizer.learning_rate / 2:g}"
    what = f"step {found.step} of run {info.run.name!r} is not finite: {numbers}"
    if found.in_a_row > 1:
        why = f"the {found.in_a_row - 1} steps before it were not finite either (guards.max_in_a_row)\n{why}"
    return TrainResult(
        run=info.run,
        status="diverged",
        step=found.step,
        num_steps=info.num_steps,
        unit=info.unit,
        resumed_from=info.first_step or None,
        error=AifxError(what, why, hint, exit_code=ExitCode.VERDICT),
    )


def _way_out(step: int, run: str, checkpoints: Sequence[int]) -> tuple[str, str]:
    """A text on what is kept of a run whose `step` was not finite, and the command that goes on, without the change.

    The same run would come to the same step again. The checkpoint just before it holds the parameters that it was
    computed from, which may be the ones that are wrong.
    """
    if not checkpoints:
        return "nothing was saved before", f"aifx train --run {run}"
    newest = checkpoints[-1]
    if newest < step - 1:
        return f"the checkpoint of step {newest} is kept", f"aifx train --run {run} --fork NAME --step {newest}"
    holds = f"checkpoint of step {newest} holds the parameters that gave it"
    if len(checkpoints) == 1:
        return f"the only {holds}", "aifx train --run NAME"
    before = checkpoints[-2]
    kept = f"the newest {holds}; the one before is of step {before}"
    return kept, f"aifx train --run {run} --fork NAME --step {before}"
