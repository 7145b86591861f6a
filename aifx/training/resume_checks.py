"""Checks of a run on disk and of whether it may go on, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from aifx.checkpoint.manifest import Damaged, Manifest, list_bindings, list_checkpoints, read_manifest, step_directories
from aifx.config import Config, Difference, compare, model_differences
from aifx.config.sections import DataSection, ModelSection
from aifx.config.toml import Origin
from aifx.core.errors import AifxError, ConfigError, UsageError
from aifx.core.files import read_file
from aifx.core.json_files import read_jsonl
from aifx.core.json_values import number
from aifx.core.project import Project, RunDirectory
from aifx.core.statuses import FINISHED, ProcessStatus
from aifx.core.steps import StepChoice
from aifx.data.sections import OWN_TOKENIZERS, TokenSection
from aifx.data.versions.catalog import whole_reference
from aifx.kinds import read_config
from aifx.parallel.group import Group
from aifx.runs.binding import binding_errors, foreign_checkpoint
from aifx.runs.formats import RefittedFrom, RunEnd
from aifx.runs.provenance import read_provenance
from aifx.runs.status import BEGINNINGS
from aifx.training.records import TrainResult


@dataclass(frozen=True)
class Fork:
    """Where a fork begins: at the checkpoint of `step` of `run`, whose configuration differs in `changes`."""

    run: RunDirectory
    step: int
    changes: tuple[Difference, ...]


@dataclass(frozen=True)
class Refit:
    """The settings of a finished run for its training and validation rows together.

    Attributes:
        config: of the run, but with as many steps as its best checkpoint has, and without validation.
        best: the manifest of that checkpoint.
    """

    run: RunDirectory
    config: Config
    best: Manifest

    @property
    def thresholds(self) -> Mapping[str, float]:
        """By class, that the best checkpoint's validation chose: a refit has no held-out rows to choose by."""
        return (self.best.host.get("progress") or {}).get("thresholds") or {}

    @property
    def origin(self) -> RefittedFrom:
        return RefittedFrom(run=self.run.name, step=self.best.step, state_digest=self.best.state_digest)


def open_refit(run: RunDirectory, project: Project, overrides: Sequence[str] = ()) -> Refit:
    """The refit of a run, which ends at the step of its best checkpoint, with the learning rate of that step.

    Steps are not scaled by the number of rows: the schedule and the decay of weights are per step, and with the same
    batch size each step is the same update.

    Args:
        overrides: `--set` strings over the run's configuration.

    Raises UsageError for a run that is not finished, began with another run's checkpoint or was not validated, and for
    data whose validation split cannot be trained on.
    """
    from aifx.planning.work import apply_settings

    config, name = read_config(run.config, project), run.name
    if not config.data.can_train_on_validation:
        why = f'it is for tables, and run {name!r} has task.kind = "{config.task.kind}"'
        hint = "aifx train --run NAME --set data.validation_fraction=0 --set train.validate_every=0"
        raise UsageError("--refit cannot train on this validation split", why, hint)
    if _finished(run, config, verifies=False) is None:
        why = "a refit takes as many steps as its best checkpoint has"
        raise UsageError(f"run {name!r} is not finished", why, f"aifx train --run {name}")
    if (fork := read_provenance(run).get("forked_from")) is not None:
        why = f"it began with a checkpoint of run {fork!r}, and a refit begins with new weights"
        raise UsageError(f"run {name!r} is a fork", why, f"aifx train --run {fork} --refit")
    step = next((info.step for info in list_checkpoints(run.checkpoints) if info.is_best), None)
    if step is None:
        why = "a refit takes as many steps as the checkpoint that validates best"
        raise UsageError(f"run {name!r} has no validation", why, "aifx train --run NAME --set train.validate_every=100")
    best = read_manifest(run.checkpoints / str(step))
    for error in binding_errors(run, config, step, best.run):
        raise error
    settings: dict[str, Any] = {
        "train.num_steps": step,
        "schedule.num_steps": config.schedule.steps_of(config.train.num_steps),
        "train.validate_every": 0,
        "train.early_stopping": 0,
        "train.folds": 1,
        "data.validation_fraction": 0.0,
    }
    asked = {override.partition("=")[0].strip() for override in overrides}
    if "train.num_steps" in asked:
        asked.add("schedule.num_steps")
    changes = {key: value for key, value in settings.items() if key not in asked}
    # Not as overrides: thresholds of classes, which a refit takes over, are otherwise for runs with validations.
    config = read_config(run.config, project, overrides)
    origins = {**config.origins, **dict.fromkeys(changes, Origin("set", "--refit"))}
    return Refit(run, replace(apply_settings(config, changes), origins=origins), best)


def check_new(run: RunDirectory, *, is_fork: bool) -> None:
    """Raise UsageError for a fork into a run that exists, and for a run whose own fork was cut off before it began.

    To be called by the holder of the run's lock.
    """
    if is_fork and run.exists():
        hint = f"aifx train --run {run.name}    (or --fork another-name)"
        raise UsageError(f"run {run.name!r} exists", "a fork is a new run", hint)
    if not is_fork and not run.exists() and list_checkpoints(run.checkpoints):
        what = f"run {run.name!r} has checkpoints and no config.toml"
        hint = f"aifx train --run ORIGIN --fork {run.name}    (repeats the fork; --run NAME starts another run)"
        raise UsageError(what, "the fork that makes it was interrupted", hint)


def saved_config(run: RunDirectory, project: Project) -> Config | None:
    """The configuration of a run that has a checkpoint; None for one that begins."""
    return read_config(run.config, project) if run.exists() and list_checkpoints(run.checkpoints) else None


def with_whole_version(config: Config, before: Config | None, project: Project) -> Config:
    """The configuration, with the whole version of its data set: that of `before`, if the settings can mean it.

    Raises UsageError if there is no such version.
    """
    if (reference := getattr(config.data, "dataset", None)) is None:
        return config
    known = None if before is None else getattr(before.data, "dataset", None)
    whole = whole_reference(reference, config.apply_to(project), known)
    return replace(config, data=config.data.model_copy(update={"dataset": whole}))


def check_configuration(run: RunDirectory, before: Config, config: Config) -> None:
    """Raise ConfigError, with the differences, if the run was trained with another configuration.

    Raises UsageError for a run that cannot be resumed, since it has weights alone.
    """
    _check_has_state(run)
    if found := compare(before, config):
        changes = [str(d) for d in found[:8]]
        more = [f"and {len(found) - 8} more"] if len(found) > 8 else []
        what = f"run {run.name!r} was started with another configuration"
        hint = f"aifx train --run {run.name} --fork NAME    (continues as a new run; --run NAME starts from step 0)"
        if (origin := read_provenance(run).get("refitted_from")) is not None:
            hint = f"aifx train --run {origin['run']} --refit    (continues the refit)"
        raise ConfigError(what, "\n".join([*changes, *more]), hint)


def _check_has_state(run: RunDirectory) -> None:
    """Raise UsageError for a run that no training made, and which has no state of an optimizer."""
    if run.imported.exists() or "averaged_from" in read_provenance(run):
        origin = "imported" if run.imported.exists() else "made by aifx ckpt average"
        why = "it has weights alone, and no state of an optimizer to go on from"
        hint = f"aifx train --run NAME --set finetune.base={run.name}"
        raise UsageError(f"run {run.name!r} was {origin}", why, hint)


def check_files(run: RunDirectory, config: Config) -> None:
    """Raise CheckpointError if a file of the run is not what its newest checkpoint was trained with.

    A checkpoint that another run saved is also refused. Damaged ones are left to `Checkpoints.latest_good`.

    Args:
        config: of the run's `config.toml` alone.
    """
    bound = list_bindings(run.checkpoints)
    if not bound:
        return
    newest = max(bound)
    for error in binding_errors(run, config, newest, bound[newest]):
        raise error
    for step, named in bound.items():
        if named.get("id") != bound[newest]["id"]:
            raise foreign_checkpoint(run, step)


def finished(run: RunDirectory, config: Config, group: Group) -> TrainResult | None:
    """The result of a run that has ended by itself, from disk alone; None for one that goes on.

    Process 0 reads the last checkpoint. If that is damaged, the run goes on from the checkpoint before.
    """
    result = _finished(run, config, verifies=True) if group.is_first and run.config.exists() else None
    if group.broadcast(result is not None) and not group.is_first:
        result = _finished(run, config, verifies=False)
    return result


def _finished(run: RunDirectory, config: Config, *, verifies: bool) -> TrainResult | None:
    last = max(step_directories(run.checkpoints), default=None)
    events = reversed(read_jsonl(run.events))
    stop: Mapping[str, Any] = next((e for e in events if e.get("event") in ("stop", *BEGINNINGS)), {})
    if last is None or stop.get("status") not in FINISHED or stop.get("step") != last:
        return None
    from aifx.checkpoint.checkpoints import Checkpoints

    try:
        end = TypeAdapter(RunEnd).validate_python(stop)
        if verifies and Checkpoints(run.checkpoints, config.checkpoint).verify(last).damaged:
            return None
    except (ValidationError, Damaged):
        return None
    return TrainResult(**vars(end), run=run, num_steps=config.train.num_steps, already=True)


def check_fork(origin: RunDirectory, run: RunDirectory, config: Config, project: Project, at: StepChoice) -> Fork:
    """Where the fork `run` of `origin` begins. To be called by the holder of the lock of `run`.

    Raises UsageError where there is nothing to fork from or nothing left to do, CheckpointError for a step without a
    checkpoint, ConfigError for another model or tokenizer than those that the parameters were trained with.
    """
    from aifx.loading.steps import choose_step

    if not list_checkpoints(origin.checkpoints):
        what = f"run {origin.name!r} has no checkpoint to fork from"
        raise UsageError(what, "nothing was saved yet", f"aifx ckpt ls --run {origin.name}")
    _check_has_state(origin)
    before = read_config(origin.config, project)
    changes = tuple(compare(before, config))
    _check_model(origin, before.model, config.model, changes)
    _check_tokenizer(origin, config.data, project, changes)
    step = choose_step(origin, config, at)
    if step >= config.train.num_steps:
        what = f"a fork of run {origin.name!r} has nothing left to do"
        why = f"it begins at step {step}, and train.num_steps = {config.train.num_steps}"
        hint = f"aifx train --run {origin.name} --fork {run.name} --set train.num_steps={2 * step}"
        raise UsageError(what, why, hint)
    if others := [c.step for c in list_checkpoints(run.checkpoints) if c.step != step]:
        what = f"run {run.name!r} has the checkpoint of step {others[-1]} and no config.toml"
        why = "a fork that began there was cut off before it was whole"
        raise UsageError(what, why, f"aifx train --run {origin.name} --fork ANOTHER-NAME")
    return Fork(origin, step, changes)


def _check_model(origin: RunDirectory, old: ModelSection, new: ModelSection, changes: Sequence[Difference]) -> None:
    """Raise ConfigError if a fork's model computes something else with the parameters that it takes over."""
    keys = {difference.key for difference in model_differences(old, new)}
    if changed := [str(d) for d in changes if d.key in keys]:
        what = f"a fork of run {origin.name!r} cannot have another model"
        why = "\n".join([*changed, "its parameters were trained for the one that the run has"])
        raise ConfigError(what, why, "aifx train --run NAME    (a new run, from its first step)")


def _check_tokenizer(origin: RunDirectory, data: DataSection, project: Project, changes: Sequence[Difference]) -> None:
    """Raise ConfigError if a fork asks for another tokenizer than the one that it takes over."""
    if not isinstance(data, TokenSection):
        return
    is_trained = data.tokenizer in ("bpe", "char")
    keys = ("data.tokenizer", "data.vocab_size") if is_trained else ("data.tokenizer",)
    changed = [str(d) for d in changes if d.key in keys and d.old is not None]
    if not changed and data.tokenizer not in OWN_TOKENIZERS:
        from aifx.data.text import TOKENIZER_FILE

        named, kept = project.root / data.tokenizer, origin.assets / TOKENIZER_FILE
        if named.is_file() and kept.exists() and named.read_bytes() != read_file(kept, below=origin.path):
            changed.append(f"data.tokenizer: {data.tokenizer} has changed")
    if changed:
        what = f"a fork of run {origin.name!r} cannot have another tokenizer"
        why = "\n".join([*changed, "its parameters were trained with the one that the run keeps"])
        raise ConfigError(what, why, "aifx train --run NAME    (a new run, from its first step)")


def latest_result(run: RunDirectory, status: ProcessStatus) -> TrainResult:
    """The result of a process that ends before its first step, or at once: the latest checkpoint's figures."""
    steps = step_directories(run.checkpoints)
    step = max(steps, default=0)
    host: Mapping[str, Any] = {}
    if steps:
        with suppress(AifxError):  # damaged: the next start falls back to the one before, and says so
            host = read_manifest(steps[step]).host
    return TrainResult(run=run, status=status, step=step, num_steps=None, loss=number(host.get("loss")))
