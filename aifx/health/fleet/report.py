"""The report of a fleet, as in docs/doctor-fleet.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from aifx.core.errors import DataError
from aifx.health.report import SCHEMA_VERSION, SEVERITIES, Finding, Report, Skipped, Status
from aifx.health.snapshot import Snapshot
from aifx.health.snapshot import parse as parse_snapshot


@dataclass(frozen=True)
class Node:
    """The answer of one node.

    Attributes:
        name: its host's name, or the address of its agent if that name is not unique.
        why: the reason if there is no report; otherwise empty.
        is_silent: whether nothing at all arrived in time, rather than something that is not a report.
        took_s: the time from the question to the answer.
    """

    name: str
    report: Report | None = None
    snapshot: Snapshot | None = None
    why: str = ""
    is_silent: bool = False
    took_s: float = 0.0

    @property
    def status(self) -> Status:
        return self.report.status if self.report is not None else "unknown"

    def document(self) -> dict[str, Any]:
        """Return the node's report. Without one, all rules are skipped, with the reason."""
        report = self.report or Report(self.name, (), (Skipped("*", self.why),))
        return {"node": self.name, **report.document(), "status": self.status}


@dataclass(frozen=True)
class Cause:
    """A finding's part in the expected cost of a node.

    Attributes:
        probability: that it interrupts a job within the horizon.
        source: the source of the probability.
    """

    id: str
    device: str
    summary: str
    probability: float
    source: str


@dataclass(frozen=True)
class Suspect:
    """A node with an expected cost.

    Attributes:
        lost_gpu_hours: the expected cost within the horizon.
        probability: that any of the causes interrupts a job within the horizon.
        hours_to_recover: the time that the job loses.
        causes: the likeliest first.
        action: the action of the likeliest cause.
    """

    node: str
    lost_gpu_hours: float
    probability: float
    job_gpus: float
    hours_to_recover: float
    causes: tuple[Cause, ...]
    action: str


@dataclass(frozen=True)
class FleetReport:
    """The health of a fleet.

    Attributes:
        nodes: in the order in which they were named.
        findings: findings across nodes, worst first; `device` is the node.
        suspects: the most expensive first.
        unanswered: nodes without an answer when a signal ended the check.
    """

    nodes: tuple[Node, ...]
    findings: tuple[Finding, ...] = ()
    suspects: tuple[Suspect, ...] = ()
    unanswered: tuple[str, ...] = ()
    duration_s: float = 0.0

    @property
    def status(self) -> Status:
        """The worst status of the nodes and of the findings across them."""
        statuses = {node.status for node in self.nodes}
        severities = {finding.severity for finding in self.findings}
        if "unhealthy" in statuses or "critical" in severities:
            return "unhealthy"
        if "unknown" in statuses | severities or self.unanswered or not self.nodes:
            return "unknown"
        return "warning" if "warning" in statuses | severities else "healthy"

    def document(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "nodes": [node.document() for node in self.nodes],
            "findings": [asdict(finding) for finding in self.findings],
            "suspects": [asdict(suspect) for suspect in self.suspects],
            "not_heard": list(self.unanswered),
            "duration_s": self.duration_s,
        }


@dataclass(frozen=True)
class NodeGroup:
    """A finding that several nodes have.

    Attributes:
        finding: that of the first node.
        is_alike: whether all nodes have the same summary.
    """

    finding: Finding
    nodes: tuple[str, ...]
    is_alike: bool


def grouped(report: FleetReport) -> list[NodeGroup]:
    """Return the findings of nodes and across nodes, grouped by rule; the most frequent first."""
    kept: dict[tuple[str, str], list[tuple[str, Finding]]] = {}
    own = ((node.name, finding) for node in report.nodes if node.report for finding in node.report.findings)
    for name, finding in [*((finding.device, finding) for finding in report.findings), *own]:
        # A reason that prevents many rules from being evaluated, or many nodes from being asked, is one group.
        reason = finding.summary.partition(": ")[2].replace(name or " ", " ") if finding.severity == "unknown" else ""
        key = (finding.severity, f"{reason} {finding.action}" if reason else finding.id)
        kept.setdefault(key, []).append((name, finding))
    groups = []
    for found in kept.values():
        names = tuple(dict.fromkeys(name for name, _ in found if name))
        groups.append(NodeGroup(found[0][1], names, len({finding.summary for _, finding in found}) == 1))
    return sorted(groups, key=lambda g: (SEVERITIES.index(g.finding.severity), -len(g.nodes)))


def node_of(name: str, document: Any, took_s: float = 0.0) -> Node:
    """Return the node that sent a document of `aifx doctor --json`. Raises DataError for any other document."""
    hint = "run the same aifx on every node"
    if not isinstance(document, Mapping):
        raise DataError(f"{name} sent no report", "it is not a JSON object", hint)
    if isinstance(document.get("error"), Mapping):
        error = document["error"]
        raise DataError(f"{name} could not check itself", f"{error.get('what')}: {error.get('why')}", hint)
    if document.get("schema_version") != SCHEMA_VERSION:
        why = f"schema_version {document.get('schema_version')!r}"
        raise DataError(f"{name} sent a report of another version", why, hint)
    if not isinstance(document.get("findings"), list):
        raise DataError(f"{name} sent no report", "it has no findings", hint)
    skipped = document.get("skipped")
    skipped = skipped if isinstance(skipped, list) else []
    report = Report(
        str(document.get("host", name)),
        tuple(_filled(Finding, one) for one in document["findings"] if isinstance(one, Mapping)),
        tuple(_filled(Skipped, one) for one in skipped if isinstance(one, Mapping)),
        _seconds(document.get("duration_s")),
    )
    snapshot = document.get("snapshot")
    return Node(name, report, None if snapshot is None else parse_snapshot(snapshot, name), took_s=took_s)


def _filled(kind: type[Any], document: Mapping[str, Any]) -> Any:
    """Return an instance with the fields of a document. A severity that this version does not know becomes unknown."""
    values = {field.name: str(document.get(field.name, "")) for field in fields(kind)}
    if "severity" in values and values["severity"] not in SEVERITIES:
        values["severity"] = "unknown"
    return kind(**values)


def _seconds(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e9 else 0.0
