"""Faults on purpose, and whether runs recover as promised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.project import find_project
from aifx.verbs.arguments import Settings, StrPath, overrides

if TYPE_CHECKING:
    from aifx.drills.guarantees import DrillReport, DrillResult


def drill(
    *names: str,
    phases: Sequence[str] = (),
    every: int = 6,
    settings: Settings = None,
    config: StrPath | None = None,
    keep: bool = False,
    project: StrPath = ".",
) -> DrillReport:
    """Inject faults into short runs of a copy of the project, and check that they recover as promised.

    Each drill runs once for each phase of a run in which it makes sense. The project's own runs are not touched. The
    verdict is bad if a guarantee is broken or not shown.

    Args:
        names: "kill", "preempt", "hang", "nan", "spike", "disk-full", "io-error", "corrupt-ckpt", "slow-step",
            "loader-death", "lost-host", or "all" of them.
        phases: only in these.
        every: steps between checkpoints; a run has four times as many steps.
        settings: values over those of aifx.toml, by key.
        config: file to read instead of the project's aifx.toml.
        keep: keep the copy of the project with its runs.
        project: a folder in the project.

    Example:
        >>> aifx.drill("corrupt-ckpt", every=3).passed
        True
    """
    from aifx.drills.guarantees import ALL
    from aifx.drills.record import leave_drills
    from aifx.drills.scenarios import chosen, run_drills

    drills = chosen(names, phases)
    file = None if config is None else Path(config)
    found = find_project(Path(project))
    report = run_drills(found, drills, overrides(settings), file, is_all=ALL in names, every=every, keep=keep)
    leave_drills(report, found.runs_path)
    return report
