"""The implementations of jax_kernels that a run's programs use: chosen once, kept in the run, used again at resume."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, NamedTuple

from aifx.config import Config
from aifx.config.project_errors import project_errors
from aifx.config.sections import KernelsSection
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.logs import log_to
from aifx.core.project import Project, RunDirectory, cache_path
from aifx.kernels.choices_file import read_kernel_choices
from aifx.parallel.layout import Layout, local_layout
from aifx.programs.build import Programs, build
from aifx.programs.program import Program
from aifx.programs.serving import SMALLEST_BUCKET, bucket, one_row
from aifx.tasks.registry import describe_or_open_task
from jax_kernels.dispatch import Choices
from jax_kernels.implementations import Device, current_device
from jax_kernels.op import Choice, Op
from jax_kernels.trials import Failure, TrialProcess
from jax_kernels.tuning import TuningCache

logger = logging.getLogger(__name__)

MAX_RECORDS = 1000
"""Most records that are kept of the log of another process."""


@dataclass
class RunChoices(Choices):
    """The choices of a run, to which its programs add while they are traced.

    Tracing writes no file. After it, the caller calls `collect`, and writes `entries` if some are new.

    Attributes:
        entries: those of kernels.json by kind of device, in the order in which they were made.
        kind: of this device.
    """

    entries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    kind: str = ""

    def collect(self) -> list[NewChoice]:
        """Add the choices that were made since the last call to `entries`, and return them.

        Entries are only added, so that the digest of the first ones, which checkpoints name, stays.
        """
        own = self.entries.setdefault(self.kind, [])
        before = _latest(own)
        new = [NewChoice(key, before.get(key), now) for key, now in list(self.made.items()) if before.get(key) != now]
        own += [{"call": choice.call, **choice.now.document()} for choice in new]
        return new


class NewChoice(NamedTuple):
    """A choice that a run made, and the one that the same call had `before`, which can no longer run it."""

    call: str
    before: Choice | None
    now: Choice

    def event(self) -> dict[str, Any]:
        """The fields of the event `kernel_replaced`."""
        assert self.before is not None
        return {"op": json.loads(self.call)["op"], "old": self.before.document(), "new": self.now.document()}


def run_choices(run: RunDirectory, kernels: KernelsSection) -> RunChoices:
    """The choices that a run made. New ones follow `[kernels]`, measurements on this kind of device, or a guess."""
    device = current_device()
    entries = read_kernel_choices(run)
    try:
        latest = {kind: _latest(choices) for kind, choices in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        entries, latest = {}, {}
    return RunChoices(
        made=latest.get(device.kind, {}),
        asked=kernels.model_dump(),
        measured=TuningCache(winners_path(), device),
        entries=entries,
        kind=device.kind,
    )


@dataclass(frozen=True)
class ProjectCall:
    """A call that a project's programs make, and what it runs as. `parts`: "training", "evaluation", "generation"."""

    op: Op
    call: Any
    choice: Choice
    parts: tuple[str, ...]


def project_calls_isolated(
    project: Project, config: Config
) -> tuple[Device, list[ProjectCall], list[logging.LogRecord]]:
    """The device, `project_calls` and what these logged, from another process: this one has not opened the device.

    Raises EnvironmentFault if that process fails, and what `project_calls` raises.
    """
    try:
        with TrialProcess(_device_and_calls) as child:
            found = child.do((project, config), math.inf)
    except ChildProcessError as error:
        found = Failure(str(error))
    if isinstance(found, Failure):
        raise EnvironmentFault("the project's programs cannot be traced", found.why, "aifx kernels explain")
    if isinstance(found, AifxError):
        raise found
    return found  # type: ignore[no-any-return]


def _device_and_calls(
    asked: tuple[Project, Config],
) -> tuple[Device, list[ProjectCall], list[logging.LogRecord]] | AifxError:
    project, config = asked
    log = MemoryHandler(MAX_RECORDS)
    try:
        with log_to(log, propagate=False):
            calls = project_calls(project, config)
    except AifxError as error:
        return error
    return current_device(), calls, log.buffer


def project_calls(project: Project, config: Config) -> list[ProjectCall]:
    """The calls of a new run's programs, with the implementations that it would choose.

    Its programs are traced; nothing is compiled. Data is read only if the configuration leaves open what a model must
    know of it.
    """
    found: dict[str, ProjectCall] = {}
    layout, alone = local_layout(config.train.devices, config.mesh), local_layout(1)
    with tempfile.TemporaryDirectory() as folder, project_errors(config.parts, project):
        run = RunDirectory(Path(folder))
        task = describe_or_open_task(config, project, run.path)

        def trace(part: str, place: Layout, chosen: Callable[[Programs], Iterable[Program]]) -> None:
            choices = run_choices(run, config.kernels)
            for program in chosen(build(config, task, place, kernels=choices)):
                program.trace()
            for key, (op, call) in choices.seen_calls.items():
                before = found[key].parts if key in found else ()
                found[key] = ProjectCall(op, call, choices.made[key], (*before, part))

        trace("training", layout, lambda programs: [programs.train_step])
        trace("evaluation", alone, lambda programs: [programs.eval_step])
        if build(config, task, alone).can_decode:
            trace("generation", alone, partial(_generation, max_tokens=config.generate.max_tokens))
    return list(found.values())


def _generation(programs: Programs, max_tokens: int) -> Sequence[Program]:
    """The programs that `aifx generate` runs for a short prompt."""
    decoding = programs.decoding
    writing = one_row(decoding, decoding.params, bucket(1 + max_tokens, decoding.model.max_seq_len))
    return writing.prefill(SMALLEST_BUCKET), writing.decode(1)


def winners_path() -> Path:
    """Where `aifx kernels tune` keeps what it measured."""
    return cache_path("kernels")


def _latest(entries: Sequence[Mapping[str, Any]]) -> dict[str, Choice]:
    """The choice for each call: the last one, since a choice that a version of aifx no longer has is replaced."""
    return {str(entry["call"]): Choice.from_document(entry) for entry in entries}
