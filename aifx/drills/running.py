"""A call of `aifx drill`: one fault after the other, and the report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aifx.core.errors import Terminated, UsageError, did_you_mean
from aifx.core.project import Project
from aifx.drills import data_faults, disk_faults, scenarios
from aifx.drills.course import Course
from aifx.drills.guarantees import ALL, DRILL_NAMES, GUARANTEES, DrillName, DrillReport, DrillResult, Interrupt, passed
from aifx.drills.trainer import Missed
from aifx.drills.workplace import copied

DRILLS: Mapping[DrillName, Callable[[Course, str], DrillResult]] = {
    "kill": scenarios.kill,
    "preempt": scenarios.preempt,
    "hang": data_faults.hang,
    "nan": data_faults.nan,
    "spike": data_faults.spike,
    "disk-full": disk_faults.disk_full,
    "io-error": disk_faults.io_error,
    "corrupt-ckpt": scenarios.corrupt_checkpoint,
    "slow-step": scenarios.slow_step,
    "loader-death": data_faults.loader_death,
    "lost-host": scenarios.lost_host,
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
    with copied(project, every, overrides, file, keep=keep) as place:
        course = Course(place)
        try:
            for number, (drill, phase) in enumerate(drills):
                logger.info(f"{number + 1} of {len(drills)}: {drill}, {phase}")
                results.append(_drill(course, drill, phase))
        except KeyboardInterrupt as interrupt:
            interrupted = "SIGTERM" if isinstance(interrupt, Terminated) else "SIGINT"
            reason = f"{interrupted} stopped the command"
            results += [DrillResult(drill, phase, "not run", [reason]) for drill, phase in drills[len(results) :]]
        return DrillReport(
            interrupted is None and passed(results, is_all=is_all),
            place.num_steps,
            every,
            str(place.project.root) if keep else None,
            interrupted,
            results,
        )


def _drill(course: Course, drill: DrillName, phase: str) -> DrillResult:
    try:
        return DRILLS[drill](course, phase)
    except Missed as missed:
        return DrillResult(drill, phase, "not run", [str(missed)])
