"""The results of `aifx kernels`: the implementation of each call of a project, measurements, and removed files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aifx.config import Config
from aifx.core.files import make_private
from aifx.core.project import Project
from aifx.core.results import Result
from aifx.kernels import choice
from aifx.machine.compilation_cache import enable_compilation_cache
from jax_kernels.implementations import current_device
from jax_kernels.op import Choice, Op
from jax_kernels.ops import read_key
from jax_kernels.trials import TrialProcess
from jax_kernels.tuning import TuningCache, check_or_time, is_current, tune
from jax_kernels.versions import limits_here

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenCall:
    """A call and the implementation that it runs as.

    Attributes:
        shapes: the call for people.
        config: block sizes of the implementation.
        source: digest of the implementation's code; empty if it is not known.
        parts: the programs that make the call: "training", "evaluation", "generation".
    """

    op: str
    shapes: str
    call: Mapping[str, Any]
    implementation: str
    config: Mapping[str, int]
    reason: str
    source: str
    parts: tuple[str, ...]

    @classmethod
    def of(cls, op: Op, call: Any, chosen: Choice, parts: tuple[str, ...] = ()) -> ChosenCall:
        return cls(op=op.name, shapes=str(call), call=asdict(call), parts=parts, **chosen.document())


@dataclass(frozen=True)
class Limit:
    """An implementation that the installed JAX cannot express; of every op if `op` is None."""

    implementation: str
    op: str | None
    reason: str


@dataclass(frozen=True)
class ExplainedKernels(Result):
    """The document that `aifx kernels explain --json` prints."""

    device: str
    jax_cannot: list[Limit]
    ops: list[ChosenCall]


@dataclass(frozen=True)
class CandidateTiming:
    """The time of one candidate, or why it failed. `backward_s` is None if training does not make the call."""

    implementation: str
    config: Mapping[str, int]
    forward_s: float | None
    backward_s: float | None
    failure: str | None


@dataclass(frozen=True)
class TunedCall(ChosenCall):
    """A call with its winner and the candidates that were measured."""

    timings: list[CandidateTiming]


@dataclass(frozen=True)
class TunedKernels(Result):
    """The document that `aifx kernels tune --json` prints."""

    device: str
    ops: list[TunedCall]
    kept_in: str


@dataclass(frozen=True)
class MeasuredKernels(Result):
    """The document that `aifx kernels ls --json` prints."""

    device: str
    path: str
    winners: list[ChosenCall]


@dataclass(frozen=True)
class ClearedKernels(Result):
    """The document that `aifx kernels clear --json` prints: the files that were removed."""

    removed: list[str]


def explain(project: Project, config: Config) -> ExplainedKernels:
    """The implementation that each op of a new run would use on this device."""
    enable_compilation_cache()
    calls = choice.project_calls(project, config)
    limits = [Limit(limit.implementation, limit.op, limit.reason) for limit in limits_here()]
    chosen = [ChosenCall.of(found.op, found.call, found.choice, found.parts) for found in calls]
    return ExplainedKernels(current_device().kind, limits, chosen)


def tune_project(
    project: Project, config: Config, *, on_call: Callable[[TunedCall], None] = lambda _: None
) -> TunedKernels:
    """Measure the candidates for each call of the project's programs on this device, and keep the winners.

    `on_call` is called after each call is measured.
    """
    device, calls, log = choice.project_calls_isolated(project, config)
    for record in log:
        logging.getLogger(record.name).handle(record)
    cache = TuningCache(choice.winners_path(), device)
    make_private(cache.path.parent)
    tuned = []
    with TrialProcess(check_or_time) as trials:
        for found in calls:
            logger.info("%s: %s", found.op.name, found.call)
            is_trained = "training" in found.parts
            winner, timings = tune(found.op, found.call, device, trials, is_trained=is_trained)
            cache.put(found.op, found.call, winner)
            row = ChosenCall.of(found.op, found.call, winner, found.parts)
            candidates = [CandidateTiming(**{**vars(one), "config": dict(one.config)}) for one in timings]
            tuned.append(TunedCall(**vars(row), timings=candidates))
            on_call(tuned[-1])
    return TunedKernels(device.kind, tuned, str(cache.path))


def measured() -> MeasuredKernels:
    """The winners that were measured on this kind of device under this JAX."""
    device = current_device()
    cache = TuningCache(choice.winners_path(), device)
    rows = []
    for key, winner in cache.choices().items():
        try:
            op, call = read_key(key)
        except (KeyError, TypeError):  # of another version of aifx
            continue
        if not is_current(op, winner):
            winner = replace(winner, reason=f"not used, its code has changed: {winner.reason}")
        rows.append(ChosenCall.of(op, call, winner))
    return MeasuredKernels(device.kind, str(cache.path), rows)


def measurements() -> list[Path]:
    """The files that hold measurements, of every kind of device and every JAX."""
    return sorted(p for p in choice.winners_path().glob("*") if p.suffix in (".json", ".damaged"))
