"""A run that has gone wrong: say where, keep what a post-mortem needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aifx.core.errors import AifxError, ExitCode
from aifx.core.files import replacing
from aifx.data.base import Batch
from aifx.training.meter import NotFinite
from aifx.training.observers import EventDispatcher
from aifx.training.records import RunInfo, TrainResult


def report_divergence(
    found: NotFinite, info: RunInfo, checkpoints: Sequence[int], dispatcher: EventDispatcher, *, is_first: bool = True
) -> TrainResult:
    """Keeps the batch in the run's folder, tells the ledger, and returns the result with the error to show.

    Args:
        checkpoints: their steps, in order; each was saved after a finite step.
        is_first: of several processes, the one that keeps its part of the batch.
    """
    path = info.run.path / f"not-finite-step-{found.step}.npz"
    if is_first:
        with replacing(path, below=info.run.path) as file:
            np.savez(file, **found.batch)  # type: ignore[arg-type]
    rows = len(next(iter(found.batch.values())))
    dispatcher.event("nan", step=found.step, loss=found.loss, grad_norm=found.grad_norm, batch=path.name, rows=rows)
    numbers = f"loss {found.loss}, gradient norm {found.grad_norm}"
    kept, again = _way_out(found.step, info.run.name, checkpoints)
    saved = f"its batch (training batch {found.step - 1}, rows 0 to {rows - 1}) is in {path}; {kept}"
    if in_batch := not_finite_input(found.batch):
        why, hint = f"{in_batch}\n{saved}", f"{again}    (once the data is corrected)"
    else:
        why, hint = saved, f"{again} --set optimizer.learning_rate={info.config.optimizer.learning_rate / 2:g}"
    what = f"step {found.step} of run {info.run.name!r} is not finite: {numbers}"
    return TrainResult(
        run=info.run,
        status="diverged",
        step=found.step,
        num_steps=info.num_steps,
        unit=info.unit,
        resumed_from=info.first_step or None,
        error=AifxError(what, why, hint, exit_code=ExitCode.VERDICT),
    )


def not_finite_input(batch: Batch) -> str | None:
    """Where a batch holds a NaN or an infinity ("batch has NaN in 'y', row 12"), None if it holds none."""
    for name, array in batch.items():
        values = np.asarray(array)
        # ml_dtypes' types (bfloat16) have kind V.
        if values.dtype.kind not in "fcV":
            continue
        values = values.astype(np.float32) if values.dtype.kind == "V" else values
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            first = values[tuple(bad[0])]
            rows = sorted({int(place[0]) for place in bad}) if values.ndim else []
            where = f", row {rows[0]}" if rows else ""
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            return f"batch has {'NaN' if np.isnan(first) else 'an infinity'} in {name!r}{where}{more}"
    return None


def _way_out(step: int, run: str, checkpoints: Sequence[int]) -> tuple[str, str]:
    """What is kept of a run whose `step` was not finite, and the command that goes on, to be told what to change.

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
