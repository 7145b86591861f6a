"""Print a fleet's report for people on one screen: the suspects, and the most frequent findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from aifx.commands.console.output import Output
from aifx.commands.doctor.report import STYLES, Row, details, show_rows, show_status
from aifx.health.fleet.report import FleetReport, Group, Suspect, grouped

NUM_SUSPECTS, NUM_GROUPS, NUM_NAMES = 10, 12, 8


def show_fleet(out: Output, report: FleetReport) -> None:
    """Print the report. This prints nothing with --json."""
    if out.json:
        return
    _headline(out, report)
    if report.suspects:
        out.print("")
        first = report.suspects[:NUM_SUSPECTS]
        columns = ["suspect", "GPU-hours", "chance", "because"]
        out.table(columns, [_suspect(one) for one in first], right=["GPU-hours", "chance"], wrap=True)
        _more(out, len(report.suspects) - len(first), "suspect")
    groups = grouped(report)
    for group in groups[:NUM_GROUPS]:
        out.print("")
        show_rows(out, _block(group))
    _more(out, len(groups) - NUM_GROUPS, "finding")
    if report.not_heard:
        out.print("")
        out.print(f"ended early: {len(report.not_heard):,} nodes did not answer yet: {listed(report.not_heard)}")


def listed(names: Sequence[str]) -> str:
    """Return names as text, shortened."""
    more = f" and {len(names) - NUM_NAMES:,} more" if len(names) > NUM_NAMES else ""
    return ", ".join(names[:NUM_NAMES]) + more


def _headline(out: Output, report: FleetReport) -> None:
    found = Counter(node.status for node in report.nodes)
    counts = ", ".join(f"{found[s]:,} {s}" for s in ("healthy", "warning", "unhealthy", "unknown") if found[s])
    number = len(report.nodes)
    details = f" ({counts or 'none answered'}; {report.duration_s:.1f} s)"
    show_status(out, f"{number:,} node{'s' * (number != 1)}: ", report.status, details)


def _suspect(suspect: Suspect) -> tuple[str, str, str, str]:
    because = suspect.causes[0]
    more = f" (+{len(suspect.causes) - 1})" if len(suspect.causes) > 1 else ""
    lost, chance = f"{suspect.lost_gpu_hours:,.1f}", f"{suspect.probability:.0%}"
    return suspect.node, lost, chance, f"{because.summary}{more}"


def _block(group: Group) -> list[Row]:
    finding, count = group.finding, len(group.nodes)
    nodes = f"{count:,} node{'s' * (count != 1)}: " if count else ""
    summary = finding.summary if group.is_alike or count < 2 else f"{finding.summary} (or the like)"
    rows = {
        "nodes": listed(group.nodes),
        "rule": finding.id,
        "seen": "" if finding.severity == "unknown" else finding.evidence,
        "do": finding.action,
    }
    return [(f"{finding.severity:10}", STYLES[finding.severity], nodes + summary, "bold"), *details(rows)]


def _more(out: Output, count: int, what: str) -> None:
    if count > 0:
        out.print(f"and {count:,} more {what}{'s' * (count != 1)}: --json has them all")
