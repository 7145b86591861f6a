"""Render a health report as one web page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from aifx.core.pages import date, render
from aifx.health.report import SEVERITIES, STATUSES, Report, Skipped, counts, folded, num_words

if TYPE_CHECKING:
    from aifx.health.fleet.report import FleetReport, Node

MAX_NODES = 200
"""Nodes whose findings are listed: with ten findings each, this is about 2 MB, which mail servers still accept."""

MAX_SUSPECTS = 50
NUM_OPEN = 3


def node_page(report: Report, ids: Sequence[str], time: float) -> str:
    """Return the page of one node.

    Args:
    ids: the selected rules.
    time: of the snapshot, Unix time.
    """
    return _page(
        "node.html",
        title=report.host or "this machine",
        status=report.status,
        counts=counts(report),
        rules=num_words(report, ids),
        time=date(time),
        findings=folded(report.findings),
        skipped=_by_reason([report.skipped]),
    )


def fleet_page(report: FleetReport, time: float) -> str:
    """Return the page of a fleet.

    Args:
    time: of the report, Unix time.
    """
    nodes = sorted(report.nodes, key=_badness)
    with_findings = [node for node in nodes if node.why or (node.report is not None and node.report.findings)]
    shown = with_findings[:MAX_NODES]
    found = Counter(node.status for node in nodes)
    return _page(
        "fleet.html",
        title=f"{len(nodes)} node{'s' if len(nodes) != 1 else ''}",
        status=report.status,
        counts=", ".join(f"{found[status]} {status}" for status in STATUSES if found[status]) or "none answered",
        time=date(time),
        report=report,
        nodes=nodes,
        shown=[(node, folded(node.report.findings) if node.report else []) for node in shown],
        anchors={node.name: f"node-{number}" for number, node in enumerate(shown)},
        count_words=counts,
        num_hidden=len(with_findings) - len(shown),
        num_open=NUM_OPEN,
        max_suspects=MAX_SUSPECTS,
        skipped=_by_reason(node.report.skipped for node in nodes if node.report),
    )


def _badness(node: Node) -> tuple[int, list[int], str]:
    found = Counter(finding.severity for finding in node.report.findings) if node.report else Counter[str]()
    return STATUSES.index(node.status), [-found[severity] for severity in SEVERITIES], node.name


def _by_reason(reports: Iterable[Iterable[Skipped]]) -> list[tuple[list[str], str, int]]:
    """Return skipped rules, the reason, and the number of nodes; the most frequent first."""
    nodes: Counter[tuple[tuple[str, ...], str]] = Counter()
    for skipped in reports:
        by_why: dict[str, list[str]] = {}
        for one in skipped:
            by_why.setdefault(one.why, []).append(one.id)
        nodes.update((tuple(ids), why) for why, ids in by_why.items())
    return [(list(ids), why, count) for (ids, why), count in nodes.most_common()]


def _page(template: str, **values: Any) -> str:
    return render("aifx.health", template, command="aifx doctor", **values)
