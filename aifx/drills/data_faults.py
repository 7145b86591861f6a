"""Faults in what a run reads: a reader that hangs or fails, and batches that a model should not learn from."""

from __future__ import annotations

import signal
import time

from aifx.core.processes import Ended
from aifx.core.project import RunDirectory
from aifx.drills.course import (
    PACE_S,
    Course,
    compared,
    end_text,
    expected_of,
    newest_checkpoint,
    reader_fault,
    recovered,
    resumed_from,
    since,
    train_again,
)
from aifx.drills.guarantees import DrillResult, Measured, judged
from aifx.drills.seam import DataFault, reached
from aifx.drills.trainer import Missed, answer, events, first_record_after, last_record

HANGS_S = 3600.0
STEP_LIMIT_S = 3.0
LIMIT_S = 30.0
"""Of phases other than a step: a start and a compilation must not take so long."""

WINDOW = 8
ROLL_BACK = ("guards.spike=roll_back", f"guards.spike_window={WINDOW}")


def hang(course: Course, phase: str) -> DrillResult:
    """Let the reader of the data hang."""
    run = course.run("hang", phase)
    fault = reader_fault(course, phase, "pause", HANGS_S)
    limit = f"guards.step_timeout_s={STEP_LIMIT_S}" if phase == "data" else f"guards.hang_timeout_s={LIMIT_S}"
    course.undisturbed()
    with course.start(run, fault, 1, None, limit) as trainer:
        trainer.until(reached(course.place.fault_file(run.name)).exists, "its reader hung")
        at = time.time()
        ended = trainer.wait()
    faults = [] if list(run.path.glob("hang-*.txt")) else ["the process wrote no report of the hang"]
    return recovered(course, "hang", phase, ended, at, time.time() - at, faults=faults)


def loader_death(course: Course, phase: str) -> DrillResult:
    """Let the reader of the data raise an error."""
    run = course.run("loader-death", phase)
    course.undisturbed()
    with course.start(run, reader_fault(course, phase, "raise")) as trainer:
        trainer.until(reached(course.place.fault_file(run.name)).exists, "its reader failed")
        at = time.time()
        ended = trainer.wait()
    error = answer(ended).get("error") or {}
    faults = (
        [] if "cannot be read" in str(error.get("what")) else ["the error does not name the batch that cannot be read"]
    )
    return recovered(course, "loader-death", phase, ended, at, time.time() - at, faults=faults)


def nan(course: Course, phase: str) -> DrillResult:
    """Give the run a batch with NaN, kill it after that, and compare with the same run that is not killed."""
    batch = course.place.every * 3 // 2
    fault = DataFault(PACE_S, "nan", "train", batch)
    whole, run = course.run("nan", "whole"), course.run("nan", phase)
    digest = _digest(_train(course, whole, fault))
    with course.start(run, fault) as trainer:
        trainer.until(lambda: last_record(run) > batch + 1, "it had passed the batch with NaN")
        at = time.time()
        trainer.child.send_signal(signal.SIGKILL)
        ended = trainer.wait()
    safe_s, recorded, newest = time.time() - at, last_record(run), newest_checkpoint(run)
    again = train_again(course, run, fault)
    skipped = [{e["batch"] for e in events(of, "skip")} for of in (whole, run)]
    faults = [f"batches {sorted(found)} were skipped, not {batch}" for found in skipped if found != {batch}]
    lost, next_s = max(recorded - resumed_from(again), 0), since(at, first_record_after(run, at + safe_s))
    measured = Measured(end_text(ended), lost, safe_s, next_s, compared(again, digest), tuple(faults))
    return judged("nan", phase, expected_of("nan", recorded - newest), measured)


def spike(course: Course, phase: str) -> DrillResult:
    """Give the run a batch of noise, and compare with a run that never had it."""
    batch = max(course.place.every * 2, WINDOW + 1) + 1
    without, run = course.run("spike", "without"), course.run("spike", phase)
    digest = _digest(_train(course, without, DataFault(PACE_S, "drop", "train", batch), *ROLL_BACK))
    ended = _train(course, run, DataFault(PACE_S, "noise", "train", batch), *ROLL_BACK)
    rollbacks = events(run, "rollback")
    if not rollbacks:
        raise Missed("the loss of a batch of noise is not a spike this early in the run: a larger --every may help")
    back = rollbacks[0]
    faults = [] if back["batches"] == [batch] else [f"batches {back['batches']} were left out, not {batch}"]
    lost, next_s = back["from_step"] - back["to_step"], since(back["time"], first_record_after(run, back["time"]))
    measured = Measured(end_text(ended), lost, None, next_s, compared(ended, digest), tuple(faults))
    return judged("spike", phase, expected_of("spike", course.place.every + 1), measured)


def _train(course: Course, run: RunDirectory, fault: DataFault, *more: str) -> Ended:
    """Train a run whose data has a fault. Raises Missed if it did not come."""
    with course.start(run, fault, 1, None, *more) as trainer:
        ended = trainer.wait()
    if fault.action != "drop" and not reached(course.place.fault_file(run.name)).exists():
        if ended.code != 0:
            raise Missed(f"the run ended before its fault: {ended.why}")
        raise Missed("the batches hold only whole numbers, as those of text do, so none can be NaN")
    return ended


def _digest(ended: Ended) -> str:
    """Of the final state. Raises Missed if the run did not get there."""
    if ended.code != 0:
        raise Missed(f"the run to compare with did not get to its end: {ended.why}")
    return str(answer(ended)["state_digest"])
