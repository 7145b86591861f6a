"""Evaluation while a run trains: validation with early stopping, and text that a language model writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from aifx.config import Config
from aifx.config.best_by import LOSS, BestBy, best_by_of, score_of
from aifx.core.errors import CheckpointError
from aifx.core.plurals import mean_of
from aifx.core.project import RunDirectory
from aifx.core.stop_signals import StopSignals
from aifx.data.text import TokenFormat
from aifx.evaluation.held_out import evaluate_split
from aifx.kernels.choice import run_choices
from aifx.parallel.group import Group
from aifx.programs.build import Programs
from aifx.programs.state import TrainState
from aifx.serving.generate import continue_prompt
from aifx.specs import Params
from aifx.training.dispatcher import EventDispatcher
from aifx.training.hook import Hook, Stop
from aifx.training.hooks.stop_vote import Interrupted, StopVote
from aifx.training.records import Record

WARN_AFTER = 4
"""Validations in a row without improvement."""


@dataclass(frozen=True)
class Progress:
    """The results of validation so far. Part of each checkpoint, so that early stopping survives a stop."""

    best_loss: float | None = None  # at the best step
    best_step: int | None = None
    since_best: int = 0  # validations without improvement
    last_loss: float | None = None
    best_value: float | None = None  # of the metric that ranks checkpoints, the mean over `best_over` validations
    best_over: int | None = None  # at most `checkpoint.best_over`: the first ones have fewer before them
    thresholds: Mapping[str, float] = field(default_factory=dict)  # by class, that the last validation chose
    recent: Sequence[float] = field(default_factory=list)  # the metric at the last `checkpoint.best_over` validations

    def after(self, step: int, metrics: Mapping[str, Any], best_by: BestBy, best_over: int = 1) -> Progress:
        """After a validation at `step`."""
        loss, value = LOSS.value(metrics), best_by.value(metrics)
        recent = self.recent if value is None else [*self.recent, value][-best_over:]
        score = score_of(best_by, metrics, recent[:-1])
        if score is not None and (self.best_value is None or best_by.is_better(score.value, self.best_value)):
            return Progress(loss, step, 0, loss, score.value, len(recent), recent=recent)
        return replace(self, since_best=self.since_best + 1, last_loss=loss, recent=recent)

    def warning(self, config: Config, before: Progress) -> str | None:
        """The warning that this validation calls for, if any. `before` is the progress until then.

        aifx warns of the first loss in a row that is not finite, and once in a row of WARN_AFTER without improvement.
        """
        is_first = before.last_loss is not None or before.since_best == 0
        if self.last_loss is None and is_first:
            return "the loss of the validation is not finite: look for NaN in the data of the validation split"
        limit = config.train.early_stopping
        if self.since_best != WARN_AFTER or self.best_value is None or 0 < limit <= WARN_AFTER:
            return None
        best = f"the best is {self.best_value:.4f}, of step {self.best_step}{mean_of(self.best_over)}"
        text = f"{WARN_AFTER} validations in a row without a better {best_by_of(config).metric}: {best}"
        return text if limit else f"{text}; train.early_stopping would end such a run"


class Validation(Hook):
    """Measures the validation split at the pauses of `train.validate_every`, and adds that to the record.

    Attributes:
        progress: what the validations have found.
        improved: whether the last pause had the best validation so far.
        pending: the record of a step whose validation a signal prevented. The next process validates it.
        made_up: whether the last pause was for the pending validation of the process before.
    """

    all_processes = True

    def __init__(
        self,
        programs: Programs,
        frozen: Params,
        stop: StopVote,
        group: Group,
        dispatcher: EventDispatcher,
        progress: Progress,
        pending: Record | None = None,
    ) -> None:
        self.progress = progress
        self.improved = self.made_up = False
        self.pending = pending
        self._programs = programs
        self._frozen = frozen
        self._stop = stop
        self._group = group
        self._dispatcher = dispatcher

    def pauses(self, step: int) -> bool:
        train = self._programs.config.train
        return train.validate_every > 0 and (step % train.validate_every == 0 or step == train.num_steps)

    def at_pause(self, state: TrainState, record: Record) -> Record | None:
        self.made_up, self.improved, self.pending = self.pending is not None, False, None
        if not self.pauses(record.step):
            return None
        try:
            with self._dispatcher.account.spending("evaluation"):
                return replace(record, validation=self._validate(state, record.step))
        except Interrupted:
            self.pending = record
            self._stop.decide()
            return None

    def _validate(self, state: TrainState, step: int) -> dict[str, Any]:
        """The metrics of the validation split. Raises Interrupted."""
        self._group.mark(f"the validation after step {step}", "evaluation")
        started = time.perf_counter()
        config, objective = self._programs.config, self._programs.objective
        metrics = evaluate_split(
            self._programs,
            state.evaluated,
            self._frozen,
            "validation",
            num_batches=config.train.validation_batches or None,
            before_batch=self._stop.interruption(),
        )
        before = self.progress
        progress = before.after(step, metrics, best_by_of(config), config.checkpoint.best_over)
        self.progress = replace(progress, thresholds=objective.thresholds(metrics))
        self.improved = self.progress.best_step == step
        duration_s = time.perf_counter() - started
        self._dispatcher.event(
            "validation", step=step, loss=metrics["loss"], improved=self.improved, duration_s=duration_s
        )
        if (warning := self.progress.warning(config, before)) is not None:
            self._dispatcher.warn(warning)
        return metrics


class EarlyStopping(Hook):
    """Ends the run once `train.early_stopping` validations went by without improvement; 0 of them never do."""

    all_processes = True

    def __init__(self, limit: int, validation: Validation) -> None:
        self._limit = limit
        self._validation = validation

    @property
    def is_due(self) -> bool:
        return 0 < self._limit <= self._validation.progress.since_best

    def at_pause(self, state: TrainState, record: Record) -> Stop | None:
        return Stop() if self.is_due else None


logger = logging.getLogger(__name__)


class Sampling(Hook):
    """Continues `log.sample`, or answers it in a chat, after each validation, with the same random numbers each time.

    It changes no number of the training.
    """

    def __init__(
        self, run: RunDirectory, programs: Programs, frozen: Params, signals: StopSignals, dispatcher: EventDispatcher
    ) -> None:
        config = programs.config
        self._programs = replace(programs, kernels=run_choices(run, config.kernels))
        self._frozen = frozen
        self._prompt = config.log.sample or ""
        update = {"prompt": self._prompt, "max_tokens": config.log.sample_tokens}
        self._settings = config.generate.model_copy(update=update)
        self._signals = signals
        self._dispatcher = dispatcher

    def at_pause(self, state: TrainState, record: Record) -> None:
        if record.validation is not None:
            with self._dispatcher.account.spending("evaluation"):
                text = self._sample(state.evaluated)
                self._dispatcher.event("sample", step=record.step, prompt=self._prompt, text=text)

    def _sample(self, params: Params) -> str:
        """The text that follows the prompt, cut short if a stop is requested meanwhile."""
        programs = self._programs
        token_format, seed = programs.task.format, programs.config.train.seed
        assert isinstance(token_format, TokenFormat)
        prompt = token_format.sample_prompt(self._prompt)
        pieces = continue_prompt(programs, params, self._frozen, self._settings, seed=seed, prompt_ids=prompt)
        try:
            return "".join(takewhile(lambda _: not self._signals.requested, pieces))
        except CheckpointError as error:  # what to do about it is for `[guards]`
            logger.warning(f"no sample: {error.why}")
            return ""
