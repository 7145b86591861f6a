"""Rank suspects by the GPU-hours that their findings are expected to cost. Pure.

    lost = P x job_gpus x hours,   P = 1 - product over families of (1 - the largest p in the family)

`p` is the probability that a finding interrupts a job within the horizon. Findings of one family are most often one
fault seen from several sides, so only the likeliest of them counts. Families count as independent. `hours` is the mean
of the hours to recover, weighted by p.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache

from pydantic import BaseModel, ConfigDict, Field

from aifx.health.fleet.report import Cause, Node, Suspect
from aifx.health.report import Finding, Severity
from aifx.health.rules import FleetSite, fits
from aifx.health.tables import read_table

TABLE_H = 24.0
"""The hours to which the table's probabilities refer."""


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    probability: float = Field(ge=0, le=1)
    hours: float | None = Field(default=None, gt=0)
    source: str


class Table(BaseModel):
    """The content of `rank.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizon_h: float
    hours_to_recover: float
    hours_source: str
    severity: dict[Severity, float]
    severity_source: str
    finding: tuple[_Entry, ...]


@cache
def load_table() -> Table:
    return Table.model_validate(read_table("fleet", "rank.toml"))


def rank(nodes: Sequence[Node], across: Iterable[Finding], site: FleetSite | None = None) -> list[Suspect]:
    """Return the nodes whose findings have an expected cost, the most expensive first. `across` are findings across
    nodes, whose device is the node."""
    site = site or FleetSite()
    findings = {node.name: list(node.report.findings) if node.report is not None else [] for node in nodes}
    for finding in across:
        if finding.device in findings:
            findings[finding.device].append(finding)
    job_gpus = site.job_gpus or sum(gpus_of(node) for node in nodes) or len(nodes)
    suspects = [_suspect(node.name, findings[node.name], job_gpus, site) for node in nodes]
    found = [suspect for suspect in suspects if suspect is not None and suspect.probability > 0]
    return sorted(found, key=lambda suspect: (-suspect.lost_gpu_hours, suspect.node))


def gpus_of(node: Node) -> int:
    """Return the number of GPUs of a node; 0 if it is unknown."""
    gpus = node.snapshot.facts.get("gpus") if node.snapshot is not None else None
    return len(gpus) if isinstance(gpus, list) else 0


def _suspect(name: str, findings: Sequence[Finding], job_gpus: float, site: FleetSite) -> Suspect | None:
    likeliest: dict[str, tuple[Cause, float, str]] = {}
    for finding in findings:
        probability, hours, source = interrupts(finding, site)
        device = finding.device if finding.device != name else ""
        cause = Cause(finding.id, device, finding.summary, probability, source)
        family = finding.id.split(".", 1)[0]
        if probability > 0 and (family not in likeliest or likeliest[family][0].probability < probability):
            likeliest[family] = cause, hours, finding.action
    if not likeliest:
        return None
    counted = sorted(likeliest.values(), key=lambda one: -one[0].probability * one[1])
    spared = math.prod(1 - cause.probability for cause, _, _ in counted)
    weights = sum(cause.probability for cause, _, _ in counted)
    hours = sum(cause.probability * hours for cause, hours, _ in counted) / weights
    lost = (1 - spared) * job_gpus * hours
    causes = tuple(cause for cause, _, _ in counted)
    return Suspect(name, round(lost, 2), round(1 - spared, 4), job_gpus, round(hours, 2), causes, counted[0][2])


def interrupts(finding: Finding, site: FleetSite) -> tuple[float, float, str]:
    """Return the probability that a finding interrupts a job, the hours that it costs, and the source."""
    table = load_table()
    entries = {entry.id: entry for entry in table.finding}
    hours = site.hours_to_recover or table.hours_to_recover
    probability, source = table.severity[finding.severity], table.severity_source
    if (name := _narrowest(finding.id, entries)) is not None:
        hours = site.hours_to_recover or entries[name].hours or hours
        if finding.severity != "unknown":  # a rule that could not be evaluated has not found its fault
            probability, source = entries[name].probability, entries[name].source
    if (name := _narrowest(finding.id, site.probability)) is not None:
        probability, source = site.probability[name], "the site's file"
    horizon_h = site.horizon_h or table.horizon_h
    return 1 - (1 - probability) ** (horizon_h / TABLE_H), hours, source


def _narrowest(finding_id: str, patterns: Iterable[str]) -> str | None:
    """Return the narrowest pattern that fits: ids before globs, and long patterns before short ones."""
    fitting = (pattern for pattern in patterns if fits(finding_id, pattern))
    return max(fitting, key=lambda pattern: ("*" not in pattern, len(pattern)), default=None)
