"""The ancestors of a version, the runs that trained on it, and its difference from another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aifx.core.artifact import short_reference
from aifx.core.errors import DataError, UsageError
from aifx.core.json_values import encode_json
from aifx.core.project import Project
from aifx.core.results import Result
from aifx.core.sanitize import shorten
from aifx.data.names import CLUSTER, ROW, SOURCE
from aifx.data.versions.catalog import FEEDBACK, JOIN, Catalog, check_own_rows, rows_and_bytes
from aifx.data.versions.lineage import STEP_FACET, makes_version, new_sources, read_lineage, version_of
from aifx.data.versions.made_steps import MAKE, made_steps
from aifx.data.versions.manifest import Manifest
from aifx.data.versions.sql import RowTable, identifier, open_tables
from aifx.runs.provenance import read_provenance

SETTINGS_CHARACTERS = 200
MOST_SOURCES = 1000
"""Sources that a difference lists, at most."""

_DIGEST = re.compile(r"[0-9a-f]{40,}")


@dataclass(frozen=True)
class TrainedRun:
    """A run whose provenance names a version, or the files that a key such as "data.train" named."""

    run: str
    reference: str  # "name@<64 digits>"


@dataclass(frozen=True)
class LineageOutput:
    """An index of a version, or a table that it was pushed to.

    Attributes:
        step: "index" or "push".
        name: a URL, without login.
    """

    step: str
    name: str


@dataclass(frozen=True)
class LineageVersion:
    """A version in the history of another.

    Attributes:
        step: that made it, with `settings`.
        aifx: version that made it.
        code: SHA-256 of the code of the step.
        rows, size_bytes: of a mix, those of its parents; None if the version was deleted.
        sources: files that were read for it, and are no sources of its parents.
        runs: of the project that trained on it.
        outputs: indexes and tables that were made of it.
    """

    reference: str
    parents: tuple[str, ...]
    step: str
    settings: Mapping[str, Any]
    aifx: str
    code: str
    rows: int | None
    size_bytes: int | None
    dropped_by: Mapping[str, int]
    sources: int
    licenses: tuple[str, ...]
    runs: tuple[str, ...]
    outputs: tuple[LineageOutput, ...]
    is_deleted: bool = False

    @property
    def settings_text(self) -> str:
        return settings_text(self.settings)


@dataclass(frozen=True)
class Lineage(Result):
    """The document of `aifx data lineage --json`.

    Attributes:
        versions: the version itself, then its ancestors, each before its parents.
    """

    reference: str
    versions: tuple[LineageVersion, ...]


def lineage_of(catalog: Catalog, reference: str, project: Project | None) -> Lineage:
    """The versions that one was made from. Raises UsageError if there is none of that name."""
    asked = catalog.manifest(reference)
    runs = list(trained_runs(project)) if project is not None else []
    found: dict[str, LineageVersion] = {}
    waiting = [asked.whole_reference]
    while waiting:
        one = waiting.pop(0)
        if one in found:
            continue
        manifest, events = find_manifest(catalog, one), read_lineage(catalog, one)
        names = tuple(dict.fromkeys(run.run for run in runs if run.reference == one))
        version = _existing(catalog, manifest) if manifest is not None else _deleted(one, events)
        waiting += version.parents
        parents = tuple(map(short_reference, version.parents))
        found[one] = replace(version, parents=parents, runs=names, outputs=_outputs(events))
    return Lineage(asked.reference, tuple(found.values()))


def ancestors(catalog: Catalog, reference: str) -> list[Manifest]:
    """The manifests of a version and of those that its rows come from, if they still exist, each after its parents."""
    found: dict[str, Manifest] = {}
    waiting = [catalog.manifest(reference).whole_reference]
    while waiting:
        one = waiting.pop(0)
        manifest = find_manifest(catalog, one)
        if manifest is not None:
            found.pop(one, None)  # it goes behind all that were made from it
            found[one] = manifest
            parents = manifest.row_parents
            is_joined = manifest.step.name in (JOIN, FEEDBACK)
            waiting += parents[:1] if is_joined else parents  # the events; its columns are the others'
    return list(reversed(found.values()))


def find_manifest(catalog: Catalog, reference: str) -> Manifest | None:
    """None if the version was deleted."""
    try:
        return catalog.manifest(reference)
    except (UsageError, DataError):
        return None


def trained_runs(project: Project) -> Iterator[TrainedRun]:
    """The runs of a project with each version that they trained on, or each key whose files they did."""
    for run in project.runs():
        provenance = read_provenance(run)
        if isinstance(record := provenance.get("dataset"), Mapping):
            for one in (record, *(record.get("parts") or ())):
                if isinstance(one, Mapping) and isinstance(one.get("reference"), str):
                    yield TrainedRun(run.name, one["reference"])
        if isinstance(sources := provenance.get("sources"), Mapping):
            for key, found in sources.items():
                if isinstance(found, Mapping) and isinstance(found.get("sha256"), str):
                    yield TrainedRun(run.name, f"{key}@{found['sha256']}")


def settings_text(settings: Mapping[str, Any]) -> str:
    """The settings of a step in a line: digests in short, of a list of rules its length."""

    def word(value: Any) -> str:
        if isinstance(value, list) and value and all(isinstance(one, Mapping) and "settings" in one for one in value):
            return ",".join(one["name"] for one in value)  # the steps that made the version together
        if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            return f"({len(value)})"
        text = value if isinstance(value, str) else encode_json(value, ensure_ascii=False)
        return text[:12] if _DIGEST.fullmatch(text) else text

    text = " ".join(f"{name}={word(value)}" for name, value in settings.items() if value not in (None, [], {}, ""))
    return shorten(text, SETTINGS_CHARACTERS)


def _existing(catalog: Catalog, manifest: Manifest) -> LineageVersion:
    """A version, without its runs and outputs."""
    parents = [find_manifest(catalog, parent) for parent in manifest.parents]
    is_known = None not in parents
    rows, size_bytes = rows_and_bytes(manifest)
    return LineageVersion(
        reference=manifest.reference,
        parents=manifest.parents,
        step=manifest.step.name,
        settings=manifest.step.settings,
        aifx=manifest.aifx,
        code=manifest.code.sha256,
        rows=rows,
        size_bytes=size_bytes,
        dropped_by=manifest.dropped_by,
        sources=len(new_sources(manifest, [one for one in parents if one is not None])) if is_known else 0,
        licenses=manifest.licenses,
        runs=(),
        outputs=(),
    )


def _deleted(reference: str, events: Sequence[Mapping[str, Any]]) -> LineageVersion:
    """A version that was deleted, from the last event that made it, without its runs and outputs."""
    event: Mapping[str, Any] = next(filter(makes_version, reversed(events)), {})
    inputs = [(one, version_of(one)) for one in event.get("inputs", ())]
    step = event.get("job", {}).get("facets", {}).get(STEP_FACET, {})
    return LineageVersion(
        reference=short_reference(reference),
        parents=tuple(f"{one.get('name')}@{version}" for one, version in inputs if version),
        step=str(step.get("name", "unknown")),
        settings=step.get("settings", {}),
        aifx=str(step.get("aifx", "unknown")),
        code=str(step.get("code", {}).get("sha256", "unknown")),
        rows=None,
        size_bytes=None,
        dropped_by={},
        sources=int(step.get("sources", 0)),
        licenses=(),
        runs=(),
        outputs=(),
        is_deleted=True,
    )


def _outputs(events: Sequence[Mapping[str, Any]]) -> tuple[LineageOutput, ...]:
    """The outputs of a version's events that are no versions, each once."""
    return tuple(
        dict.fromkeys(
            LineageOutput(
                step=str(event.get("job", {}).get("name")).removeprefix("data."),
                name=f"{output.get('namespace')}/{output.get('name')}",
            )
            for event in events
            for output in event.get("outputs", ())
            if version_of(output) is None
        )
    )


@dataclass(frozen=True)
class SourceDifference:
    """Rows of a source by what became of them."""

    source: str
    added: int
    removed: int
    changed: int


@dataclass(frozen=True)
class RemovedBy:
    """Rows of the first version that a step between the two dropped."""

    reference: str
    step: str
    rule: str
    rows: int


@dataclass(frozen=True)
class VersionDifference(Result):
    """The document of `aifx data diff --json`.

    Attributes:
        references: the two versions.
        rows: of each.
        changed: rows of both that differ in a column of both. aifx's own columns do not count, except `_split`.
        by_source: sources with a difference, those with the most first.
        removed_by: removed rows by step and rule, if a step on the way to the second version dropped them.
        columns_retyped: old and new type by column.
    """

    references: tuple[str, str]
    rows: tuple[int, int]
    size_bytes: tuple[int, int]
    added: int
    removed: int
    changed: int
    same: int
    by_source: tuple[SourceDifference, ...]
    removed_by: tuple[RemovedBy, ...]
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    columns_retyped: Mapping[str, tuple[str, str]]

    @property
    def is_different(self) -> bool:
        columns = self.columns_added or self.columns_removed or self.columns_retyped
        return bool(self.added or self.removed or self.changed or columns)


def compare_versions(catalog: Catalog, first: str, second: str) -> VersionDifference:
    """Compare the rows of two versions by `_row` and by content. Raises UsageError, also for a mix, and DataError."""
    a, b = catalog.open(first), catalog.open(second)
    for version in (a, b):
        check_own_rows(version.manifest, "aifx data diff")
    between = {one.whole_reference: one for one in ancestors(catalog, b.manifest.whole_reference) if one.dropped}
    for one in ancestors(catalog, a.manifest.whole_reference):
        between.pop(one.whole_reference, None)
    tables = {"a": RowTable(a), "b": RowTable(b)}
    tables |= {f"dropped_{n}": RowTable(catalog.open(one), "dropped") for n, one in enumerate(between)}
    with open_tables(tables) as connection:
        columns = [name for name in a.manifest.columns if name in b.manifest.columns and name not in (ROW, CLUSTER)]
        content = f"hash({', '.join(map(identifier, columns))})" if columns else "0"
        connection.execute(
            f"""CREATE TABLE pairs AS SELECT _row, coalesce(b._source, a._source) AS source,
                a._row IS NULL AS is_added, b._row IS NULL AS is_removed, a.h IS DISTINCT FROM b.h AS differs
            FROM (SELECT _row, {_source(a.manifest)}, {content} AS h FROM a) a
            FULL JOIN (SELECT _row, {_source(b.manifest)}, {content} AS h FROM b) b USING (_row)"""
        )
        counts = """count(*) FILTER (is_added), count(*) FILTER (is_removed),
            count(*) FILTER (differs AND NOT is_added AND NOT is_removed)"""
        added, removed, changed, every = connection.execute(f"SELECT {counts}, count(*) FROM pairs").fetchone()
        by_source = connection.execute(
            f"""SELECT source, {counts} FROM pairs WHERE differs
            GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT {MOST_SOURCES}"""
        ).fetchall()
        removed_by = [
            RemovedBy(one.reference, made_steps(one)[step].step.name, rule, rows)
            for number, one in enumerate(between.values())
            for step, rule, rows in connection.execute(
                f"""SELECT {"step" if one.step.name == MAKE else "0"}, rule, count(*)
                FROM dropped_{number} JOIN pairs USING (_row) WHERE is_removed AND rule IS NOT NULL
                GROUP BY 1, 2 ORDER BY 3 DESC, 2"""
            ).fetchall()
        ]
    ours, theirs = a.manifest.columns, b.manifest.columns
    return VersionDifference(
        references=(a.reference, b.reference),
        rows=(a.manifest.rows, b.manifest.rows),
        size_bytes=(a.manifest.bytes, b.manifest.bytes),
        added=added,
        removed=removed,
        changed=changed,
        same=every - added - removed - changed,
        by_source=tuple(SourceDifference(*row) for row in by_source),
        removed_by=tuple(removed_by),
        columns_added=tuple(name for name in theirs if name not in ours),
        columns_removed=tuple(name for name in ours if name not in theirs),
        columns_retyped={n: (ours[n], theirs[n]) for n in ours if n in theirs and ours[n] != theirs[n]},
    )


def _source(manifest: Manifest) -> str:
    return SOURCE if SOURCE in manifest.columns else f"NULL::VARCHAR AS {SOURCE}"
