"""Faults that come from outside: signals to a training, and damage to its files between two starts."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from aifx.core.processes import Ended
from aifx.drills.course import (
    OF_RESUMED,
    Course,
    compiling,
    expected_of,
    measure,
    newest_checkpoint,
    reach,
    recovered,
    resumed_from,
    since,
    stopping_fault,
    train_again,
)
from aifx.drills.guarantees import DrillName, DrillResult, judged
from aifx.drills.seam import DataFault
from aifx.drills.trainer import Missed, answer, first_record_after, last_record, process_of_job, saved_steps

SILENT_S = 5.0
JOB = 2
STEP_LIMIT_S = 5.0
EXIT_S = 5.0  # beside checkpoint.stop_timeout_s, for Python to end


def kill(course: Course, phase: str) -> DrillResult:
    return _stopped(course, "kill", phase, signal.SIGKILL)


def preempt(course: Course, phase: str) -> DrillResult:
    return _stopped(course, "preempt", phase, signal.SIGTERM)


def corrupt_checkpoint(course: Course, phase: str) -> DrillResult:
    """Damage the newest checkpoint of a run that was killed."""
    run, every = course.run("corrupt-ckpt", phase), course.place.every
    reference = course.undisturbed()
    setting = course.place.without_local
    with course.start(run, DataFault(), 1, None, setting) as trainer:
        trainer.until(lambda: last_record(run) > 2 * every and len(saved_steps(run)) > 1, "it had two checkpoints")
        trainer.child.send_signal(signal.SIGKILL)
        ended = trainer.wait()
    _check_killed(ended)
    *_, before, newest = saved_steps(run)
    recorded = last_record(run)
    _damage(run.checkpoints / str(newest), phase)
    at = time.time()
    again = train_again(course, run, None, setting)
    aside = run.checkpoints / f"{newest}.damaged"
    aside_at = aside.stat().st_ctime if aside.is_dir() else time.time()  # a rename changes it
    measured = measure(
        run,
        ended,
        again,
        reference,
        resumed_from=resumed_from(again),
        steps_lost=recorded - resumed_from(again),
        safe_s=aside_at - at,
        next_step_s=since(at, first_record_after(run, at)),
        faults=[] if aside.is_dir() else [f"{aside.name} is not there"],
    )
    return judged("corrupt-ckpt", phase, expected_of("corrupt-ckpt", before, recorded - before), measured)


def lost_host(course: Course, phase: str) -> DrillResult:
    """Kill or stop the second process of a job, which restarts by itself."""
    run, reference = course.run("lost-host", phase), course.undisturbed(JOB)
    if phase in OF_RESUMED:
        course.interrupt(run, JOB)
    silent = (f"processes.silent_timeout_s={SILENT_S}",) if phase == "silent" else ()
    moment = "step" if phase == "silent" else phase
    fault, env = stopping_fault(course, run, moment), compiling(course, moment)
    with course.start(run, fault, JOB, env, *silent) as trainer:
        reach(course, trainer, moment)
        victim = process_of_job(trainer.child.pid, 1)
        at = time.time()
        os.kill(victim, signal.SIGSTOP if phase == "silent" else signal.SIGKILL)
        course.release(run)
        recorded, newest = last_record(run), newest_checkpoint(run)
        trainer.until(lambda: any("restart 1 of" in line for line in trainer.error_lines), "it was restarted")
        safe_at = time.time()
        recorded, newest = max(recorded, last_record(run)), max(newest, newest_checkpoint(run))
        ended = trainer.wait()
    measured = measure(
        run,
        ended,
        ended,
        reference,
        resumed_from=resumed_from(ended),
        steps_lost=max(recorded - resumed_from(ended), 0),
        safe_s=safe_at - at,
        next_step_s=since(at, first_record_after(run, safe_at)),
    )
    return judged("lost-host", phase, expected_of("lost-host", newest, recorded - newest), measured)


def _stopped(course: Course, drill: DrillName, phase: str, number: signal.Signals) -> DrillResult:
    """Send a signal in a phase, and start the run again."""
    run = course.run(drill, phase)
    course.undisturbed()
    if phase in OF_RESUMED:
        course.interrupt(run)
    with course.start(run, stopping_fault(course, run, phase), 1, compiling(course, phase)) as trainer:
        reach(course, trainer, phase)
        at = time.time()
        trainer.child.send_signal(number)
        course.release(run)
        ended = trainer.wait()
    safe_s = time.time() - at
    if phase == "compilation" and trainer.events("compiled"):
        raise Missed("the compilation was over before the signal came")
    if number == signal.SIGKILL:
        _check_killed(ended)
        return recovered(course, drill, phase, ended, at, safe_s)
    limit_s = course.place.config.checkpoint.stop_timeout_s + EXIT_S
    return recovered(course, drill, phase, ended, at, safe_s, max_steps_lost=0, max_safe_s=limit_s)


def slow_step(course: Course, phase: str) -> DrillResult:
    """Stop the process for longer than a step may take, and let it go on."""
    run, reference = course.run("slow-step", phase), course.undisturbed()
    with course.start(run, DataFault(), 1, None, f"guards.step_timeout_s={STEP_LIMIT_S}") as trainer:
        reach(course, trainer, phase)
        at = time.time()
        trainer.child.send_signal(signal.SIGSTOP)
        time.sleep(STEP_LIMIT_S + 3.0)
        on_at = time.time()
        trainer.child.send_signal(signal.SIGCONT)
        ended = trainer.wait()
    next_s = since(at, first_record_after(run, on_at))
    resumed = answer(ended).get("resumed_from")
    measured = measure(
        run, ended, ended, reference, resumed_from=resumed, steps_lost=0, safe_s=None, next_step_s=next_s
    )
    return judged("slow-step", phase, expected_of("slow-step", None, 0), measured)


def _check_killed(ended: Ended) -> None:
    """Raise Missed if a training reached its end before SIGKILL came."""
    if ended.code == 0:
        raise Missed("the run had done its last step before the signal came")


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
