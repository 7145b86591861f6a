"""The ancestors of a version, and the runs that trained on it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aifx.core.artifact import short_reference
from aifx.core.errors import DataError, UsageError
from aifx.core.json_values import encode_json
from aifx.core.project import Project
from aifx.core.results import Result
from aifx.core.sanitize import shorten
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.lineage import STEP_FACET, is_removal, new_sources, read_lineage
from aifx.data.versions.manifest import Manifest
from aifx.data.versions.parts import rows_and_bytes
from aifx.runs.provenance import read_provenance

SETTINGS_CHARACTERS = 200
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
    recorded = read_lineage(catalog)
    events, outputs = _events(recorded), _outputs(recorded)
    found: dict[str, LineageVersion] = {}
    waiting = [asked.whole_reference]
    while waiting:
        one = waiting.pop(0)
        if one in found:
            continue
        manifest = find_manifest(catalog, one)
        names = tuple(dict.fromkeys(run.run for run in runs if run.reference == one))
        if manifest is not None:
            found[one] = _existing(catalog, manifest, names, outputs[one])
        else:
            found[one] = _deleted(one, events.get(one), names, outputs[one])
        waiting += found[one].parents
    return Lineage(asked.reference, tuple(map(_for_people, found.values())))


def _for_people(version: LineageVersion) -> LineageVersion:
    parents = tuple(map(short_reference, version.parents))
    return replace(version, reference=short_reference(version.reference), parents=parents)


def ancestors(catalog: Catalog, reference: str) -> list[Manifest]:
    """The manifests of a version and of its ancestors that still exist, each after its parents."""
    found: dict[str, Manifest] = {}
    waiting = [catalog.manifest(reference).whole_reference]
    while waiting:
        one = waiting.pop(0)
        manifest = find_manifest(catalog, one)
        if manifest is not None:
            found.pop(one, None)  # it goes behind all that were made from it
            found[one] = manifest
            waiting += manifest.parents
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
        if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
            return f"({len(value)})"
        text = value if isinstance(value, str) else encode_json(value, ensure_ascii=False)
        return text[:12] if _DIGEST.fullmatch(text) else text

    text = " ".join(f"{name}={word(value)}" for name, value in settings.items() if value not in (None, [], {}, ""))
    return shorten(text, SETTINGS_CHARACTERS)


def _existing(
    catalog: Catalog, manifest: Manifest, runs: tuple[str, ...], outputs: Sequence[LineageOutput]
) -> LineageVersion:
    parents = [find_manifest(catalog, parent) for parent in manifest.parents]
    is_known = None not in parents
    rows, size_bytes = rows_and_bytes(manifest)
    return LineageVersion(
        reference=manifest.whole_reference,
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
        runs=runs,
        outputs=tuple(outputs),
    )


def _deleted(
    reference: str, event: Mapping[str, Any] | None, runs: tuple[str, ...], outputs: Sequence[LineageOutput]
) -> LineageVersion:
    """A version that was deleted, from its event in lineage.jsonl."""
    event = event or {}
    inputs = [(one, _version(one)) for one in event.get("inputs", ())]
    step = event.get("job", {}).get("facets", {}).get(STEP_FACET, {})
    return LineageVersion(
        reference=reference,
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
        runs=runs,
        outputs=tuple(outputs),
        is_deleted=True,
    )


def _outputs(events: Sequence[Mapping[str, Any]]) -> defaultdict[str, list[LineageOutput]]:
    """The outputs that are no versions, each once, by the version that they were made of."""
    found: defaultdict[str, list[LineageOutput]] = defaultdict(list)
    for event in events:
        for output in event.get("outputs", ()):
            if _version(output) is None:
                step = str(event.get("job", {}).get("name")).removeprefix("data.")
                made = LineageOutput(step, f"{output.get('namespace')}/{output.get('name')}")
                for one in event.get("inputs", ()):
                    of_version = found[f"{one.get('name')}@{_version(one)}"]
                    of_version += [made] if made not in of_version else []
    return found


def _events(events: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The last event that made each version."""
    return {
        f"{output.get('name')}@{_version(output)}": event
        for event in events
        if not is_removal(event)
        for output in event.get("outputs", ())
    }


def _version(dataset: Mapping[str, Any]) -> str | None:
    version = dataset.get("facets", {}).get("version", {}).get("datasetVersion")
    return version if isinstance(version, str) else None
