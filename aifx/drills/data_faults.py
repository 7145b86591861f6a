"""Faults in what a run reads: a reader that hangs or fails, and batches that a model should not learn from."""

from __future__ import annotations

import signal
import statistics
import time

from aifx.core.processes import Ended
from aifx.core.project import RunDirectory
from aifx.drills.course import (
    Course,
    expected_of,
    measure,
    newest_checkpoint,
    reader_fault,
    recovered,
    reference_of,
    resumed_from,
    since,
    train_again,
)
from aifx.drills.guarantees import DrillResult, judged
from aifx.drills.seam import DataFault, reached
from aifx.drills.trainer import Missed, answer, computed_records, events, first_record_after, last_record

STEP_LIMIT_S = 3.0
LIMIT_S = 30.0
"""Of phases other than a step: a start and a compilation must not take so long."""

WINDOW = 8
SKIP = ("guards.non_finite=skip", "guards.max_in_a_row=3")
ROLL_BACK = ("guards.spike=roll_back", f"guards.spike_window={WINDOW}", "guards.max_rollbacks=5")


def hang(course: Course, phase: str) -> DrillResult:
    """Let the reader of the data hang."""
    run = course.run("hang", phase)
    fault = reader_fault(course, run, phase, "pause")
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
    with course.start(run, reader_fault(course, run, phase, "raise")) as trainer:
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
    fault = DataFault("nan", "train", batch)
    whole, run = course.run("nan", "whole"), course.run("nan", phase)
    ended = _train(course, whole, fault, *SKIP)
    if ended.code != 0:
        return DrillResult("nan", phase, "broken", [f"a run with such a batch did not get to its end: {ended.why}"])
    reference = reference_of(whole, ended)
    with course.start(run, fault, 1, None, *SKIP) as trainer:
        trainer.until(
            lambda: last_record(run) > batch + 1 and newest_checkpoint(run) > 0,
            "it had passed the batch with NaN, and had a checkpoint",
        )
        at = time.time()
        trainer.child.send_signal(signal.SIGKILL)
        ended = trainer.wait()
    safe_s, recorded, newest = time.time() - at, last_record(run), newest_checkpoint(run)
    again = train_again(course, run, fault, *SKIP)
    skipped = [{e["batch"] for e in events(of, "skip")} for of in (whole, run)]
    faults = [f"batches {sorted(found)} were skipped, not {batch}" for found in skipped if found != {batch}]
    measured = measure(
        run,
        ended,
        again,
        reference,
        resumed_from=resumed_from(again),
        steps_lost=max(recorded - resumed_from(again), 0),
        safe_s=safe_s,
        next_step_s=since(at, first_record_after(run, at + safe_s)),
        faults=faults,
    )
    return judged("nan", phase, expected_of("nan", newest, recorded - newest), measured)


def spike(course: Course, phase: str) -> DrillResult:
    """Give the run a batch of noise, and compare with a run that never had it."""
    batch = max(course.place.every * 2, WINDOW + 1) + 1
    without, run = course.run("spike", "without"), course.run("spike", phase)
    settings = (*ROLL_BACK, course.place.without_local)
    ended = _train(course, without, DataFault("drop", "train", batch), *settings)
    if ended.code != 0:
        raise Missed(f"the run to compare with did not get to its end: {ended.why}")
    reference = reference_of(without, ended)
    ended = _train(course, run, DataFault("noise", "train", batch), *settings)
    back = next(iter(events(run, "rollback")), None)
    if back is None and not _is_spike(course, run, batch + 1):
        raise Missed("the loss of a batch of noise is not a spike this early in the run: a larger --every may help")
    at, left_out = (back["time"], back["batches"]) if back else (None, [])
    measured = measure(
        run,
        ended,
        ended,
        reference,
        resumed_from=back["to_step"] if back else None,
        steps_lost=back["from_step"] - back["to_step"] if back else 0,
        safe_s=None,
        next_step_s=since(at, first_record_after(run, at)) if at else None,
        faults=[] if left_out == [batch] else [f"batches {left_out} were left out, not {batch}"],
    )
    saved = batch // course.place.every * course.place.every
    return judged("spike", phase, expected_of("spike", saved, batch + 1 - saved), measured)


def _is_spike(course: Course, run: RunDirectory, step: int) -> bool:
    """Whether the loss of a step that stands in the records is one for which the run should have gone back."""
    from aifx.training.hooks.guard import START, spike_score  # which imports jax, and only a broken guarantee needs it

    losses = [record["loss"] for record in computed_records(run) if record["step"] <= step]
    window = losses[-1 - WINDOW :]
    if len(window) <= WINDOW or None in window:
        return False
    start = statistics.median([loss for loss in losses if loss is not None][:START])
    return spike_score(window[-1], window[:-1], start) > course.place.config.guards.spike_score


def _train(course: Course, run: RunDirectory, fault: DataFault, *more: str) -> Ended:
    """Train a run whose data has a fault. Raises Missed if it did not come."""
    with course.start(run, fault, 1, None, *more) as trainer:
        ended = trainer.wait()
    if fault.action != "drop" and not reached(course.place.fault_file(run.name)).exists():
        if ended.code != 0:
            raise Missed(f"the run ended before its fault: {ended.why}")
        raise Missed("the batches hold only whole numbers, as those of text do, so none can be NaN")
    return ended
