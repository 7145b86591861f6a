"""The history of the rules of a data set over its versions, from their manifests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from aifx.core.artifact import short_reference
from aifx.core.errors import UsageError
from aifx.core.results import Result
from aifx.curation.contracts import STEP, Level, Outcome, outcomes_of
from aifx.curation.history import find_manifest
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.lineage import made_at
from aifx.data.versions.made_steps import made_steps
from aifx.data.versions.manifest import Manifest


@dataclass(frozen=True)
class JudgedVersion:
    """The outcome of a rule in a version.

    Attributes:
        reference: the version that was judged.
        made: the version that was made of it.
        time: of the judgement, in UTC; None if the history of the data sets lacks it.
        rows, broken, value: as in `RuleOutcome`.
    """

    reference: str
    made: str
    time: str | None
    outcome: Outcome
    rows: int | None
    broken: int | None
    value: float | str | None


@dataclass(frozen=True)
class RuleHistory:
    """The outcomes of a rule, the oldest first.

    Attributes:
        meaning: its bound or condition in the last version that has it.
    """

    id: str
    check: str
    level: Level
    meaning: str
    versions: tuple[JudgedVersion, ...]


@dataclass(frozen=True)
class ContractHistory(Result):
    """The document of `aifx data expect --history --json`: the rules, those of the newest version first."""

    name: str
    rules: tuple[RuleHistory, ...]


def contract_history(catalog: Catalog, name: str) -> ContractHistory:
    """The outcomes of all rules by which versions of a data set were judged. Raises UsageError if there is no version.

    The age of a version's newest row is that at the time when it was judged.
    """
    name = name.partition("@")[0]
    if not catalog.versions(name):
        catalog.find(name)  # raises UsageError with what there is
        raise UsageError(f"no version of {name!r}", "there is no history", "aifx data ls")
    rules: dict[str, RuleHistory] = {}
    for time, manifest in sorted(_judged(catalog, name), key=lambda one: (one[0] or "", one[1].version)):
        now = datetime.fromisoformat(time) if time else datetime.now(UTC)
        for one in reversed(outcomes_of(manifest, now)):
            parent = short_reference(manifest.parents[0])
            found = JudgedVersion(parent, manifest.reference, time, one.outcome, one.rows, one.broken, one.value)
            before = rules.pop(one.id, None)
            versions = (*(before.versions if before else ()), found)
            rules[one.id] = RuleHistory(one.id, one.check, one.level, one.meaning, versions)
    return ContractHistory(name, tuple(reversed(rules.values())))


def _judged(catalog: Catalog, name: str) -> Iterator[tuple[str | None, Manifest]]:
    """The versions that `aifx data expect` made, alone or with other steps, each with the time of its first run."""
    for version in catalog.versions(name):
        if (found := find_manifest(catalog, f"{name}@{version}")) is not None:
            for manifest in (one for one in made_steps(found) if one.step.name == STEP):
                yield made_at(catalog, manifest.whole_reference), manifest
