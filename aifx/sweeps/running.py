"""The trials of a sweep as processes: each `aifx train` of a run of its own, as many at once as there are slots."""

from __future__ import annotations

import logging
import os
import signal
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from aifx.cluster.local import KILL_S, POLL_S, visible_gpus
from aifx.config.best_by import BestBy, parse_best_by
from aifx.config.toml import literal
from aifx.core.errors import ExitCode, UsageError
from aifx.core.lifecycle import exit_code_of
from aifx.core.parsing import parse_json
from aifx.core.processes import Child, Ended, aifx_command, pump
from aifx.core.project import Project, RunDirectory
from aifx.kinds import load_config
from aifx.runs.lock import holder, is_held
from aifx.runs.manage import change_tags
from aifx.runs.reading import MetricsTail
from aifx.sweeps.record import SweepFile, Trial
from aifx.sweeps.starting import config_file, make_trial, trial_overrides

logger = logging.getLogger(__name__)

PRUNED_TAG = "pruned"
LOOK_S = 0.5
"""Between two looks at the metrics of the trials that run."""


def slots(parallel: int | None, environ: Mapping[str, str]) -> list[dict[str, str]]:
    """The variables of each trial that runs at a time: its share of the GPUs.

    Args:
        parallel: how many; by default one per GPU, and one on a machine without GPUs.

    Raises UsageError if there are fewer GPUs.
    """
    gpus = visible_gpus(environ)
    count = parallel or len(gpus) or 1
    if not gpus:
        return [{}] * count
    if count > len(gpus):
        why = f"{len(gpus)} GPUs are visible, and each trial takes one of its own"
        raise UsageError(f"--parallel {count} is too many", why, f"--parallel {len(gpus)}")
    each = len(gpus) // count
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[at * each : (at + 1) * each])} for at in range(count)]


class Metrics:
    """The validations of a trial's run, as its process writes them."""

    def __init__(self, run: RunDirectory, best_by: str) -> None:
        self._tail, self._best_by = MetricsTail(run.metrics), parse_best_by(best_by)
        self._curve: list[tuple[int, float]] = []
        self._is_whole = False

    def curve(self, *, may_grow: bool = True) -> Curve:
        """All validations so far."""
        if self._is_whole:
            return self._curve
        self._is_whole = not may_grow
        records, restart = self._tail.read()
        if restart:  # it has resumed from an earlier step
            self._curve.clear()
        for record in records:
            validation, step = record.get("validation"), record.get("step")
            value = self._best_by.value(validation) if isinstance(validation, Mapping) else None
            if value is not None and isinstance(step, int):
                self._curve.append((step, value))
        return self._curve


@dataclass
class Running:
    """A trial whose process runs."""

    trial: Trial
    child: Child
    slot: int
    num_steps: int
    pruning: Pruning | None = None


@dataclass
class Runner:
    """Runs the trials of a sweep that have not ended.

    Attributes:
        slots: variables of the trial in each.
    """

    project: Project
    file: SweepFile
    slots: Sequence[Mapping[str, str]]
    stack: ExitStack
    running: list[Running] = field(default_factory=list)
    stopped: list[Trial] = field(default_factory=list)
    failed: list[Trial] = field(default_factory=list)
    metrics: dict[int, Metrics] = field(default_factory=dict)
    awaited: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        sweep = self.file.sweep
        left = [number for number, trial in sorted(sweep.trials.items()) if not trial.is_done]
        self.queue = left + [number for number in range(1, sweep.num_trials + 1) if number not in sweep.trials]
        for trial in sweep.trials.values():
            self._watch(trial)

    def run(self, came: Sequence[int]) -> ExitCode:
        """Run all trials, until they have ended or a signal came (`collect_signals`). Returns how the command ends."""
        sent, looked = 0, 0.0
        while (self.queue and not came) or self.running:
            if not came:
                self._fill_slots()
            pump([one.child for one in self.running], POLL_S)
            if not self.running:
                time.sleep(POLL_S)  # a run is held by a process that is about to end
            fresh = came[sent:]
            for number in fresh:
                for one in self.running:
                    _send(one.child, number)
            sent += len(fresh)
            for one in [one for one in self.running if one.child.ended is not None]:
                self.running.remove(one)
                self._record_end(one)
            if self.file.sweep.prune and not came and time.monotonic() - looked >= LOOK_S:
                looked = time.monotonic()
                self._prune()
        if came:
            return exit_code_of(came[0])
        if self.failed:
            return ExitCode.UNABLE
        return ExitCode.PREEMPTED if self.stopped else ExitCode.OK

    def _watch(self, trial: Trial) -> None:
        self.metrics[trial.number] = Metrics(self.project.run(trial.run), self.file.sweep.design.best_by)

    def _fill_slots(self) -> None:
        free = [slot for slot in range(len(self.slots)) if slot not in {one.slot for one in self.running}]
        for number in list(self.queue):
            if not free:
                return
            # If the sweep is killed, the kernel sends its processes SIGTERM. They save first.
            trial = self.file.sweep.trials.get(number)
            if trial is not None and is_held(run := self.project.run(trial.run)):
                if number not in self.awaited:
                    logger.info(f"{trial.run}: waiting for {holder(run) or 'the process that trains it'}")
                self.awaited.add(number)
                continue
            self.queue.remove(number)
            self._start(trial or self._new_trial(number), free.pop(0))

    def _new_trial(self, number: int) -> Trial:
        trial = make_trial(self.file.sweep, self.file.name, number)
        self.file.append("trial", number=number, run=trial.run, values=trial.values)
        return trial

    def _start(self, trial: Trial, slot: int) -> None:
        self._watch(trial)
        design, run = self.file.sweep.design, self.project.run(trial.run)
        settings, file = trial_overrides(design, trial), config_file(design)
        run.path.mkdir(parents=True, exist_ok=True)
        change_tags(run, [self.file.name], [])
        argv = ["train", "--run", trial.run, "--json", *(() if file is None else ("--config", str(file)))]
        argv += [part for setting in settings for part in ("--set", setting)]
        # If this process is killed, the kernel stops its trials.
        command = aifx_command(*argv, ends_with=os.getpid())
        child = Child(command, env={**os.environ, **self.slots[slot]}, grace_s=KILL_S)
        num_steps = load_config(self.project, settings, file=file).train.num_steps
        self.running.append(Running(trial, self.stack.enter_context(child), slot, num_steps))
        logger.info(f"{trial.run}: {format_values(trial.values)}")

    def _prune(self) -> None:
        best_by = parse_best_by(self.file.sweep.design.best_by)
        grow = {one.trial.number for one in self.running}
        curves = {number: metrics.curve(may_grow=number in grow) for number, metrics in self.metrics.items()}
        for one in self.running:
            number = one.trial.number
            if one.pruning is not None:
                continue
            others = [curve for other, curve in curves.items() if other != number]
            if (pruning := judge(curves[number], others, best_by, one.num_steps)) is not None:
                one.pruning = pruning
                self.file.append("pruned", number=number, **vars(pruning))
                change_tags(self.project.run(one.trial.run), [PRUNED_TAG], [])
                _send(one.child, signal.SIGTERM)
                was = f"{best_by.metric} {pruning.value:.4f} at step {pruning.step}"
                logger.info(f"{one.trial.run}: pruned, {was}; the median of the others is {pruning.median:.4f}")

    def _record_end(self, one: Running) -> None:
        """Record how a trial ended; nothing if it is to be resumed."""
        ended, trial = one.child.ended, one.trial
        assert ended is not None
        answer = _answer(ended)
        status, error = str(answer.get("status")), _error(ended, answer)
        value, step = answer.get("best_value"), answer.get("best_step")
        if ended.code in (ExitCode.OK, ExitCode.VERDICT) and status in ("completed", "early_stopped", "diverged"):
            if one.pruning is not None:  # it was faster
                change_tags(self.project.run(trial.run), [], [PRUNED_TAG])
        elif one.pruning is not None:
            status, value, step, error = PRUNED_TAG, one.pruning.value, one.pruning.step, None
        elif ended.code in (ExitCode.PREEMPTED, ExitCode.INTERRUPTED, None):
            self.stopped.append(trial)
            logger.info(f"{trial.run}: stopped ({ended.how})")
            return
        else:
            status, value, step = "failed", None, None
            self.failed.append(trial)
        self.file.append("ended", number=trial.number, status=status, value=value, step=step, error=error)
        if status != PRUNED_TAG:
            reached = f", {value:.4f} at step {step}" if value is not None else ""
            logger.info(f"{trial.run}: {status.replace('_', ' ')}{reached}{f': {error}' if error else ''}")


def format_values(values: Mapping[str, Any]) -> str:
    """`optimizer.learning_rate=0.001 train.seed=0`."""
    return " ".join(f"{key}={literal(value)}" for key, value in values.items())


def _send(child: Child, number: int) -> None:
    child.send_signal(number)
    child.send_signal(signal.SIGCONT)  # so that a stopped process hears it


def _answer(ended: Ended) -> dict[str, Any]:
    """The document that the process printed; empty if it did not."""
    try:
        document = parse_json(ended.output)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _error(ended: Ended, answer: Mapping[str, Any]) -> str | None:
    """The reason that a trial has no value, in a line."""
    error = answer.get("error")
    if isinstance(error, Mapping):
        return ": ".join(str(error[part]).splitlines()[0] for part in ("what", "why") if error.get(part))
    return None if ended.succeeded else ended.why


Curve: TypeAlias = Sequence[tuple[int, float]]
"""Step and value of each validation, in order."""

LEAST_OTHERS = 5
"""Other trials that must have reached a step: Optuna's `n_startup_trials`."""

WARMUP_FRACTION = 0.25
"""Share of a trial's steps in which it is not judged: its learning rate may still rise."""


@dataclass(frozen=True)
class Pruning:
    """The reason to prune a trial: its best value up to `step` is worse than the median of the others'."""

    step: int
    value: float
    median: float


def judge(curve: Curve, others: Iterable[Curve], best_by: BestBy, num_steps: int) -> Pruning | None:
    """The reason to prune a trial at the earliest of its validations that gives one; None if it should go on.

    This is the median rule of Golovin et al. 2017, "Google Vizier: A Service for Black-Box Optimization", as Optuna's
    MedianPruner has it: a trial whose best value is worse than the median of the others' best values up to the same
    step is not worth its time. Other than successive halving, it needs no rungs: a trial is compared with all that have
    reached its step, whenever they ran.

    Args:
        curve: the trial's own.
        others: those of all other trials, whether they go on or have ended.
        num_steps: of the trial.
    """
    rivals = [other for other in others if other]
    for step, _ in curve:
        if not WARMUP_FRACTION * num_steps <= step < num_steps:
            continue
        reached = [best_until(other, step, best_by) for other in rivals if other[-1][0] >= step]
        values = [value for value in reached if value is not None]
        own = best_until(curve, step, best_by)
        if len(values) >= LEAST_OTHERS and own is not None:
            median = statistics.median(values)
            if best_by.is_better(median, own):
                return Pruning(step, own, median)
    return None


def best_until(curve: Curve, step: int, best_by: BestBy) -> float | None:
    """The best value of the validations up to a step; None if there is none."""
    values = [value for at, value in curve if at <= step]
    return (max(values) if best_by.direction == "max" else min(values)) if values else None
