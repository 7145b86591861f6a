"""The nodes' answers as one report. Pure."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import date

from aifx.health.fleet.compare import compare, load_facts
from aifx.health.fleet.hosts import is_address
from aifx.health.fleet.rank import rank
from aifx.health.fleet.report import FleetReport, Node
from aifx.health.report import SEVERITIES, Finding, Report
from aifx.health.rules import Site, fits, load_rules, select

SILENT, NO_REPORT = "fleet.node.silent", "fleet.node.no_report"
BISECT = ("fleet.bisect.node", "fleet.bisect.link", "fleet.bisect.unclear")


def fleet_ids() -> list[str]:
    """The ids of findings across nodes."""
    return [SILENT, NO_REPORT, *BISECT, *(fact.id for fact in load_facts())]


def check_patterns(patterns: Sequence[str], site: Site) -> None:
    """Raises UsageError for a pattern that fits no finding, of a node or across nodes."""
    of_nodes = [pattern for pattern in patterns if not any(fits(name, pattern) for name in fleet_ids())]
    select(load_rules(site).values(), of_nodes, ())


def assess(
    nodes: Sequence[Node],
    site: Site | None = None,
    *,
    only: Iterable[str] = (),
    skip: Iterable[str] = (),
    not_heard: Iterable[str] = (),
    tested: Iterable[Finding] = (),
    duration_s: float = 0.0,
) -> FleetReport:
    """The report of a fleet.

    Args:
        nodes: each once.
        only: rules or families that count, of nodes and across them; all when empty.
        skip: those that do not.
        not_heard: nodes that were given up.
        tested: what collective tests found among the nodes; they were asked for by themselves, whatever `only` says.
    """
    site, only = site or Site(), tuple(only)
    skip = (*skip, *(s.id for s in site.skip if s.until is None or date.today() <= s.until))

    def is_skipped(finding: Finding) -> bool:
        return any(fits(finding.id, pattern) for pattern in skip)

    def counts(finding: Finding) -> bool:
        is_asked = not only or any(fits(finding.id, pattern) for pattern in only)
        return is_asked and not is_skipped(finding)

    nodes = [_with(node, filter(counts, node.report.findings)) if node.report else node for node in named(nodes)]
    # A node that says nothing is told even where only some rules are asked for: none of them could be judged there.
    unheard = [finding for node in nodes if node.report is None for finding in [_unheard(node)]]
    found = [*unheard, *itertools.filterfalse(is_skipped, tested), *filter(counts, compare(nodes))]
    order = {name: number for number, name in enumerate(fleet_ids())}
    found.sort(key=lambda f: (SEVERITIES.index(f.severity), order.get(f.id, -1), f.device))
    suspects = rank(nodes, found, site.fleet)
    return FleetReport(tuple(nodes), tuple(found), tuple(suspects), tuple(not_heard), round(duration_s, 3))


def _with(node: Node, findings: Iterable[Finding]) -> Node:
    assert node.report is not None
    kept: Report = replace(node.report, findings=tuple(findings))
    return replace(node, report=kept)


def named(nodes: Sequence[Node]) -> list[Node]:
    """Nodes that were asked through an agent are called as they call themselves, where that is one node's name."""
    hosts = Counter(node.report.host for node in nodes if node.report is not None)
    taken = {node.name for node in nodes}

    def name(node: Node) -> str:
        host = node.report.host if node.report is not None and is_address(node.name) else ""
        return host if host and hosts[host] == 1 and host not in taken else node.name

    return [replace(node, name=name(node)) for node in nodes]


def _unheard(node: Node) -> Finding:
    if node.is_silent:
        return Finding(
            SILENT,
            "critical",
            node.name,
            "this node does not answer",
            node.why,
            "an answer within the time limit (--timeout)",
            "aifx: no job can be trusted to a node that cannot be asked",
            "see whether it is up (BMC, `ping`, `scontrol show node`); if it is only slow, ask again with --timeout",
        )
    return Finding(
        NO_REPORT,
        "unknown",
        node.name,
        f"this node sent no report: {node.why}",
        node.why,
        "a report of `aifx doctor --json`",
        "aifx: what was not looked at is not healthy",
        "fix the way to ask it: aifx there and in PATH, the key, the token, the certificate",
    )
