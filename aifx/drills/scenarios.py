"""Faults that come from outside: signals to a training, and damage to its files between two starts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aifx.core.errors import AifxError
from aifx.core.processes import Ended
from aifx.core.project import RunDirectory
from aifx.drills.guarantees import GUARANTEES, DrillName, DrillResult, Expected, Measured, State, judged
from aifx.drills.seam import DataFault, reached
from aifx.drills.trainer import (
    Missed,
    Trainer,
    answer,
    first_record_after,
    is_saving,
    last_record,
    process_of_job,
    saved_steps,
)
from aifx.drills.workplace import Workplace

PACE_S = 0.05
"""Between two batches at least, so that a run of small steps is not over before a fault comes."""

STOPPED_READER_S = 2.0
"""So long the reader of the data stops, for a fault to come meanwhile. SIGTERM waits for it."""

SILENT_S = 5.0
JOB = 2
EXIT_S = 5.0  # beside checkpoint.stop_timeout_s, for Python to end


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
        if ended.code != 0 or "state_digest" not in answer(ended):
            return None
        return "equal" if answer(ended)["state_digest"] == self.undisturbed(processes) else "different"


def end_text(ended: Ended) -> str:
    return f"signal {ended.signal}" if ended.signal else f"exit {ended.code}"


def kill(course: Course, phase: str) -> DrillResult:
    return _stopped(course, "kill", phase, signal.SIGKILL)


def preempt(course: Course, phase: str) -> DrillResult:
    return _stopped(course, "preempt", phase, signal.SIGTERM)


def corrupt_checkpoint(course: Course, phase: str) -> DrillResult:
    """Damage the newest checkpoint of a run that was killed."""
    run, every = course.place.project.run(f"corrupt-ckpt-{phase}"), course.place.every
    with course.start(run, DataFault(PACE_S)) as trainer:
        trainer.until(lambda: last_record(run) > 2 * every and len(saved_steps(run)) > 1, "it had two checkpoints")
        trainer.child.send_signal(signal.SIGKILL)
        ended = trainer.wait()
    *_, before, newest = saved_steps(run)
    recorded = last_record(run)
    _damage(run.checkpoints / str(newest), phase)
    at = time.time()
    again = _train_again(course, run)
    faults, aside = _unresumed(again, before), run.checkpoints / f"{newest}.damaged"
    if not aside.is_dir():
        faults.append(f"{aside.name} is not there")
    aside_at = aside.stat().st_ctime if aside.is_dir() else time.time()  # a rename changes it
    measured = Measured(
        end_text(ended),
        recorded - _resumed_from(again),
        aside_at - at,
        _since(at, first_record_after(run, at)),
        course.state(again),
        tuple(faults),
    )
    return judged("corrupt-ckpt", phase, _expected("corrupt-ckpt", recorded - before), measured)


def lost_host(course: Course, phase: str) -> DrillResult:
    """Kill or stop the second process of a job, which restarts by itself."""
    run = course.place.project.run(f"lost-host-{phase}")
    course.undisturbed(JOB)
    silent = (f"processes.silent_timeout_s={SILENT_S}",) if phase == "silent" else ()
    moment = "step" if phase == "silent" else phase
    fault, env = _fault(course, moment), _compiling(course, moment)
    with course.start(run, fault, JOB, env, *silent) as trainer:
        _reach(course, trainer, moment)
        victim = process_of_job(trainer.child.pid, 1)
        at = time.time()
        os.kill(victim, signal.SIGSTOP if phase == "silent" else signal.SIGKILL)
        recorded, newest = last_record(run), (saved_steps(run) or [0])[-1]
        trainer.until(lambda: any("restart 1 of" in line for line in trainer.error_lines), "it was restarted")
        safe_at = time.time()
        recorded, newest = max(recorded, last_record(run)), max(newest, *(saved_steps(run) or [0]))
        ended = trainer.wait()
    measured = Measured(
        end_text(ended),
        max(recorded - _resumed_from(ended), 0),
        safe_at - at,
        _since(at, first_record_after(run, safe_at)),
        course.state(ended, JOB),
        tuple(_unresumed(ended, newest)),
    )
    return judged("lost-host", phase, _expected("lost-host", recorded - newest), measured)


def _stopped(course: Course, drill: DrillName, phase: str, number: signal.Signals) -> DrillResult:
    """Send a signal in a phase, and start the run again."""
    run = course.place.project.run(f"{drill}-{phase}")
    course.undisturbed()
    with course.start(run, _fault(course, phase), 1, _compiling(course, phase)) as trainer:
        _reach(course, trainer, phase)
        at = time.time()
        trainer.child.send_signal(number)
        ended = trainer.wait()
    safe_s, recorded, newest = time.time() - at, last_record(run), (saved_steps(run) or [0])[-1]
    if phase == "compilation" and trainer.events("compiled"):
        raise Missed("the compilation was over before the signal came")
    again = _train_again(course, run)
    measured = Measured(
        end_text(ended),
        max(recorded - _resumed_from(again), 0),
        safe_s,
        _since(at, first_record_after(run, at + safe_s)),
        course.state(again),
        tuple(_unresumed(again, newest)),
    )
    loses_nothing = number == signal.SIGTERM
    limit_s = course.place.config.checkpoint.stop_timeout_s + EXIT_S if loses_nothing else None
    expected = _expected(drill, 0 if loses_nothing else recorded - newest, limit_s)
    return judged(drill, phase, expected, measured)


def _expected(drill: DrillName, max_steps_lost: int, max_safe_s: float | None = None) -> Expected:
    guarantee = GUARANTEES[drill]
    return Expected(guarantee.ends, max(max_steps_lost, 0), guarantee.state, max_safe_s)


def _fault(course: Course, phase: str) -> DataFault:
    """What the data does so that a fault from outside comes in this phase."""
    if phase == "data":
        return DataFault(PACE_S, "pause", "train", course.place.every * 3 // 2, STOPPED_READER_S)
    if phase == "evaluation":
        if not course.place.config.train.validate_every:
            raise Missed("the run never validates: train.validate_every = 0")
        return DataFault(PACE_S, "pause", "validation", 1, STOPPED_READER_S)
    return DataFault(PACE_S)


def _compiling(course: Course, phase: str) -> dict[str, str]:
    """The variables of a process that compiles, rather than reading what an earlier one has compiled."""
    if phase != "compilation":
        return {}
    folder = course.place.project.root / "compiled" / str(time.monotonic_ns())
    folder.mkdir(parents=True, mode=0o700)
    return {"JAX_COMPILATION_CACHE_DIR": str(folder)}


def _reach(course: Course, trainer: Trainer, phase: str) -> None:
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


def _train_again(course: Course, run: RunDirectory) -> Ended:
    with course.start(run, DataFault(PACE_S)) as trainer:
        return trainer.wait()


def _resumed_from(ended: Ended) -> int:
    """The step of the checkpoint that a training went on from, or 0."""
    return int(answer(ended).get("resumed_from") or 0)


def _unresumed(ended: Ended, step: int) -> list[str]:
    """The fault of a training that did not resume from `step`; empty if it did."""
    resumed = _resumed_from(ended)
    return [] if resumed == step else [f"the run resumed from step {resumed}, not {step}"]


def _since(at: float, when: float | None) -> float | None:
    return None if when is None else when - at


def _damage(checkpoint: Path, how: str) -> None:
    """Damage the largest file with arrays of a checkpoint."""
    files = [path for path in (checkpoint / "state").rglob("*") if path.parent.name == "d"]  # of OCDBT
    largest = max(files, key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    middle = len(content) // 2
    if how == "flip":
        largest.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "cut":
        largest.write_bytes(content[:middle])
    else:
        largest.unlink()


def _failed(ended: Ended) -> AifxError:
    error = answer(ended).get("error") or {}
    what = "the run without faults did not get to its end, so there is nothing to compare with"
    return AifxError(what, str(error.get("what") or ended.why), str(error.get("hint") or "aifx train"))


DRILLS: dict[DrillName, Callable[[Course, str], DrillResult]] = {
    "kill": kill,
    "preempt": preempt,
    "corrupt-ckpt": corrupt_checkpoint,
    "lost-host": lost_host,
}
