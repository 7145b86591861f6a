"""A drill session: the scratch project it trains in, undisturbed runs, the phases of a run, and its recovery."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aifx.checkpoint.folders import newest_local, remove_local
from aifx.config import Config
from aifx.config.sections import TrainSection
from aifx.core.errors import AifxError, ExitCode
from aifx.core.processes import Ended
from aifx.core.project import Project, RunDirectory
from aifx.drills import injection
from aifx.drills.guarantees import GUARANTEES, DrillName, DrillResult, Expected, Measured, State, judged
from aifx.drills.injection import Action, DataFault, reached, released
from aifx.drills.trainer import (
    Missed,
    Trainer,
    answer,
    computed_records,
    first_record_after,
    is_saving,
    last_record,
    saved_steps,
)
from aifx.kinds import load_config
from aifx.runs.lock import holder
from aifx.runs.manage import local_checkpoints

LEFT_OUT = ("runs", "__pycache__", ".*", "*.egg-info", "venv", "node_modules")
LINKED_BYTES = 1 << 20
"""Larger files of the project get a second name instead of a copy: nothing in a training writes them."""


@dataclass(frozen=True)
class ScratchProject:
    """A copy of a project, and the settings of its runs.

    Attributes:
        every: steps between checkpoints and validations; a run has four times as many.
        settings: `section.key=value` of all runs.
    """

    project: Project
    every: int
    settings: tuple[str, ...]
    config_file: Path | None
    config: Config

    @property
    def num_steps(self) -> int:
        return 4 * self.every

    @property
    def without_local(self) -> str:
        """The setting of a run that leaves `checkpoint.local_dir` alone."""
        return f"checkpoint.local_every={self.num_steps + 1}"

    def arguments(self, run: str, *more: str) -> list[str]:
        """Arguments of `aifx train` for a run of this project."""
        words = ["train", "--run", run, "--json"]
        if self.config_file is not None:
            words += ["--config", str(self.config_file)]
        return words + [word for setting in (*self.settings, *more) for word in ("--set", setting)]

    def environment(self, run: str, fault: injection.DataFault) -> dict[str, str]:
        """The variables of a process that trains `run` with a fault in its data."""
        path = self.fault_file(run)
        fault.write(path)
        return {**os.environ, injection.VARIABLE: str(path)}

    def fault_file(self, run: str) -> Path:
        return self.project.root / f"fault-{run}.json"


@contextmanager
def scratch_project(
    project: Project, every: int, overrides: Sequence[str], file: Path | None, *, keep: bool
) -> Iterator[ScratchProject]:
    """Copy a project for the block, or for good with `keep`. Raises ConfigError, OSError."""
    config = load_config(project, overrides, file=file)
    project.runs_path.mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=".drill-", dir=project.runs_path))
    try:
        shutil.copytree(
            project.root, root, ignore=shutil.ignore_patterns(*LEFT_OUT), copy_function=_copy, dirs_exist_ok=True
        )
        copy = Project(root)
        copy.runs_path.mkdir()
        for run in project.runs():  # other runs may begin with them
            (copy.runs_path / run.name).symlink_to(run.path.resolve(), target_is_directory=True)
        kind = config.task.kind if ":" in config.task.kind else None
        data = None if kind else config.parts.names["data"]
        (root / f"{injection.MODULE}.py").write_text(injection.module_text(data, kind))
        named = f"task.kind={injection.TASK}" if kind else f"data.kind={injection.DATA}"
        moved = None if file is None else _moved(file, project, root)
        settings = (*overrides, *_short(config.train, config.checkpoint.keep_last, every), named)
        yield ScratchProject(copy, every, settings, moved, config)
    finally:
        for run in Project(root).runs():
            if not run.path.is_symlink() and (local := local_checkpoints(run)) is not None:
                remove_local(local)
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


def _short(train: TrainSection, keep_last: int, every: int) -> list[str]:
    """Settings of a run of a few dozen steps that leaves traces at every step."""
    settings = {
        "train.num_steps": 4 * every,
        "train.validate_every": every if train.validate_every else 0,
        "train.validation_batches": min(train.validation_batches or 2, 2),
        "train.early_stopping": 0,
        "checkpoint.every": every,
        "checkpoint.keep_last": max(keep_last, 2),
        "log.every": 1,
        "log.trackers": "[]",
    }
    return [f"{key}={value}" for key, value in settings.items()]


def _copy(source: str, target: str) -> str:
    if os.path.getsize(source) > LINKED_BYTES:
        try:
            os.link(source, target)
            return target
        except OSError:
            pass
    return str(shutil.copy2(source, target))


def _moved(file: Path, project: Project, root: Path) -> Path:
    """The copy of a configuration, or the file itself if it lies outside of the project."""
    path = file.resolve()
    return root / path.relative_to(project.root) if path.is_relative_to(project.root) else path


PACE_S = 0.05
"""Between two batches at least, so that a run of small steps is not over before a fault comes."""

OF_RESUMED = ("start", "compilation")
"""Phases before the first step of a process. The fault hits one that resumes, since a new run has nothing to lose."""


@dataclass(frozen=True)
class Reference:
    """The end of a run that others must get to.

    Attributes:
        digest: of the final state.
        records: of metrics.jsonl, without what a clock decided.
    """

    digest: str
    records: list[dict[str, Any]]


@dataclass
class DrillSession:
    """The drills of one call. They share a scratch project and its undisturbed runs."""

    scratch: ScratchProject
    references: dict[int, Reference] = field(default_factory=dict)

    def undisturbed(self, processes: int = 1) -> Reference:
        """The end of a run without faults. Raises AifxError if it fails."""
        if processes not in self.references:
            run = self.scratch.project.run(f"undisturbed-{processes}")
            with self.start(run, DataFault(), processes) as trainer:
                ended = trainer.wait()
            if ended.code != 0:
                raise _failed(ended)
            self.references[processes] = reference_of(run, ended)
        return self.references[processes]

    def run(self, drill: str, phase: str) -> RunDirectory:
        return self.scratch.project.run(f"{drill}-{phase}")

    def start(
        self, run: RunDirectory, fault: DataFault, processes: int = 1, env: dict[str, str] | None = None, *more: str
    ) -> Trainer:
        """Start, or start again, the training of `run`."""
        arguments = self.scratch.arguments(run.name, *more)
        if processes > 1:
            arguments = ["launch", "local", "-n", str(processes), "--restarts", "1", *arguments]
        variables = self.scratch.environment(run.name, replace(fault, pace_s=PACE_S)) | (env or {})
        return Trainer(run, self.scratch.project.root, arguments, variables)

    def release(self, run: RunDirectory) -> None:
        """Let the reader of the data go on, if a fault has stopped it."""
        released(self.scratch.fault_file(run.name)).touch()

    def interrupt(self, run: RunDirectory, processes: int = 1) -> None:
        """Train a run until it has a checkpoint, and stop it, so that the next process resumes. Raises Missed."""
        with self.start(run, reader_fault(self, run, "data", "pause"), processes) as trainer:
            reach(self, trainer, "data")
            trainer.child.send_signal(signal.SIGTERM)
            self.release(run)
            ended = trainer.wait()
        if ended.code != ExitCode.PREEMPTED:
            raise Missed(f"SIGTERM did not interrupt the run, to resume it: {ended.why}")


def reference_of(run: RunDirectory, ended: Ended) -> Reference:
    """The end of a run that got there."""
    return Reference(str(answer(ended)["state_digest"]), computed_records(run))


def measure(
    run: RunDirectory,
    disturbed: Ended,
    last: Ended,
    reference: Reference,
    *,
    resumed_from: int | None,
    steps_lost: int,
    safe_s: float | None,
    next_step_s: float | None,
    faults: Sequence[str] = (),
) -> Measured:
    """Measure a run whose process `disturbed` was hit by the fault, and whose process `last` had to reach the end."""
    state: State | None = None
    if last.code == 0 and "state_digest" in answer(last):
        state = "equal" if answer(last)["state_digest"] == reference.digest else "different"
        faults = [*faults, *differences(computed_records(run), reference.records)]
    return Measured(end_text(disturbed), resumed_from, steps_lost, safe_s, next_step_s, state, tuple(faults))


def differences(records: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> list[str]:
    """The first difference of a run's records from those of another: at most one sentence."""
    steps, wanted = [r["step"] for r in records], [r["step"] for r in expected]
    if missing := sorted(set(wanted) - set(steps)):
        return [f"metrics.jsonl has no record of step {missing[0]}"]
    if steps != wanted:
        return [f"metrics.jsonl has the records of steps {steps}, not each step once and in order"]
    return [f"the record of step {a['step']} differs" for a, b in zip(records, expected, strict=True) if a != b][:1]


def newest_checkpoint(run: RunDirectory) -> int:
    """The step of the newest complete checkpoint, on the run's disk or in `checkpoint.local_dir`, or 0."""
    local = local_checkpoints(run)
    return max([*saved_steps(run), newest_local(local) if local else 0], default=0)


def end_text(ended: Ended) -> str:
    return f"signal {ended.signal}" if ended.signal else f"exit {ended.code}"


def expected_of(
    drill: DrillName, resumed_from: int | None, max_steps_lost: int, max_safe_s: float | None = None
) -> Expected:
    guarantee = GUARANTEES[drill]
    return Expected(guarantee.ends, resumed_from, max(max_steps_lost, 0), guarantee.state, max_safe_s)


def stopping_fault(session: DrillSession, run: RunDirectory, phase: str) -> DataFault:
    """The fault of the data that holds the run in this phase until a fault from outside comes."""
    return reader_fault(session, run, phase, "pause") if phase in ("data", "evaluation") else DataFault()


def reader_fault(session: DrillSession, run: RunDirectory, phase: str, action: Action) -> DataFault:
    """A fault of the reader, amid training or in a validation, once a checkpoint is complete. Raises Missed."""
    folder = str(run.checkpoints)
    if phase == "data":
        return DataFault(action, "train", session.scratch.every * 3 // 2, folder)
    if not session.scratch.config.train.validate_every:
        raise Missed("the run never validates: train.validate_every = 0")
    return DataFault(action, "validation", 1, folder)


def compiling(session: DrillSession, phase: str) -> dict[str, str]:
    """The variables of a process that compiles, rather than reading programs from the cache."""
    if phase != "compilation":
        return {}
    folder = session.scratch.project.root / "compiled" / str(time.monotonic_ns())
    folder.mkdir(parents=True, mode=0o700)
    return {"JAX_COMPILATION_CACHE_DIR": str(folder)}


def reach(session: DrillSession, trainer: Trainer, phase: str) -> None:
    """Wait until the run is in a phase and has a complete checkpoint. Raises Missed."""
    run, amid = trainer.run, session.scratch.every * 3 // 2
    stopped = reached(session.scratch.fault_file(run.name))
    conditions: dict[str, Callable[[], bool]] = {
        "start": lambda: (who := holder(run)) is not None and who.pid == trainer.child.pid,
        "compilation": lambda: bool(trainer.events("compile")),
        "data": lambda: stopped.exists() and last_record(run) >= amid - 1,
        "step": lambda: last_record(run) >= amid,
        "checkpoint": lambda: is_saving(run),
        "evaluation": stopped.exists,
    }
    trainer.until(lambda: bool(saved_steps(run)) and conditions[phase](), f"the phase {phase}, with a checkpoint")
    if last_record(run) >= session.scratch.num_steps:
        raise Missed(f"the phase {phase} was seen too late: the run had done its last step")


def train_again(session: DrillSession, run: RunDirectory, fault: DataFault | None = None, *more: str) -> Ended:
    with session.start(run, fault or DataFault(), 1, None, *more) as trainer:
        return trainer.wait()


def recovered(
    session: DrillSession,
    drill: DrillName,
    phase: str,
    ended: Ended,
    at: float,
    safe_s: float | None,
    *,
    max_steps_lost: int | None = None,
    max_safe_s: float | None = None,
    faults: Sequence[str] = (),
) -> DrillResult:
    """Train a run again that a fault has ended, and judge.

    Args:
        ended: the process that the fault hit, at `at` in Unix time.
        max_steps_lost: by default the steps since the newest complete checkpoint.
    """
    run = session.run(drill, phase)
    recorded, newest, again_at = last_record(run), newest_checkpoint(run), time.time()
    again = train_again(session, run)
    measured = measure(
        run,
        ended,
        again,
        session.undisturbed(),
        resumed_from=resumed_from(again),
        steps_lost=max(recorded - resumed_from(again), 0),
        safe_s=safe_s,
        next_step_s=since(at, first_record_after(run, again_at)),
        faults=faults,
    )
    most = recorded - newest if max_steps_lost is None else max_steps_lost
    return judged(drill, phase, expected_of(drill, newest, most, max_safe_s), measured)


def resumed_from(ended: Ended) -> int:
    """The step of the checkpoint that a training went on from, or 0."""
    return int(answer(ended).get("resumed_from") or 0)


def since(at: float, when: float | None) -> float | None:
    return None if when is None else when - at


def _failed(ended: Ended) -> AifxError:
    error = answer(ended).get("error") or {}
    what = "the run without faults did not get to its end, so there is nothing to compare with"
    return AifxError(what, str(error.get("what") or ended.why), str(error.get("hint") or "aifx train"))
