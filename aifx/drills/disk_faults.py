"""Faults of the disk that a run is written to."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aifx.core.processes import run
from aifx.drills.course import Course, end_text, expected_of, measure, reach, recovered, since
from aifx.drills.guarantees import DrillResult, judged
from aifx.drills.seam import DataFault
from aifx.drills.trainer import Missed, answer, first_record_after

ROOM_BYTES = 16 << 20
"""Of the small disk, in addition to the files of a run of this project."""

FULL_S = 3.0


def disk_full(course: Course, phase: str) -> DrillResult:
    """Let another program take the room of the run's disk, for a while or until the run has ended."""
    run, reference = course.run("disk-full", phase), course.undisturbed()
    taken = sum(path.stat().st_size for path in course.run("undisturbed", "1").path.rglob("*") if path.is_file())
    with _small_disk(run.path, 4 * taken + ROOM_BYTES):
        setting = "checkpoint.disk_timeout_s=3" if phase == "lasting" else "checkpoint.disk_timeout_s=300"
        with course.start(run, DataFault(), 1, None, setting) as trainer:
            reach(course, trainer, "step")
            at = time.time()
            _fill(run.path / "filler")
            if phase == "passing":
                time.sleep(FULL_S)
                (run.path / "filler").unlink()
            ended = trainer.wait()
        if phase == "lasting":
            (run.path / "filler").unlink()
            faults = [] if ended.code == 2 else [f"the run ended with {end_text(ended)} although the disk was full"]
            return recovered(course, "disk-full", phase, ended, at, time.time() - at, faults=faults)
        next_s = since(at, first_record_after(run, at))
        resumed = answer(ended).get("resumed_from")
        measured = measure(
            run, ended, ended, reference, resumed_from=resumed, steps_lost=0, safe_s=None, next_step_s=next_s
        )
        return judged("disk-full", phase, expected_of("disk-full", None, 0), measured)


def io_error(course: Course, phase: str) -> DrillResult:
    """Let each write to a file of the run fail, by a limit on its size that is set from outside."""
    course.undisturbed()
    run = course.run("io-error", phase)
    with course.start(run, DataFault()) as trainer:
        reach(course, trainer, phase)
        at = time.time()
        _, hard = resource.prlimit(trainer.child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(trainer.child.pid, resource.RLIMIT_FSIZE, (1, hard))
        ended = trainer.wait()
    return recovered(course, "io-error", phase, ended, at, time.time() - at)


@contextmanager
def _small_disk(place: Path, size_bytes: int) -> Iterator[None]:
    """A file system of a size, in memory, at `place` for the block. Its files stay there. Raises Missed."""
    place.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(place)]
    try:
        mounted = run(command)
    except OSError as error:
        raise Missed(f"mount cannot be run here: {error}") from None
    if not mounted.succeeded:
        raise Missed(f"a small disk cannot be mounted here: {mounted.why}")
    copy = place.with_name(f"{place.name}.kept")
    try:
        yield
        shutil.copytree(place, copy)
    finally:
        unmounted = run(["umount", "-l", str(place)])
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
