"""Guards of a run: a step that went wrong is reported, and the run goes on, goes back, or ends."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from aifx.config.sections import GuardsSection
from aifx.core.errors import AifxError, ExitCode
from aifx.core.files import replacing
from aifx.data.base import Batch, not_finite_input
from aifx.data.order import batch_number
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook
from aifx.training.records import Record, RunInfo, TrainResult

LEAST_SPREAD = 0.01
"""Least deviation of losses, relative to the median: if they hardly differ, each small change would be a spike."""

LEAST_OF_START = 0.0025
"""Least deviation relative to the run's first loss: near zero, a loss of many times the median undoes nothing yet.

A language model ends with about a quarter of its first loss. There it equals LEAST_SPREAD, and below it is larger.
"""

START = 8
"""The first losses of a run, whose median is the one that it began with."""

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation, of a normal distribution."""


@dataclass(frozen=True)
class GuardState:
    """The facts that decisions about a step depend on. Part of each checkpoint, so that a resumed run decides alike.

    Attributes:
        in_a_row: steps up to this one whose update was not applied.
        left_out: numbers of the batches that no step takes, in rising order.
        losses: of the last steps that were finite, the newest last.
        start: the median of the first START losses; None before.
        rollbacks: how often the run has gone back.
        restored: the step of the checkpoint that it last went back to.
    """

    in_a_row: int = 0
    left_out: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    start: float | None = None
    rollbacks: int = 0
    restored: int | None = None

    @classmethod
    def read(cls, document: Mapping[str, Any] | None) -> GuardState:
        """The state that `document` wrote."""
        found = document or {}
        lists = {name: tuple(found.get(name) or ()) for name in ("left_out", "losses")}
        return cls(**{f.name: found[f.name] for f in fields(cls) if f.name in found} | lists)

    def document(self) -> dict[str, Any]:
        return asdict(self)

    def after_rollback(self, fault: Rollback, restored: int) -> GuardState:
        """The state with which the run goes on from the checkpoint that has this one."""
        return replace(self, left_out=fault.left_out, rollbacks=fault.rollbacks + 1, restored=restored)


@dataclass(eq=False)
class Rollback(Exception):
    """The run is to go back to a checkpoint before the step `first`, and on without the batches at fault.

    Attributes:
        first: of the steps at fault, which end with `last`.
        batches: their batches.
        left_out: these, and the batches that were left out before.
        below: the checkpoint to take is of an earlier step than this one.
        rollbacks: how often the run has gone back before.
    """

    first: int
    last: int
    batches: tuple[int, ...]
    left_out: tuple[int, ...]
    below: int
    reason: str
    rollbacks: int

    def __str__(self) -> str:
        return f"steps {self.first} to {self.last}"


class Guard(Hook):
    """Judges each step of a run once its numbers are known, one step late.

    All processes of a job judge alike: the numbers that they judge by are the same in all of them.

    Args:
        rows: of a batch, by the process that reads them.
    """

    all_processes = True

    def __init__(
        self,
        section: GuardsSection,
        dispatcher: EventDispatcher,
        rows: Mapping[int, slice],
        state: GuardState | None = None,
    ) -> None:
        self.state = state or GuardState()
        self._section = section
        self._dispatcher = dispatcher
        self._rows = [(part.start, part.stop) for part in rows.values()]
        self._was_spike = False

    def after_step(self, record: Record, batch: Batch) -> None:
        """Report a step that went wrong. Raises NotFinite or Rollback if the run cannot go on from there."""
        if record.is_skipped:
            self._judge_skipped(record, batch)
        else:
            self._judge_loss(record)

    def _judge_skipped(self, record: Record, batch: Batch) -> None:
        section, in_a_row = self._section, self.state.in_a_row + 1
        self.state = replace(self.state, in_a_row=in_a_row)
        first = record.step - in_a_row + 1
        if section.non_finite != "stop":
            number, fault = batch_number(record.step, self.state.left_out), not_finite_input(batch)
            self._report_skip(record, number, fault)
            if in_a_row < section.max_in_a_row:
                return
            if section.non_finite == "roll_back" and (rollback := self._rollback(first, record.step, "non_finite")):
                raise rollback
        raise NotFinite(record.step, record.loss, record.grad_norm, batch, in_a_row, self.state.left_out)

    def _report_skip(self, record: Record, number: int, fault: str | None) -> None:
        self._dispatcher.event(
            "skip",
            step=record.step,
            reason="non_finite",
            batch=number,
            rows=self._rows,
            fault=fault,
            loss=record.loss,
            grad_norm=record.grad_norm,
        )
        numbers = f"loss {record.loss}, gradient norm {record.grad_norm}"
        text = f"the update of step {record.step} (training batch {number}) was not applied: {numbers}"
        self._dispatcher.warn(text + (f"; {fault}" if fault else ""))

    def _judge_loss(self, record: Record) -> None:
        section, losses = self._section, self.state.losses
        score = 0.0
        if section.spike != "off" and len(losses) >= section.spike_window:
            score = spike_score(record.loss, losses, self.state.start or 0.0, least=section.spike_score)
        if is_spike := score > section.spike_score:
            above = f"{score:.1f} deviations above the median {statistics.median(losses):.4g}"
            text = f"the loss of step {record.step} is a spike: {record.loss:.4g}, {above} of the {len(losses)} before"
            rollback = self._rollback(record.step, record.step, "spike") if section.spike == "roll_back" else None
            if rollback or not self._was_spike:
                self._dispatcher.warn(text)
            if rollback:
                raise rollback
        self._was_spike = is_spike
        kept = (*losses, record.loss)[-section.spike_window :] if section.spike != "off" else ()
        start = self.state.start
        if start is None and len(kept) >= START:
            start = statistics.median(kept[:START])
        self.state = replace(self.state, in_a_row=0, losses=kept, start=start)

    def _rollback(self, first: int, last: int, reason: str) -> Rollback | None:
        """The rollback that leaves out the batches of some steps; None if going back has not helped so far."""
        # As the training of PaLM did by hand: go back to a checkpoint before the spike, and leave out the batches at
        # fault. The same batches did no harm with other parameters, so it is the pair of both that has to be avoided
        # (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1).
        state = self.state
        if state.rollbacks >= self._section.max_rollbacks:
            return None
        # A checkpoint that gave nothing but faults, twice and with other batches, has the fault itself.
        is_suspect = first - 1 == state.restored
        if is_suspect and state.restored == 0:
            return None
        batches = tuple(batch_number(step, state.left_out) for step in range(first, last + 1))
        left_out = tuple(sorted({*state.left_out, *batches}))
        return Rollback(first, last, batches, left_out, first - 1 if is_suspect else first, reason, state.rollbacks)


def spike_score(loss: float, losses: Sequence[float], start: float = 0.0, *, least: float = 0.0) -> float:
    """The robust standard deviations by which `loss` exceeds the median of `losses`, of which there is at least one.

    The deviation is that of the median absolute deviation (Iglewicz and Hoaglin 1993), at least LEAST_SPREAD of the
    median and LEAST_OF_START of `start`.

    Args:
        start: the loss with which the run began.
        least: a score that is certain not to reach this one may be given as 0, which saves time.
    """
    # A mean and a standard deviation would be moved by the very spikes that they are to find: one loss of 1000 among
    # 50 hides the next ones. Up to half of the losses may be spikes before a median, or the median distance from it,
    # follows them. MAD_TO_SIGMA makes the score comparable with standard deviations of normal noise.
    middle = statistics.median(losses)
    above, floor = loss - middle, max(LEAST_SPREAD * abs(middle), LEAST_OF_START * abs(start), 1e-12)
    if least and above <= least * floor:
        return 0.0
    return above / max(_spread(losses, middle), floor)


def _spread(losses: Sequence[float], middle: float) -> float:
    return MAD_TO_SIGMA * statistics.median([abs(x - middle) for x in losses])


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
