"""Make one report of all nodes' answers. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date

from aifx.cluster.hosts import is_address
from aifx.health.fleet.compare import compare
from aifx.health.fleet.rank import rank
from aifx.health.fleet.report import FleetReport, Node
from aifx.health.report import SEVERITIES, Finding
from aifx.health.rules import Site, fits, load_rules, select
from aifx.health.tables import NO_REPORT, SILENT, across_ids


def check_patterns(patterns: Sequence[str], site: Site) -> None:
    """Check that each pattern fits a finding, of a node or across nodes. Raises UsageError."""
    of_nodes = [pattern for pattern in patterns if not any(fits(name, pattern) for name in across_ids())]
    select(load_rules(site).values(), of_nodes, ())


def assess(
    nodes: Sequence[Node],
    site: Site | None = None,
    *,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    unanswered: Iterable[str] = (),
    tested: Iterable[Finding] = (),
    duration_s: float = 0.0,
) -> FleetReport:
    """Return the report of a fleet.

    Args:
        nodes: each once.
        only: rules or families to include, of nodes and across nodes; all if empty.
        skip: rules or families to leave out.
        unanswered: nodes without an answer when a signal ended the check.
        tested: findings of collective tests, which `only` does not affect.
    """
    site, only = site or Site(), tuple(only)
    skip = (*skip, *(s.id for s in site.skip if s.until is None or date.today() <= s.until))

    def is_skipped(finding: Finding) -> bool:
        return any(fits(finding.id, pattern) for pattern in skip)

    def counts(finding: Finding) -> bool:
        is_asked = not only or any(fits(finding.id, pattern) for pattern in only)
        return is_asked and not is_skipped(finding)

    nodes = [
        replace(node, report=replace(node.report, findings=tuple(filter(counts, node.report.findings))))
        if node.report
        else node
        for node in named(nodes)
    ]
    # A silent node is a finding also if `only` selects other rules, because none of them was evaluated there.
    silent = [_no_answer(node) for node in nodes if node.report is None]
    found = [*silent, *itertools.filterfalse(is_skipped, tested), *filter(counts, compare(nodes))]
    order = {name: number for number, name in enumerate(across_ids())}
    found.sort(key=lambda f: (SEVERITIES.index(f.severity), order.get(f.id, -1), f.device))
    suspects = rank(nodes, found, site.fleet)
    return FleetReport(tuple(nodes), tuple(found), tuple(suspects), tuple(unanswered), round(duration_s, 3))


def named(nodes: Sequence[Node]) -> list[Node]:
    """Rename nodes that were asked through an agent to their hosts, if no other node has that name."""
    hosts = Counter(node.report.host for node in nodes if node.report is not None)
    taken = {node.name for node in nodes}

    def name(node: Node) -> str:
        host = node.report.host if node.report is not None and is_address(node.name) else ""
        return host if host and hosts[host] == 1 and host not in taken else node.name

    return [replace(node, name=name(node)) for node in nodes]


def _no_answer(node: Node) -> Finding:
    if node.is_silent:
        what, limit = "this node does not answer", "an answer within --timeout"
        source = "aifx: a node that does not answer cannot run jobs"
        action = (
            "check whether it is up (BMC, `ping`, `scontrol show node`); if it is only slow, use a longer --timeout"
        )
        return Finding(SILENT, "critical", node.name, what, node.why, limit, source, action)
    what, limit = f"this node sent no report: {node.why}", "a report of `aifx doctor --json`"
    source = "aifx: a node without a report does not count as healthy"
    action = "check aifx and its PATH there, the key, the token, the certificate"
    return Finding(NO_REPORT, "unknown", node.name, what, node.why, limit, source, action)
