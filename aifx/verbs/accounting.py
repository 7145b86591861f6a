"""KPIs of projects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.errors import UsageError, did_you_mean
from aifx.core.files import write_output
from aifx.core.pages import write_page
from aifx.core.project import Project, find_project
from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.accounting.groups import By
    from aifx.accounting.reading import Period, ProjectUse
    from aifx.accounting.report import Group, Kpi, Kpis


def kpis(
    *projects: StrPath,
    since: str | None = None,
    by: By | None = None,
    html: StrPath | None = None,
    csv: StrPath | None = None,
) -> Kpis:
    """Add up what projects used and what came of it: time, money, energy, promotions, alarms and drills.

    Files on disk and registries are read, those at URLs too. No code of the projects runs.

    Args:
        projects: folders in projects; by default the project around the working directory.
        since: age of what is counted, such as "30d"; by default all that is on disk.
        by: also add up each "team", "tag", "model" or "month".
        html: a web page to write.
        csv: a file of comma-separated values to write.

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
    found = find_projects(projects)
    uses = [read_project(one, period) for one in found]
    report = make_report(uses, period)
    if by is not None:
        report = replace(report, by=by, groups=_groups(found, uses, by, period))
    if html is not None:
        from aifx.accounting.output import kpis_page

        write_page(kpis_page(report), Path(html))
    if csv is not None:
        from aifx.accounting.output import kpis_csv

        write_output(Path(csv), kpis_csv(report).encode(errors="backslashreplace"))
    return report


def _groups(projects: Sequence[Project], uses: Sequence[ProjectUse], by: By, period: Period) -> list[Group]:
    from aifx.accounting.groups import BYS, group_uses
    from aifx.accounting.reading import months, read_project
    from aifx.accounting.report import make_group

    if by not in BYS:
        raise UsageError(f"--by {by}", did_you_mean(by, BYS) or f"one of {', '.join(BYS)}", "--by model")
    if by != "month":
        return [make_group(name, parts, period) for name, parts in group_uses(uses, by).items()]
    return [
        make_group(name, [read_project(one, month) for one in projects], month)
        for name, month in months(projects, period)
    ]


def find_projects(folders: Sequence[StrPath]) -> list[Project]:
    """The projects around some folders, each once. Raises UsageError."""
    found = [find_project(Path(folder)) for folder in folders or (".",)]
    return list({one.root: one for one in found}.values())
