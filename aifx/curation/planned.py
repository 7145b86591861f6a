"""The rows that a step of a chain gets from the steps before it, which no version has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aifx.core.digests import sha256_of_json
from aifx.core.json_values import plain
from aifx.curation.step import Step
from aifx.data.readers.arrow import pa, pq
from aifx.data.versions.manifest import StepRecord, Version


@dataclass(frozen=True)
class PlannedVersion(Version):
    """The rows that some steps of a chain leave.

    Attributes:
        first: the version that the first step reads, as long as the rows are not made; None for rows in files.
    """

    first: Version | None = None

    @property
    def reference(self) -> str:
        return self.manifest.name

    @property
    def schema(self) -> pa.Schema:
        """The columns of rows that are not made."""
        assert self.first is not None
        before = pq.read_schema(self.first.shards[0])
        fields = []
        for name, kind in self.manifest.columns.items():
            is_same = name in before.names and str(before.field(name).type) == kind
            fields.append(pa.field(name, before.field(name).type if is_same else pa.type_for_alias(kind)))
        return pa.schema(fields)


def planned_version(first: Version, links: Sequence[Step]) -> Version:
    """The rows of a version after some steps, before they are made: its columns are known, and its files are not.

    Its number of rows is that of the version: there are no more.
    """
    if not links:
        return first
    columns = dict(first.manifest.columns)
    for link in links:
        columns |= link.added_columns
    manifest = replace(
        first.manifest,
        columns=columns,
        shards=(),
        dropped=(),
        dropped_by={},
        quarantine=(),
        facts={},
        step=StepRecord(links[-1].name, plain(links[-1].settings)),
        sha256=sha256_of_json(plain([first.manifest.sha256, *(link.record for link in links)])),
    )
    return PlannedVersion(Path("planned"), manifest, first=first)
