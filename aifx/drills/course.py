"""What all drills share: undisturbed runs, the phases of a run, and how it recovers."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aifx.checkpoint.local_folder import newest_local
from aifx.core.errors import AifxError, ExitCode
from aifx.core.processes import Ended
from aifx.core.project import RunDirectory
from aifx.drills.guarantees import GUARANTEES, DrillName, DrillResult, Expected, Measured, State, judged
from aifx.drills.seam import Action, DataFault, reached, released
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
from aifx.drills.workplace import Workplace
from aifx.runs.lock import holder
from aifx.runs.manage import local_checkpoints

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
class Course:
    """The drills of one call, which share undisturbed runs."""

    place: Workplace
    references: dict[int, Reference] = field(default_factory=dict)

    def undisturbed(self, processes: int = 1) -> Reference:
        """The end of a run without faults. Raises AifxError if it fails."""
        if processes not in self.references:
            run = self.place.project.run(f"undisturbed-{processes}")
            with self.start(run, DataFault(), processes) as trainer:
                ended = trainer.wait()
            if ended.code != 0:
                raise _failed(ended)
            self.references[processes] = reference_of(run, ended)
        return self.references[processes]

    def run(self, drill: str, phase: str) -> RunDirectory:
        return self.place.project.run(f"{drill}-{phase}")

    def start(
        self, run: RunDirectory, fault: DataFault, processes: int = 1, env: dict[str, str] | None = None, *more: str
    ) -> Trainer:
        """Start, or start again, the training of `run`."""
        arguments = self.place.arguments(run.name, *more)
        if processes > 1:
            arguments = ["launch", "local", "-n", str(processes), "--restarts", "1", *arguments]
        variables = self.place.environment(run.name, replace(fault, pace_s=PACE_S)) | (env or {})
        return Trainer(run, self.place.project.root, arguments, variables)

    def release(self, run: RunDirectory) -> None:
        """Let the reader of the data go on, if a fault has stopped it."""
        released(self.place.fault_file(run.name)).touch()

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
    """What happened to a run, of which the fault hit the process `disturbed`, and `last` was to get to its end."""
    state: State | None = None
    if last.code == 0 and "state_digest" in answer(last):
        state = "equal" if answer(last)["state_digest"] == reference.digest else "different"
        faults = [*faults, *differences(computed_records(run), reference.records)]
    return Measured(end_text(disturbed), resumed_from, steps_lost, safe_s, next_step_s, state, tuple(faults))


def differences(records: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> list[str]:
    """Where the records of a run differ from those of another: at most one sentence."""
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


def stopping_fault(course: Course, run: RunDirectory, phase: str) -> DataFault:
    """What the data does so that a fault from outside comes in this phase."""
    return reader_fault(course, run, phase, "pause") if phase in ("data", "evaluation") else DataFault()


def reader_fault(course: Course, run: RunDirectory, phase: str, action: Action) -> DataFault:
    """A fault of the reader, amid training or in a validation, once a checkpoint is complete. Raises Missed."""
    folder = str(run.checkpoints)
    if phase == "data":
        return DataFault(action, "train", course.place.every * 3 // 2, folder)
    if not course.place.config.train.validate_every:
        raise Missed("the run never validates: train.validate_every = 0")
    return DataFault(action, "validation", 1, folder)


def compiling(course: Course, phase: str) -> dict[str, str]:
    """The variables of a process that compiles, rather than reading programs from the cache."""
    if phase != "compilation":
        return {}
    folder = course.place.project.root / "compiled" / str(time.monotonic_ns())
    folder.mkdir(parents=True, mode=0o700)
    return {"JAX_COMPILATION_CACHE_DIR": str(folder)}


def reach(course: Course, trainer: Trainer, phase: str) -> None:
    """Wait until the run is in a phase and has a complete checkpoint. Raises Missed."""
    run, amid = trainer.run, course.place.every * 3 // 2
    stopped = reached(course.place.fault_file(run.name))
    conditions: dict[str, Callable[[], bool]] = {
        "start": lambda: (who := holder(run)) is not None and who.pid == trainer.child.pid,
        "compilation": lambda: bool(trainer.events("compile")),
        "data": lambda: stopped.exists() and last_record(run) >= amid - 1,
        "step": lambda: last_record(run) >= amid,
        "checkpoint": lambda: is_saving(run),
        "evaluation": stopped.exists,
    }
    trainer.until(lambda: bool(saved_steps(run)) and conditions[phase](), f"the phase {phase}, with a checkpoint")
    if last_record(run) >= course.place.num_steps:
        raise Missed(f"the phase {phase} was seen too late: the run had done its last step")


def train_again(course: Course, run: RunDirectory, fault: DataFault | None = None, *more: str) -> Ended:
    with course.start(run, fault or DataFault(), 1, None, *more) as trainer:
        return trainer.wait()


def recovered(
    course: Course,
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
    run = course.run(drill, phase)
    recorded, newest, again_at = last_record(run), newest_checkpoint(run), time.time()
    again = train_again(course, run)
    measured = measure(
        run,
        ended,
        again,
        course.undisturbed(),
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
