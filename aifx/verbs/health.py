"""The health of machines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.health.report import Report as HealthReport


def doctor(
    *, only: Sequence[str] = (), skip: Sequence[str] = (), site: StrPath | None = None, sample_s: float = 0.0
) -> HealthReport:
    """Check the health of this machine.

    Args:
        only: rules or families to evaluate, such as "nvidia" or "disk.*".
        skip: rules or families to leave out.
        site: the site's file; by default the one that `aifx doctor` reads.
        sample_s: seconds between two readings, from which rates are computed.

    Example:
        >>> report = aifx.doctor(only=["memory"])
        >>> {finding.id.partition(".")[0] for finding in report.findings} <= {"memory"}
        True
    """
    from aifx.health.check import check, collect
    from aifx.health.host import Host
    from aifx.health.rules import load_rules, read_site, select

    began, sites = time.monotonic(), read_site(None if site is None else Path(site))
    rules = select(load_rules(sites).values(), only, skip)
    return check(collect(Host(), rules, sample_s), rules, sites, began)
