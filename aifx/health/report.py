"""What was found, worst first, as docs/doctor.schema.json has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["healthy", "warning", "unhealthy", "unknown"]
SEVERITIES = ("critical", "unknown", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """Attributes:
    id: the rule's.
    severity: the rule's, or "unknown" where it could not be judged.
    device: what it is about; empty for the node.
    summary: one line.
    evidence: what was seen.
    threshold: against what.
    source: where that comes from.
    action: what to do.
    """

    id: str
    severity: str
    device: str
    summary: str
    evidence: str
    threshold: str
    source: str
    action: str


@dataclass(frozen=True)
class Skipped:
    """A rule or family that was not judged, and why."""

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
