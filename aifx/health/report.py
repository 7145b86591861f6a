"""What was found, worst first. `aifx.health.documents` has the types of the JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

Status = Literal["healthy", "warning", "unhealthy", "unknown"]
STATUSES: tuple[Status, ...] = ("unhealthy", "unknown", "warning", "healthy")
SCHEMA_VERSION = 1
Severity = Literal["critical", "unknown", "warning", "info"]
Text = Annotated[str, Field(min_length=1)]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """Attributes:
    id: the rule's.
    severity: the rule's, or "unknown" where it could not be evaluated.
    device: what it is about; empty for the node.
    summary: one line.
    evidence: what was seen.
    threshold: against what.
    source: where that comes from.
    action: what to do.
    explained_by: the rule of the finding before it that this one follows from; empty for a cause.
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
        return {
            "host": self.host,
            "status": self.status,
            "findings": [asdict(finding) for finding in self.findings],
            "skipped": [asdict(skipped) for skipped in self.skipped],
            "duration_s": self.duration_s,
        }


def counts(report: Report) -> str:
    """ "1 critical, 2 warnings", or "no finding"."""
    found = Counter(finding.severity for finding in report.findings)
    words = [f"{found[s]} {s}{'s' if s == 'warning' and found[s] > 1 else ''}" for s in SEVERITIES if found[s]]
    return ", ".join(words) or "no finding"


@dataclass
class Group:
    """A cause as the screen has it.

    Attributes:
        finding: the first of its rule.
        others: of the same rule on other devices, or not evaluated for the same reason.
        consequences: what follows from these.
    """

    finding: Finding
    others: list[Finding] = field(default_factory=list)
    consequences: list[Finding] = field(default_factory=list)


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """Each cause once, with the devices that have it. What follows from a finding comes behind it."""
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


def passed(report: Report, ids: Iterable[str]) -> dict[str, int]:
    """How many rules of each family were judged and found nothing."""
    failed = {finding.id for finding in report.findings}
    kept = (name for name in ids if name not in failed and not _is_skipped(report, name))
    return dict(Counter(name.split(".", 1)[0] for name in kept))


def num_skipped(report: Report, ids: Iterable[str]) -> int:
    """How many rules were not evaluated, on one device at least."""
    return sum(_is_skipped(report, name) for name in ids)


def _is_skipped(report: Report, rule_id: str) -> bool:
    return any(one.id in (rule_id, f"{rule_id.split('.', 1)[0]}.*") for one in report.skipped)


def num_words(report: Report, ids: Sequence[str]) -> str:
    """ "293 rules, 124 skipped": of those that were chosen."""
    skipped = num_skipped(report, ids)
    return f"{len(ids)} rule{'s' * (len(ids) != 1)}{f', {skipped} skipped' if skipped else ''}"


def folded(findings: Iterable[Finding]) -> list[tuple[Finding, list[str]]]:
    """Findings with the rules that they stand for: what keeps many rules from being judged is told once."""
    kept: dict[object, tuple[Finding, list[str]]] = {}
    for finding in findings:
        reason = finding.summary.partition(": ")[2]
        key = (reason, finding.action) if finding.severity == "unknown" else len(kept)
        kept.setdefault(key, (finding, []))[1].append(finding.id)
    return list(kept.values())
