"""How a run stands on disk, and whether it may go on: read before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aifx.checkpoint.listing import list_bindings, list_checkpoints
from aifx.checkpoint.manifest import read_manifest, step_directories
from aifx.config import Config, Difference, compare, read_config
from aifx.config.best_by import AUTO
from aifx.config.sections import RESUME_SAFE, ROUNDING
from aifx.core.errors import AifxError, CheckpointError, ConfigError, UsageError
from aifx.core.files import read_file
from aifx.core.json_files import read_jsonl
from aifx.core.project import Project, RunDirectory
from aifx.core.statuses import FINISHED, ProcessStatus
from aifx.core.steps import StepChoice
from aifx.data.sections import TextSection
from aifx.runs.binding import binding_errors, foreign_checkpoint
from aifx.runs.provenance import differences, read_provenance
from aifx.runs.status import number
from aifx.training.records import TrainResult


@dataclass(frozen=True)
class Fork:
    """Where a fork begins: at the checkpoint of `step` of `run`, whose configuration differs in `changes`."""

    run: RunDirectory
    step: int
    changes: tuple[Difference, ...]


def check_new(run: RunDirectory, *, is_fork: bool) -> None:
    """Raises UsageError for a fork into a run that exists, and for a run whose own fork was cut off before it began.

    To be called by the holder of the run's lock.
    """
    if is_fork and run.exists():
        raise UsageError(
            f"run {run.name!r} exists",
            "a fork is a new run",
            f"aifx train --run {run.name}    (or --fork another-name)",
        )
    if not is_fork and not run.exists() and list_checkpoints(run.checkpoints):
        raise UsageError(
            f"run {run.name!r} has checkpoints and no config.toml",
            "the fork that makes it was cut off before it was whole",
            f"aifx train --run ORIGIN --fork {run.name}    (type the fork again; --run NAME starts another run)",
        )


def started_best_by(run: RunDirectory, project: Project) -> str | None:
    """The `checkpoint.best_by` that a run was started with; None for one that begins."""
    if not run.exists() or not list_checkpoints(run.checkpoints):
        return None
    best_by = read_config(run.config, project).checkpoint.best_by
    return None if best_by == AUTO else best_by


def check_configuration(run: RunDirectory, config: Config, project: Project) -> None:
    """Raises ConfigError, with the differences, when the run got somewhere with another configuration."""
    if not list_checkpoints(run.checkpoints):
        return  # nothing was saved: it begins anew
    found = compare(read_config(run.config, project), config)
    if found:
        shown = [str(d) for d in found[:8]]
        more = [f"and {len(found) - 8} more"] if len(found) > 8 else []
        raise ConfigError(
            f"run {run.name!r} was started with another configuration",
            "\n".join([*shown, *more]),
            f"aifx train --run {run.name} --fork NAME    (goes on as a new run; --run NAME starts afresh)",
        )


def check_files(run: RunDirectory, project: Project) -> None:
    """Raises CheckpointError if a file of the run is not what its newest checkpoint was trained with.

    A checkpoint that another run saved is also refused. Damaged ones are left to `Checkpoints.latest_good`.
    """
    bound = list_bindings(run.checkpoints)
    if not bound:
        return
    newest = max(bound)
    for error in binding_errors(run, read_config(run.config, project), newest, bound[newest]):
        raise error
    for step, named in bound.items():
        if named.get("id") != bound[newest]["id"]:
            raise foreign_checkpoint(run, step)


def origin_errors(fork: Fork, project: Project) -> Iterator[CheckpointError]:
    """The files of a fork's origin that are not what the checkpoint that it begins from was trained with."""
    bound = list_bindings(fork.run.checkpoints).get(fork.step)
    if bound is not None:
        yield from binding_errors(fork.run, read_config(fork.run.config, project), fork.step, bound)


def free_changes(run: RunDirectory, config: Config, project: Project) -> list[Difference]:
    """The settings that changed since the run was last trained, and may."""
    return compare(read_config(run.config, project), config, RESUME_SAFE)


def rounding_changes(run: RunDirectory, config: Config, project: Project) -> list[str]:
    """What changed since the run was last trained, and may, that changes how its numbers are rounded."""
    return [str(d) for d in compare(read_config(run.config, project), config, ROUNDING)]


def forks_other_data(origin: RunDirectory, data_digest: str) -> bool:
    """Whether a fork of `origin` reads other data than it did, or the same divided otherwise."""
    return read_provenance(origin).get("data_digest") not in (None, data_digest)


def check_data(run: RunDirectory, data_digest: str) -> None:
    """Raises ConfigError when the run was trained on other data so far."""
    before = read_provenance(run).get("data_digest")
    if before is not None and before != data_digest:
        raise ConfigError(
            f"the data of run {run.name!r} has changed since it was started",
            f"its digest was {before[:12]}..., and is {data_digest[:12]}... now",
            f"restore the data, or: aifx train --run {run.name} --fork NAME",
        )


def environment_changes(run: RunDirectory, now: Mapping[str, Any]) -> list[str]:
    """What changed of that which a bit-exact resumption rests on, a line each."""
    before = read_provenance(run)
    return [str(d) for d in differences(before, now) if d.name != "data_digest"] if before else []


def finished(run: RunDirectory, config: Config) -> TrainResult | None:
    """The result of a run that has ended by itself, from disk alone; None for one that goes on.

    Reads the last checkpoint. If that is damaged the run has not ended: it goes on from the checkpoint before.
    """
    last = max((c.step for c in list_checkpoints(run.checkpoints)), default=None)
    stop: dict[str, Any] = next(
        (e for e in reversed(read_jsonl(run.events)) if e.get("event") in ("stop", "start", "resume")), {}
    )
    if last is None or stop.get("status") not in FINISHED or stop.get("step") != last:
        return None
    if _is_damaged(run, config, last):
        return None
    return TrainResult(
        run=run,
        status=stop["status"],
        step=last,
        num_steps=config.train.num_steps,
        loss=number(stop.get("loss")),
        unit=stop.get("unit"),
        units_per_s=number(stop.get("units_per_s")),
        state_digest=stop.get("state_digest"),
        validation_loss=number(stop.get("validation_loss")),
        best_step=stop.get("best_step"),
        best_validation_loss=number(stop.get("best_validation_loss")),
        best_by=stop.get("best_by"),
        best_value=number(stop.get("best_value")),
        duration_s=number(stop.get("duration_s")),
        resumed_from=stop.get("resumed_from"),
        peak_memory_bytes=stop.get("peak_memory_bytes"),
        already=True,
    )


def _is_damaged(run: RunDirectory, config: Config, step: int) -> bool:
    from aifx.checkpoint.checkpoints import Checkpoints
    from aifx.checkpoint.manifest import Damaged

    try:
        return bool(Checkpoints(run.checkpoints, config.checkpoint).verify(step).damaged)
    except Damaged:
        return True


def check_fork(origin: RunDirectory, run: RunDirectory, config: Config, project: Project, at: StepChoice) -> Fork:
    """Where the fork `run` of `origin` begins. To be called by the holder of the lock of `run`.

    Raises UsageError where there is nothing to fork from or nothing left to do, CheckpointError for a step without a
    checkpoint, ConfigError for another tokenizer than the one that the parameters were trained with.
    """
    from aifx.loading.restore import choose_step

    if not list_checkpoints(origin.checkpoints):
        raise UsageError(
            f"run {origin.name!r} has no checkpoint to fork from",
            "nothing was saved yet",
            f"aifx ckpt ls --run {origin.name}",
        )
    changes = tuple(compare(read_config(origin.config, project), config))
    _check_tokenizer(origin, config, project, changes)
    step = choose_step(origin, config, at)
    if step >= config.train.num_steps:
        raise UsageError(
            f"a fork of run {origin.name!r} has nothing left to do",
            f"it begins at step {step}, and train.num_steps = {config.train.num_steps}",
            f"aifx train --run {origin.name} --fork {run.name} --set train.num_steps={2 * step}",
        )
    if others := [c.step for c in list_checkpoints(run.checkpoints) if c.step != step]:
        raise UsageError(
            f"run {run.name!r} has the checkpoint of step {others[-1]} and no config.toml",
            "a fork that began there was cut off before it was whole",
            f"aifx train --run {origin.name} --fork ANOTHER-NAME",
        )
    return Fork(origin, step, changes)


def _check_tokenizer(origin: RunDirectory, config: Config, project: Project, changes: Sequence[Difference]) -> None:
    """Raises ConfigError where a fork asks for another tokenizer than the one that it takes over."""
    if not isinstance(config.data, TextSection):
        return
    keys = ["data.tokenizer"]
    if config.data.tokenizer == "bpe":
        keys.append("data.vocab_size")
    changed = [str(d) for d in changes if d.key in keys and d.old is not None]
    if not changed and config.data.tokenizer != "bpe":
        from aifx.data.text import TOKENIZER_FILE

        named, kept = project.root / config.data.tokenizer, origin.assets / TOKENIZER_FILE
        if named.is_file() and kept.exists() and named.read_bytes() != read_file(kept, below=origin.path):
            changed.append(f"data.tokenizer: {config.data.tokenizer} has changed")
    if changed:
        raise ConfigError(
            f"a fork of run {origin.name!r} cannot have another tokenizer",
            "\n".join([*changed, "its parameters were trained with the one that the run keeps"]),
            "aifx train --run NAME    (a new run, from its first step)",
        )


def latest_result(run: RunDirectory, status: ProcessStatus, num_steps: int | None = None) -> TrainResult:
    """What a process that ends before its first step, or where it stands, leaves: the latest checkpoint's figures."""
    steps = step_directories(run.checkpoints)
    step = max(steps, default=0)
    host: Mapping[str, Any] = {}
    if steps:
        with suppress(AifxError):  # damaged: the next start falls back to the one before, and says so
            host = read_manifest(steps[step]).host
    return TrainResult(run=run, status=status, step=step, num_steps=num_steps, loss=number(host.get("loss")))
