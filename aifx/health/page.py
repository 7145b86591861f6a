"""Render a health report as one web page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aifx.core.pages import date, render
from aifx.health.report import SEVERITIES, STATUSES, Report, by_reason, counts, folded, skipped_rules

if TYPE_CHECKING:
    from aifx.health.fleet.report import FleetReport, Node

MAX_NODES = 200
"""Nodes whose findings are listed: with ten findings each, this is about 2 MB, which mail servers still accept."""

MAX_SUSPECTS = 50
NUM_OPEN = 3


def node_page(report: Report, ids: Sequence[str], time: float) -> str:
    """Return the page of one node, of which `ids` are the selected rules and `time` the Unix time of the snapshot."""
    skipped = len(skipped_rules(report, ids))
    return render(
        "aifx.health",
        "node.html",
        command="aifx doctor",
        title=report.host or "this machine",
        status=report.status,
        counts=counts(report),
        rules=f"{len(ids)} rule{'s' * (len(ids) != 1)}{f', {skipped} skipped' * bool(skipped)}",
        time=date(time),
        findings=folded(report.findings),
        skipped=by_reason([report.skipped]),
    )


def fleet_page(report: FleetReport, time: float) -> str:
    """Return the page of a fleet, with the Unix time of the report."""
    nodes = sorted(report.nodes, key=_badness)
    with_findings = [node for node in nodes if node.why or (node.report is not None and node.report.findings)]
    listed = with_findings[:MAX_NODES]
    found = Counter(node.status for node in nodes)
    return render(
        "aifx.health",
        "fleet.html",
        command="aifx doctor",
        title=f"{len(nodes)} node{'s' * (len(nodes) != 1)}",
        status=report.status,
        counts=", ".join(f"{found[status]} {status}" for status in STATUSES if found[status]) or "none answered",
        time=date(time),
        report=report,
        nodes=nodes,
        listed=[(node, folded(node.report.findings) if node.report else []) for node in listed],
        anchors={node.name: f"node-{number}" for number, node in enumerate(listed)},
        count_words=counts,
        num_hidden=len(with_findings) - len(listed),
        num_open=NUM_OPEN,
        max_suspects=MAX_SUSPECTS,
        skipped=by_reason(node.report.skipped for node in nodes if node.report),
    )


def _badness(node: Node) -> tuple[int, list[int], str]:
    found = Counter(finding.severity for finding in node.report.findings) if node.report else Counter[str]()
    return STATUSES.index(node.status), [-found[severity] for severity in SEVERITIES], node.name
