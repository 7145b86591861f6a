"""The faults of `aifx drill`, injected one after the other, and the report.

Signals to a training, damage to its files between two starts, a reader that hangs or fails, batches that a model
should not learn from, and a disk that is full or fails.
"""

from __future__ import annotations

import logging
import os
import resource
import shutil
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from aifx.core.errors import Terminated, UsageError, did_you_mean
from aifx.core.processes import Ended
from aifx.core.processes import run as run_program
from aifx.core.project import Project, RunDirectory
from aifx.drills.guarantees import (
    ALL,
    DRILL_NAMES,
    GUARANTEES,
    DrillName,
    DrillReport,
    DrillResult,
    Interrupt,
    judged,
    passed,
)
from aifx.drills.injection import DataFault, reached
from aifx.drills.session import (
    OF_RESUMED,
    DrillSession,
    compiling,
    end_text,
    expected_of,
    measure,
    newest_checkpoint,
    reach,
    reader_fault,
    recovered,
    reference_of,
    resumed_from,
    scratch_project,
    since,
    stopping_fault,
    train_again,
)
from aifx.drills.trainer import (
    Missed,
    answer,
    computed_records,
    events,
    first_record_after,
    last_record,
    process_of_job,
    saved_steps,
)
from aifx.registry.versions import digest_of_settings

SILENT_S = 5.0
JOB = 2
STEP_LIMIT_S = 5.0
EXIT_S = 5.0  # beside checkpoint.stop_timeout_s, for Python to end


def kill(session: DrillSession, phase: str) -> DrillResult:
    return _stopped(session, "kill", phase, signal.SIGKILL)


def preempt(session: DrillSession, phase: str) -> DrillResult:
    return _stopped(session, "preempt", phase, signal.SIGTERM)


def corrupt_checkpoint(session: DrillSession, phase: str) -> DrillResult:
    """Damage the newest checkpoint of a run that was killed."""
    run, every = session.run("corrupt-ckpt", phase), session.scratch.every
    reference = session.undisturbed()
    setting = session.scratch.without_local
    with session.start(run, DataFault(), 1, None, setting) as trainer:
        trainer.until(lambda: last_record(run) > 2 * every and len(saved_steps(run)) > 1, "it had two checkpoints")
        trainer.child.send_signal(signal.SIGKILL)
        ended = trainer.wait()
    _check_killed(ended)
    *_, before, newest = saved_steps(run)
    recorded = last_record(run)
    _damage(run.checkpoints / str(newest), phase)
    at = time.time()
    again = train_again(session, run, None, setting)
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


def lost_host(session: DrillSession, phase: str) -> DrillResult:
    """Kill or stop the second process of a job, which restarts by itself."""
    run, reference = session.run("lost-host", phase), session.undisturbed(JOB)
    if phase in OF_RESUMED:
        session.interrupt(run, JOB)
    silent = (f"processes.silent_timeout_s={SILENT_S}",) if phase == "silent" else ()
    moment = "step" if phase == "silent" else phase
    fault, env = stopping_fault(session, run, moment), compiling(session, moment)
    with session.start(run, fault, JOB, env, *silent) as trainer:
        reach(session, trainer, moment)
        victim = process_of_job(trainer.child.pid, 1)
        at = time.time()
        os.kill(victim, signal.SIGSTOP if phase == "silent" else signal.SIGKILL)
        session.release(run)
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


def _stopped(session: DrillSession, drill: DrillName, phase: str, number: signal.Signals) -> DrillResult:
    """Send a signal in a phase, and start the run again."""
    run = session.run(drill, phase)
    session.undisturbed()
    if phase in OF_RESUMED:
        session.interrupt(run)
    with session.start(run, stopping_fault(session, run, phase), 1, compiling(session, phase)) as trainer:
        reach(session, trainer, phase)
        at = time.time()
        trainer.child.send_signal(number)
        session.release(run)
        ended = trainer.wait()
    safe_s = time.time() - at
    if phase == "compilation" and trainer.events("compiled"):
        raise Missed("the compilation was over before the signal came")
    if number == signal.SIGKILL:
        _check_killed(ended)
        return recovered(session, drill, phase, ended, at, safe_s)
    limit_s = session.scratch.config.checkpoint.stop_timeout_s + EXIT_S
    return recovered(session, drill, phase, ended, at, safe_s, max_steps_lost=0, max_safe_s=limit_s)


def slow_step(session: DrillSession, phase: str) -> DrillResult:
    """Stop the process for longer than a step may take, and let it go on."""
    run, reference = session.run("slow-step", phase), session.undisturbed()
    with session.start(run, DataFault(), 1, None, f"guards.step_timeout_s={STEP_LIMIT_S}") as trainer:
        reach(session, trainer, phase)
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


READ_LIMIT_S = 3.0
HANG_LIMIT_S = 30.0
"""Longest time without progress in phases other than a step. A start and a compilation must not take so long."""

WINDOW = 8
SKIP = ("guards.non_finite=skip", "guards.max_in_a_row=3")
ROLL_BACK = ("guards.spike=roll_back", f"guards.spike_window={WINDOW}", "guards.max_rollbacks=5")


def hang(session: DrillSession, phase: str) -> DrillResult:
    """Let the reader of the data hang."""
    run = session.run("hang", phase)
    fault = reader_fault(session, run, phase, "pause")
    limit = f"guards.step_timeout_s={READ_LIMIT_S}" if phase == "data" else f"guards.hang_timeout_s={HANG_LIMIT_S}"
    session.undisturbed()
    with session.start(run, fault, 1, None, limit) as trainer:
        trainer.until(reached(session.scratch.fault_file(run.name)).exists, "its reader hung")
        at = time.time()
        ended = trainer.wait()
    faults = [] if list(run.path.glob("hang-*.txt")) else ["the process wrote no report of the hang"]
    return recovered(session, "hang", phase, ended, at, time.time() - at, faults=faults)


def loader_death(session: DrillSession, phase: str) -> DrillResult:
    """Let the reader of the data raise an error."""
    run = session.run("loader-death", phase)
    session.undisturbed()
    with session.start(run, reader_fault(session, run, phase, "raise")) as trainer:
        trainer.until(reached(session.scratch.fault_file(run.name)).exists, "its reader failed")
        at = time.time()
        ended = trainer.wait()
    error = answer(ended).get("error") or {}
    faults = (
        [] if "cannot be read" in str(error.get("what")) else ["the error does not name the batch that cannot be read"]
    )
    return recovered(session, "loader-death", phase, ended, at, time.time() - at, faults=faults)


def nan(session: DrillSession, phase: str) -> DrillResult:
    """Give the run a batch with NaN, kill it after that, and compare with the same run that is not killed."""
    batch = session.scratch.every * 3 // 2
    fault = DataFault("nan", "train", batch)
    whole, run = session.run("nan", "whole"), session.run("nan", phase)
    ended = _train_with_fault(session, whole, fault, *SKIP)
    if ended.code != 0:
        return DrillResult("nan", phase, "broken", [f"a run with such a batch did not get to its end: {ended.why}"])
    reference = reference_of(whole, ended)
    with session.start(run, fault, 1, None, *SKIP) as trainer:
        trainer.until(
            lambda: last_record(run) > batch + 1 and newest_checkpoint(run) > 0,
            "it had passed the batch with NaN, and had a checkpoint",
        )
        at = time.time()
        trainer.child.send_signal(signal.SIGKILL)
        ended = trainer.wait()
    safe_s, recorded, newest = time.time() - at, last_record(run), newest_checkpoint(run)
    again = train_again(session, run, fault, *SKIP)
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


def spike(session: DrillSession, phase: str) -> DrillResult:
    """Give the run a batch of noise, and compare with a run that never had it."""
    batch = max(session.scratch.every * 2, WINDOW + 1) + 1
    without, run = session.run("spike", "without"), session.run("spike", phase)
    settings = (*ROLL_BACK, session.scratch.without_local)
    ended = _train_with_fault(session, without, DataFault("drop", "train", batch), *settings)
    if ended.code != 0:
        raise Missed(f"the run to compare with did not get to its end: {ended.why}")
    reference = reference_of(without, ended)
    ended = _train_with_fault(session, run, DataFault("noise", "train", batch), *settings)
    back = next(iter(events(run, "rollback")), None)
    if back is None and not _is_spike(session, run, batch + 1):
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
    saved = batch // session.scratch.every * session.scratch.every
    return judged("spike", phase, expected_of("spike", saved, batch + 1 - saved), measured)


def _is_spike(session: DrillSession, run: RunDirectory, step: int) -> bool:
    """Whether the loss of a step that stands in the records is one for which the run should have gone back."""
    from aifx.training.hooks.guard import START, spike_score  # which imports jax, and only a broken guarantee needs it

    losses = [record["loss"] for record in computed_records(run) if record["step"] <= step]
    window = losses[-1 - WINDOW :]
    if len(window) <= WINDOW or None in window:
        return False
    start = statistics.median([loss for loss in losses if loss is not None][:START])
    return spike_score(window[-1], window[:-1], start) > session.scratch.config.guards.spike_score


def _train_with_fault(session: DrillSession, run: RunDirectory, fault: DataFault, *more: str) -> Ended:
    """Train a run whose data has a fault. Raises Missed if it did not come."""
    with session.start(run, fault, 1, None, *more) as trainer:
        ended = trainer.wait()
    if fault.action != "drop" and not reached(session.scratch.fault_file(run.name)).exists():
        if ended.code != 0:
            raise Missed(f"the run ended before its fault: {ended.why}")
        raise Missed("the batches hold only whole numbers, as those of text do, so none can be NaN")
    return ended


ROOM_BYTES = 16 << 20
"""Room on the small disk, in addition to the files of a run of this project."""

FULL_S = 3.0


def disk_full(session: DrillSession, phase: str) -> DrillResult:
    """Let another program take the room of the run's disk, for a while or until the run has ended."""
    run, reference = session.run("disk-full", phase), session.undisturbed()
    taken = sum(path.stat().st_size for path in session.run("undisturbed", "1").path.rglob("*") if path.is_file())
    with _small_disk(run.path, 4 * taken + ROOM_BYTES):
        setting = "checkpoint.disk_timeout_s=3" if phase == "lasting" else "checkpoint.disk_timeout_s=300"
        with session.start(run, DataFault(), 1, None, setting) as trainer:
            reach(session, trainer, "step")
            at = time.time()
            _fill(run.path / "filler")
            if phase == "passing":
                time.sleep(FULL_S)
                (run.path / "filler").unlink()
            ended = trainer.wait()
        if phase == "lasting":
            (run.path / "filler").unlink()
            faults = [] if ended.code == 2 else [f"the run ended with {end_text(ended)} although the disk was full"]
            return recovered(session, "disk-full", phase, ended, at, time.time() - at, faults=faults)
        next_s = since(at, first_record_after(run, at))
        resumed = answer(ended).get("resumed_from")
        measured = measure(
            run, ended, ended, reference, resumed_from=resumed, steps_lost=0, safe_s=None, next_step_s=next_s
        )
        return judged("disk-full", phase, expected_of("disk-full", None, 0), measured)


def io_error(session: DrillSession, phase: str) -> DrillResult:
    """Let each write to a file of the run fail, by a limit on its size that is set from outside."""
    session.undisturbed()
    run = session.run("io-error", phase)
    with session.start(run, DataFault()) as trainer:
        reach(session, trainer, phase)
        at = time.time()
        _, hard = resource.prlimit(trainer.child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(trainer.child.pid, resource.RLIMIT_FSIZE, (1, hard))
        ended = trainer.wait()
    return recovered(session, "io-error", phase, ended, at, time.time() - at)


@contextmanager
def _small_disk(place: Path, size_bytes: int) -> Iterator[None]:
    """A file system of a size, in memory, at `place` for the block. Its files stay there. Raises Missed."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(place)]
    try:
        mounted = run_program(command)
    except OSError as error:
        raise Missed(f"mount cannot be run here: {error}") from None
    if not mounted.succeeded:
        raise Missed(f"a small disk cannot be mounted here: {mounted.why}")
    copy = place.with_name(f"{place.name}.kept")
    try:
        yield
        shutil.copytree(place, copy)
    finally:
        unmounted = run_program(["umount", "-l", str(place)])
        assert unmounted.succeeded, unmounted.why
    place.rmdir()
    copy.rename(place)


def _fill(path: Path) -> None:
    """Write a file until the disk is full, to the last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


DRILLS: Mapping[DrillName, Callable[[DrillSession, str], DrillResult]] = {
    "kill": kill,
    "preempt": preempt,
    "hang": hang,
    "nan": nan,
    "spike": spike,
    "disk-full": disk_full,
    "io-error": io_error,
    "corrupt-ckpt": corrupt_checkpoint,
    "slow-step": slow_step,
    "loader-death": loader_death,
    "lost-host": lost_host,
}

logger = logging.getLogger(__name__)


def chosen(names: Sequence[str], phases: Sequence[str]) -> list[tuple[DrillName, str]]:
    """The drills of these names, in these phases or all of them. Raises UsageError."""
    for name in names:
        if name not in (*DRILL_NAMES, ALL):
            raise UsageError(f"{name!r} is not a drill", did_you_mean(name, (*DRILL_NAMES, ALL)), "aifx drill all")
    drills = [name for name in DRILL_NAMES if name in names or ALL in names]
    known = list(dict.fromkeys(phase for name in drills for phase in GUARANTEES[name].phases))
    for phase in phases:
        if phase not in known:
            raise UsageError(f"--phase {phase} is not a phase of these drills", did_you_mean(phase, known))
    return [(name, phase) for name in drills for phase in GUARANTEES[name].phases if not phases or phase in phases]


def run_drills(
    project: Project,
    drills: Sequence[tuple[DrillName, str]],
    overrides: Sequence[str] = (),
    file: Path | None = None,
    *,
    is_all: bool = False,
    every: int = 6,
    keep: bool = False,
) -> DrillReport:
    """Inject faults into trainings of a copy of the project, and compare the outcome with the guarantees.

    After Ctrl-C or SIGTERM, the report has the results so far.

    Args:
        drills: each with its phase.
        overrides: `section.key=value` of the runs.
        file: the configuration to read instead of the project's `aifx.toml`.
        is_all: leave out drills that cannot be run here, rather than not to pass.
        every: steps between checkpoints. A run has four times as many.
        keep: leave the copy and its runs in place.

    Raises ConfigError, and AifxError if the training fails without any fault.
    """
    results: list[DrillResult] = []
    interrupted: Interrupt | None = None
    with scratch_project(project, every, overrides, file, keep=keep) as scratch:
        session = DrillSession(scratch)
        try:
            for number, (drill, phase) in enumerate(drills):
                logger.info(f"{number + 1} of {len(drills)}: {drill}, {phase}")
                results.append(_drill(session, drill, phase))
        except KeyboardInterrupt as interrupt:
            interrupted = "SIGTERM" if isinstance(interrupt, Terminated) else "SIGINT"
            reason = f"{interrupted} stopped the command"
            results += [DrillResult(drill, phase, "not run", [reason]) for drill, phase in drills[len(results) :]]
        return DrillReport(
            interrupted is None and passed(results, is_all=is_all),
            scratch.num_steps,
            every,
            datetime.now(UTC).isoformat(timespec="seconds"),
            str(scratch.project.root) if keep else None,
            interrupted,
            results,
            digest_of_settings(dict(scratch.config.sections())),
        )


def _drill(session: DrillSession, drill: DrillName, phase: str) -> DrillResult:
    try:
        return DRILLS[drill](session, phase)
    except Missed as missed:
        return DrillResult(drill, phase, "not run", [str(missed)])
