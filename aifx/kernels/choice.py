"""The implementations of jax_kernels that a run's programs use: chosen once, kept in the run, used again at resume."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from aifx.config import Config
from aifx.core.errors import AifxError, EnvironmentFault
from aifx.core.logs import log_to
from aifx.core.project import Project, RunDirectory, cache_path
from aifx.kernels.choices_file import read_kernel_choices, write_kernel_choices
from aifx.parallel import DATA_AXIS
from aifx.specs import map_specs
from jax_kernels.batch_sharding import Division
from jax_kernels.dispatch import Choices, using
from jax_kernels.implementations import Device, current_device
from jax_kernels.op import Choice, Op
from jax_kernels.trials import Failure, TrialProcess
from jax_kernels.tuning import TuningCache

if TYPE_CHECKING:
    from aifx.training.step import StepSpec

logger = logging.getLogger(__name__)

MAX_RECORDS = 1000
"""Of the log of another process."""


def run_choices(
    run: RunDirectory,
    config: Config,
    *,
    mesh: Mesh | None = None,
    keep: bool = True,
    on_write: Callable[[Mapping[str, Sequence[Mapping[str, Any]]]], None] = lambda _: None,
    on_replacement: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> Choices:
    """The choices that a run made, to go on with. New ones: by `[kernels]`, by what was measured on this kind of
    device, or by the best guess.

    Args:
        mesh: of the devices that the program is divided among.
        keep: write new ones into the run.
        on_write: called with the choices by kind of device, after they were written into the run.
        on_replacement: called with the fields of an event if a call can no longer run as was chosen before.
    """
    device = current_device()
    kept = _read(run)
    entries = kept.setdefault(device.kind, [])
    made = _latest(entries)
    written = dict(made)

    def write(choices: Choices) -> None:
        # Entries are only added, so that the digest of the first ones, which checkpoints name, stays.
        for key, choice in choices.made.items():
            before = written.get(key)
            if before == choice:
                continue
            written[key] = choice
            entries.append({"call": key, **choice.document()})
            if before is not None:
                on_replacement({"op": json.loads(key)["op"], "old": before.document(), "new": choice.document()})
        if keep:
            write_kernel_choices(run, kept)
            on_write(kept)

    return Choices(
        made=made,
        asked=config.kernels.model_dump(),
        measured=TuningCache(winners_path(), device),
        on_choice=write,
        tell=logger.warning,
        division=Division(mesh, DATA_AXIS) if mesh is not None and mesh.size > 1 else None,
    )


@dataclass(frozen=True)
class ProjectCall:
    """A call that a project's programs make, and what it runs as.

    Attributes:
        parts: the programs: "training", "evaluation", "generation".
    """

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
    """What a new run of the project would choose. Its programs are traced; nothing is compiled."""
    from aifx.parallel import make_mesh
    from aifx.tasks.registry import create_task
    from aifx.training.step import make_step_spec

    found: dict[str, ProjectCall] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory(Path(folder))
        mesh = make_mesh(config.train.devices)
        step_spec = make_step_spec(config, create_task(config, project, Path(folder)), mesh)
        programs = (("training", _training, mesh), ("evaluation", _evaluation, None), ("generation", _generation, None))
        for part, trace, shared in programs:
            with using(run_choices(run, config, mesh=shared, keep=False)) as choices:
                trace(step_spec, config)
            for key, (op, call) in choices.seen_calls.items():
                before = found[key].parts if key in found else ()
                found[key] = ProjectCall(op, call, choices.made[key], (*before, part))
    return list(found.values())


def _training(step_spec: StepSpec, config: Config) -> None:
    from aifx.training.state import abstract_state
    from aifx.training.step import lower_step

    batch = step_spec.task.source("train").read(0, slice(0, config.train.global_batch_size))
    lower_step(step_spec, abstract_state(step_spec.specs, step_spec.optimizer, step_spec.mesh), batch)


def _evaluation(step_spec: StepSpec, config: Config) -> None:
    from aifx.evaluation.held_out import compile_sums

    source = step_spec.task.evaluation_source(config.eval.split)
    if source.num_batches == 0:
        return
    params = map_specs(lambda spec: spec.struct, step_spec.specs)
    jax.eval_shape(compile_sums(step_spec.task, step_spec.dtype), params, source.read(0, slice(0, source.batch_size)))


def _generation(step_spec: StepSpec, config: Config) -> None:
    from aifx.generation.generator import trace_generation
    from aifx.tasks.language import LanguageTask

    if isinstance(step_spec.task, LanguageTask):
        trace_generation(step_spec.task.model, max_tokens=config.generate.max_tokens, dtype=step_spec.dtype)


def winners_path() -> Path:
    """Where `aifx kernels tune` keeps what it measured."""
    return cache_path("kernels")


def _read(run: RunDirectory) -> dict[str, list[dict[str, Any]]]:
    """The choices that the run made, by kind of device; empty if it has made none."""
    devices = read_kernel_choices(run)
    try:
        for entries in devices.values():
            _latest(entries)
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return devices


def _latest(entries: Sequence[Mapping[str, Any]]) -> dict[str, Choice]:
    """The choice for each call: the last one, since a choice that a version of aifx no longer has is replaced."""
    return {str(entry["call"]): Choice.from_document(entry) for entry in entries}
