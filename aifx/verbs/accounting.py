"""KPIs of projects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import UsageError
from aifx.core.project import Project, find_project
from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.accounting.report import DeviceHours, Kpi, Kpis


def kpis(*projects: StrPath, since: str | None = None) -> Kpis:
    """Add up what projects used and what came of it: time, money, energy, promotions, alarms and drills.

    Only files on disk are read. No code of the projects runs.

    Args:
        projects: folders in projects; by default the project around the working directory.
        since: age of what is counted, such as "30d"; by default all that is on disk.

    Example:
        >>> [one.value for one in aifx.kpis(since="1w").kpis if one.name == "runs"]
        [2]
    """
    from aifx.accounting.reading import Period, read_project
    from aifx.accounting.report import make_report
    from aifx.lines.schedule import parse_duration

    now = time.time()
    try:
        begin = None if since is None else now - parse_duration(since)
    except ValueError as error:
        raise UsageError(f"--since {since}", str(error), "--since 30d") from None
    period = Period(begin, now)
    return make_report([read_project(one, period) for one in find_projects(projects)], period)


def find_projects(folders: Sequence[StrPath]) -> list[Project]:
    """The projects around some folders, each once. Raises UsageError."""
    found = [find_project(Path(folder)) for folder in folders or (".",)]
    return list({one.root: one for one in found}.values())
