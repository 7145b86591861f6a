"""The documents of `aifx doctor`, as types: `python -m aifx.verbs.schemas` makes docs/schemas from them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import Field

from aifx.health.bisect import Culprit, Trial
from aifx.health.fleet.report import Suspect
from aifx.health.report import Finding, Skipped, Status
from aifx.health.rules import Rule

Seconds = Annotated[float, Field(ge=0)]


class Reading(TypedDict):
    """Facts, with `{"$absent": why}` and `{"$unknown": why}` for what is missing."""

    time: float
    facts: dict[str, Any]


class SnapshotDocument(Reading):
    """Facts that were read of a machine. `before` is the reading that rates refer to."""

    schema_version: Literal[1]
    aifx: str
    host: str
    before: Reading | None


class ReportDocument(TypedDict):
    """The health of one node.

    Attributes:
        host: the node's name; empty if it is not known.
        status: unhealthy if a finding is critical, otherwise unknown if a part could not be read, otherwise warning or
            healthy.
        findings: the worst cause first, each followed by its consequences.
        skipped: rules and families (`family.*`) that were not evaluated.
    """

    host: str
    status: Status
    findings: list[Finding]
    skipped: list[Skipped]
    duration_s: Seconds


class NodeReport(ReportDocument):
    """Document of `aifx doctor --json`. `stress` comes with --stress, `snapshot` with --with-snapshot."""

    stress: NotRequired[dict[str, Any]]
    snapshot: NotRequired[SnapshotDocument]


class FleetNode(ReportDocument):
    """The report of a node of a fleet, which is called `node` here."""

    node: str


class SearchDocument(TypedDict):
    """A search for slow nodes and links. `suspects` are nodes that were not cleared."""

    culprits: list[Culprit]
    suspects: list[str]
    ended: Literal["done", "budget", "unclear"]
    why: str
    tests: list[Trial]
    num_tests: int
    duration_s: Seconds


class FleetDocument(TypedDict):
    """Document of `aifx doctor fleet --json`.

    Attributes:
        status: the worst status of a node or of a finding across nodes; unknown if a node was not heard.
        nodes: in the order in which they were named.
        findings: across nodes, the worst first. `device` is the node.
        suspects: nodes that are expected to lose the most GPU hours, the worst first.
        not_heard: nodes that had not answered when the check was interrupted.
        bisect: with --bisect.
    """

    status: Status
    nodes: list[FleetNode]
    findings: list[Finding]
    suspects: list[Suspect]
    not_heard: list[str]
    duration_s: Seconds
    bisect: NotRequired[SearchDocument]


class BisectDocument(SearchDocument):
    """Document of `aifx doctor bisect --json`."""

    status: Status
    findings: list[Finding]


class RuleList(TypedDict):
    """Document of `aifx doctor rules --json`."""

    rules: list[Rule]


class FleetRecordHead(TypedDict):
    """The first line of a fleet's record."""

    aifx_fleet: Literal[1]
    aifx: str
    asked: list[str]


class FleetRecordAnswer(TypedDict):
    """A node's answer."""

    node: str
    took_s: Seconds
    document: dict[str, Any]


class FleetRecordSilence(TypedDict):
    """A node without a report."""

    node: str
    took_s: Seconds
    why: str
    is_silent: bool


FleetRecordLine = FleetRecordHead | FleetRecordAnswer | FleetRecordSilence
