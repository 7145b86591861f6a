"""Findings about a machine, worst first. `aifx.health.documents` has the types of the JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from aifx.core.json_values import plain

Status = Literal["healthy", "warning", "unhealthy", "unknown"]
STATUSES: tuple[Status, ...] = ("unhealthy", "unknown", "warning", "healthy")
SCHEMA_VERSION = 1
Severity = Literal["critical", "unknown", "warning", "info"]
Text = Annotated[str, Field(min_length=1)]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """The finding of a rule.

    Attributes:
        id: that of the rule.
        severity: that of the rule; "unknown" if it could not be evaluated.
        device: empty for the node.
        evidence: the values that were read.
        threshold: the condition for the finding.
        source: the source of the threshold.
        action: what to do.
        explained_by: the rule of an earlier finding that explains this one; empty for a cause.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9_]+(\.[a-z0-9_]+)+$")]
    severity: Severity
    device: str
    summary: Text
    evidence: Text
    threshold: Text
    source: Text
    action: Text
    explained_by: str = ""

    @property
    def headline(self) -> str:
        """The device and what is wrong with it."""
        return headline(self.device, self.summary)


def headline(device: str, summary: str) -> str:
    """Return `device: summary`, or the summary alone if it names the device."""
    return summary if not device or device in summary else f"{device}: {summary}"


@dataclass(frozen=True)
class Skipped:
    """A rule or family that was not evaluated, and why."""

    id: str
    why: str


@dataclass(frozen=True)
class Report:
    host: str
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    duration_s: float = 0.0

    @property
    def status(self) -> Status:
        found = {finding.severity for finding in self.findings}
        if "critical" in found:
            return "unhealthy"
        if "unknown" in found:
            return "unknown"
        return "warning" if "warning" in found else "healthy"

    def document(self) -> dict[str, Any]:
        return {"host": self.host, "status": self.status, **plain(self)}


def counts(report: Report) -> str:
    """Return "1 critical, 2 warnings", or "no finding"."""
    found = Counter(finding.severity for finding in report.findings)
    words = [f"{found[s]} {s}{'s' if s == 'warning' and found[s] > 1 else ''}" for s in SEVERITIES if found[s]]
    return ", ".join(words) or "no finding"


@dataclass
class Group:
    """A cause with its consequences.

    Attributes:
        finding: the first finding of the rule.
        others: findings of the same rule on other devices, or unknown for the same reason.
        consequences: findings that these explain.
    """

    finding: Finding
    others: list[Finding] = field(default_factory=list)
    consequences: list[Finding] = field(default_factory=list)


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """Return each cause once, with the devices that have it, and its consequences."""
    groups: dict[object, Group] = {}
    group: Group | None = None
    for finding in findings:
        reason = finding.summary.partition(": ")[2]
        key = (reason, finding.action) if finding.severity == "unknown" else (finding.id, finding.severity)
        if finding.explained_by and group is not None:
            group.consequences.append(finding)
        elif key in groups:
            group = groups[key]
            group.others.append(finding)
        else:
            group = groups[key] = Group(finding)
    return list(groups.values())


def skipped_rules(report: Report, ids: Iterable[str]) -> list[str]:
    """Return the rules that were skipped on at least one device."""
    skipped = {one.id for one in report.skipped}
    return [name for name in ids if name in skipped or f"{name.split('.', 1)[0]}.*" in skipped]


def by_reason(reports: Iterable[Iterable[Skipped]]) -> list[tuple[list[str], str, int]]:
    """Return skipped rules, the reason, and the number of reports; the most frequent first."""
    found: Counter[tuple[tuple[str, ...], str]] = Counter()
    for skipped in reports:
        by_why: dict[str, list[str]] = {}
        for one in skipped:
            by_why.setdefault(one.why, []).append(one.id)
        found.update((tuple(ids), why) for why, ids in by_why.items())
    return [(list(ids), why, count) for (ids, why), count in found.most_common()]


def folded(findings: Iterable[Finding]) -> list[tuple[Finding, list[str]]]:
    """Return findings, each with its rules: a reason that makes many rules unknown is one finding."""
    kept: dict[object, tuple[Finding, list[str]]] = {}
    for finding in findings:
        reason = finding.summary.partition(": ")[2]
        key = (reason, finding.action) if finding.severity == "unknown" else len(kept)
        kept.setdefault(key, (finding, []))[1].append(finding.id)
    return list(kept.values())
