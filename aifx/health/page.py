"""A report as one HTML file that can be mailed: it loads nothing and runs nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aifx
from aifx.errors import EnvironmentFault
from aifx.health.report import SEVERITIES, STATUSES, Report, Skipped, counts, folded

if TYPE_CHECKING:
    from jinja2 import Environment

    from aifx.health.fleet.report import FleetReport, Node

MAX_NODES = 200
"""Nodes whose findings are written out: with ten findings each that is about 2 MB, which mail servers still take."""

MAX_SUSPECTS = 50
NUM_OPEN = 3


def node_page(report: Report, num_rules: int, time: float) -> str:
    """Args:
    num_rules: how many were judged.
    time: of the snapshot, Unix time.
    """
    return _page(
        "node.html",
        title=report.host or "this machine",
        status=report.status,
        counts=counts(report),
        num_rules=num_rules,
        time=_date(time),
        findings=folded(report.findings),
        skipped=_by_reason([report.skipped]),
    )


def fleet_page(report: FleetReport, time: float) -> str:
    """Args:
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
        time=_date(time),
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


def write_page(text: str, path: Path) -> None:
    """Raises EnvironmentFault where the file cannot be written."""
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        why = error.strerror or str(error)
        raise EnvironmentFault(f"{path} cannot be written", why, "aifx doctor --html ANOTHER_FILE") from None


def _badness(node: Node) -> tuple[int, list[int], str]:
    found = Counter(finding.severity for finding in node.report.findings) if node.report else Counter[str]()
    return STATUSES.index(node.status), [-found[severity] for severity in SEVERITIES], node.name


def _by_reason(reports: Iterable[Iterable[Skipped]]) -> list[tuple[list[str], str, int]]:
    """What was skipped: rules, why, and on how many nodes; what most nodes share first."""
    nodes: Counter[tuple[tuple[str, ...], str]] = Counter()
    for skipped in reports:
        by_why: dict[str, list[str]] = {}
        for one in skipped:
            by_why.setdefault(one.why, []).append(one.id)
        nodes.update((tuple(ids), why) for why, ids in by_why.items())
    return [(list(ids), why, count) for (ids, why), count in nodes.most_common()]


def _date(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} UTC"


def _page(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(version=aifx.__version__, **values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("aifx.health", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(value: Any) -> Any:
    """A text with its control characters made visible: one that turns the reading direction could hide what it says."""
    if type(value) is not str:  # not Markup, which a macro has made
        return value
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in value)
