"""What all drills share: undisturbed runs, the phases of a run, and how it recovers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from aifx.core.errors import AifxError
from aifx.core.processes import Ended
from aifx.core.project import RunDirectory
from aifx.drills.guarantees import GUARANTEES, DrillName, DrillResult, Expected, Measured, State, judged
from aifx.drills.seam import Action, DataFault, reached
from aifx.drills.trainer import Missed, Trainer, answer, first_record_after, is_saving, last_record, saved_steps
from aifx.drills.workplace import Workplace

PACE_S = 0.05
"""Between two batches at least, so that a run of small steps is not over before a fault comes."""

STOPPED_READER_S = 2.0
"""So long the reader of the data stops, for a fault to come meanwhile. SIGTERM waits for it."""


@dataclass
class Course:
    """The drills of one call, which share undisturbed runs."""

    place: Workplace
    digests: dict[int, str] = field(default_factory=dict)

    def undisturbed(self, processes: int = 1) -> str:
        """The digest of the final state of a run without faults. Raises AifxError if it fails."""
        if processes not in self.digests:
            run = self.place.project.run(f"undisturbed-{processes}")
            with self.start(run, DataFault(pace_s=PACE_S), processes) as trainer:
                ended = trainer.wait()
            if ended.code != 0:
                raise _failed(ended)
            self.digests[processes] = answer(ended)["state_digest"]
        return self.digests[processes]

    def run(self, drill: str, phase: str) -> RunDirectory:
        return self.place.project.run(f"{drill}-{phase}")

    def start(
        self, run: RunDirectory, fault: DataFault, processes: int = 1, env: dict[str, str] | None = None, *more: str
    ) -> Trainer:
        """Start, or start again, the training of `run`."""
        arguments = self.place.arguments(run.name, *more)
        if processes > 1:
            arguments = ["launch", "local", "-n", str(processes), "--restarts", "1", *arguments]
        variables = self.place.environment(run.name, fault) | (env or {})
        return Trainer(run, self.place.project.root, arguments, variables)

    def state(self, ended: Ended, processes: int = 1) -> State | None:
        return compared(ended, self.undisturbed(processes))


def compared(ended: Ended, digest: str) -> State | None:
    """The final state of a training, compared with the state of this digest; None if it did not get to its end."""
    if ended.code != 0 or "state_digest" not in answer(ended):
        return None
    return "equal" if answer(ended)["state_digest"] == digest else "different"


def newest_checkpoint(run: RunDirectory) -> int:
    """The step of the newest complete checkpoint, or 0."""
    return max(saved_steps(run), default=0)


def end_text(ended: Ended) -> str:
    return f"signal {ended.signal}" if ended.signal else f"exit {ended.code}"


def expected_of(drill: DrillName, max_steps_lost: int, max_safe_s: float | None = None) -> Expected:
    guarantee = GUARANTEES[drill]
    return Expected(guarantee.ends, max(max_steps_lost, 0), guarantee.state, max_safe_s)


def stopping_fault(course: Course, phase: str) -> DataFault:
    """What the data does so that a fault from outside comes in this phase."""
    if phase in ("data", "evaluation"):
        return reader_fault(course, phase, "pause", STOPPED_READER_S)
    return DataFault(PACE_S)


def reader_fault(course: Course, phase: str, action: Action, seconds: float = 0.0) -> DataFault:
    """A fault of the reader, amid training or in the second validation. Raises Missed."""
    if phase == "data":
        return DataFault(PACE_S, action, "train", course.place.every * 3 // 2, seconds)
    if not course.place.config.train.validate_every:
        raise Missed("the run never validates: train.validate_every = 0")
    return DataFault(PACE_S, action, "validation", 1, seconds)


def compiling(course: Course, phase: str) -> dict[str, str]:
    """The variables of a process that compiles, rather than reading programs from the cache."""
    if phase != "compilation":
        return {}
    folder = course.place.project.root / "compiled" / str(time.monotonic_ns())
    folder.mkdir(parents=True, mode=0o700)
    return {"JAX_COMPILATION_CACHE_DIR": str(folder)}


def reach(course: Course, trainer: Trainer, phase: str) -> None:
    """Wait until the run is in a phase. Raises Missed."""
    run, every = trainer.run, course.place.every
    stopped = reached(course.place.fault_file(run.name))
    conditions: dict[str, Callable[[], bool]] = {
        "start": lambda: run.lock.exists() and run.lock.stat().st_size > 0,
        "compilation": lambda: bool(trainer.events("compile")),
        "data": lambda: stopped.exists() and last_record(run) >= every * 3 // 2 - 1,
        "step": lambda: last_record(run) >= every * 3 // 2,
        "checkpoint": lambda: bool(saved_steps(run)) and is_saving(run),
        "evaluation": stopped.exists,
    }
    trainer.until(conditions[phase], f"the phase {phase}")
    if last_record(run) >= course.place.num_steps:
        raise Missed(f"the phase {phase} was seen too late: the run had done its last step")


def train_again(course: Course, run: RunDirectory, fault: DataFault | None = None, *more: str) -> Ended:
    with course.start(run, fault or DataFault(PACE_S), 1, None, *more) as trainer:
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
    measured = Measured(
        end_text(ended),
        max(recorded - resumed_from(again), 0),
        safe_s,
        since(at, first_record_after(run, again_at)),
        course.state(again),
        (*faults, *unresumed(again, newest)),
    )
    most = recorded - newest if max_steps_lost is None else max_steps_lost
    return judged(drill, phase, expected_of(drill, most, max_safe_s), measured)


def resumed_from(ended: Ended) -> int:
    """The step of the checkpoint that a training went on from, or 0."""
    return int(answer(ended).get("resumed_from") or 0)


def unresumed(ended: Ended, step: int) -> list[str]:
    """The fault of a training that did not resume from `step`; empty if it did."""
    resumed = resumed_from(ended)
    return [] if resumed == step else [f"the run resumed from step {resumed}, not {step}"]


def since(at: float, when: float | None) -> float | None:
    return None if when is None else when - at


def _failed(ended: Ended) -> AifxError:
    error = answer(ended).get("error") or {}
    what = "the run without faults did not get to its end, so there is nothing to compare with"
    return AifxError(what, str(error.get("what") or ended.why), str(error.get("hint") or "aifx train"))
