"""The history of data sets as OpenLineage RunEvents: https://openlineage.io/spec/2-0-2/OpenLineage.json.

    .lineage/<name>/<version>/<run id>.json

A file has one event, and is below the version that the step made, read or deleted. Nothing is written again, so writers
on any number of machines lose nothing of each other's. A step that is repeated has the same run id.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aifx.core.artifact import short_reference
from aifx.core.files import NotExclusive
from aifx.core.json_files import encode, parse_line
from aifx.core.json_values import encode_json, plain
from aifx.core.version import DISTRIBUTION, __version__
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import INDEXES, LINEAGE, Manifest, Source

SCHEMA = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
FACETS = "https://openlineage.io/spec/facets"
VERSION_FACET = f"{FACETS}/1-0-1/DatasetVersionDatasetFacet.json#/$defs/DatasetVersionDatasetFacet"
SCHEMA_FACET = f"{FACETS}/1-2-0/SchemaDatasetFacet.json#/$defs/SchemaDatasetFacet"
STATISTICS_FACET = f"{FACETS}/1-0-2/OutputStatisticsOutputDatasetFacet.json#/$defs/OutputStatisticsOutputDatasetFacet"
LIFECYCLE_FACET = f"{FACETS}/1-0-1/LifecycleStateChangeDatasetFacet.json#/$defs/LifecycleStateChangeDatasetFacet"
JOB_FACET = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/JobFacet"
MOST_FILES = 1000
"""Sources that an event names; the facet of the step has their number."""

STEP_FACET = "aifx_step"
PRODUCER = f"urn:{DISTRIBUTION}:{__version__}"


def record_run(catalog: Catalog, made: Manifest, parents: Sequence[Manifest], key: str) -> None:
    """Record that a step made a version, unless that is recorded already.

    Args:
        key: of the step.
    """
    if not is_recorded(catalog, made, key):
        _record(catalog, made, run_event(made, parents, key, catalog.store.url))


def is_recorded(catalog: Catalog, made: Manifest, key: str) -> bool:
    """Whether the step with this key made a version, or its index of this name."""
    return catalog.store.size(_file_of(made.whole_reference, _run_id(key, made))) is not None


def record_index(catalog: Catalog, indexed: Manifest, index: str, settings: Mapping[str, Any]) -> None:
    """Record that an index of a version was made, unless that is recorded already.

    Args:
        index: its name.
        settings: all that it depends on.
    """
    if is_recorded(catalog, indexed, index):
        return
    made = {"namespace": _namespace(catalog.store.url), "name": f"{indexed.name}/{INDEXES}/{indexed.version}/{index}"}
    step = {STEP_FACET: {**_facet(JOB_FACET), "name": "index", "settings": plain(settings), "aifx": __version__}}
    inputs = [_dataset(indexed, catalog.store.url)]
    _record(catalog, indexed, _event(_run_id(index, indexed), "index", step, inputs, [made]))


def record_removal(catalog: Catalog, removed: Sequence[Manifest]) -> None:
    """Record that versions were deleted."""
    dropped = {"lifecycleStateChange": {**_facet(LIFECYCLE_FACET), "lifecycleStateChange": "DROP"}}
    for one in removed:
        output = _dataset(one, catalog.store.url)
        output["facets"] |= dropped
        _record(catalog, one, _event(str(uuid.uuid4()), "purge", {}, [], [output]))


def record_push(catalog: Catalog, pushed: Manifest, namespace: str, table: str, request: str | None = None) -> None:
    """Record that a version was written into a table, by the names that OpenLineage gives to tables.

    Args:
        request: an id, of which it is recorded once.
    """
    run_id = str(uuid.uuid4()) if request is None else _run_id(f"push {request}", pushed)
    inputs = [_dataset(pushed, catalog.store.url)]
    _record(catalog, pushed, _event(run_id, "push", {}, inputs, [{"namespace": namespace, "name": table}]))


def makes_version(event: Mapping[str, Any]) -> bool:
    """Whether an event records that a step made a version."""
    return event.get("job", {}).get("name") != "data.purge" and any(map(version_of, event.get("outputs", ())))


def made_at(catalog: Catalog, reference: str) -> str | None:
    """The time when a step first made a version, "name@<64 digits>", in UTC; None if no event says it."""
    return next(
        (str(event.get("eventTime")) for event in read_lineage(catalog, reference) if makes_version(event)), None
    )


def version_of(dataset: Mapping[str, Any]) -> str | None:
    """The digest of a version among the inputs or outputs of an event; None for anything else."""
    version = dataset.get("facets", {}).get("version", {}).get("datasetVersion")
    return version if isinstance(version, str) else None


def _run_id(key: str, version: Manifest) -> str:
    """The same id each time for the same work."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"aifx:{key}:{version.sha256}"))


def _record(catalog: Catalog, version: Manifest, event: Mapping[str, Any]) -> None:
    """Record an event that belongs to a version. The first that was recorded under a run id stays."""
    name = _file_of(version.whole_reference, event["run"]["runId"])
    data = encode(encode_json(event, ensure_ascii=False) + "\n")
    try:
        catalog.store.create(name, data)
    except NotExclusive:  # no other event has this name, so that one written in its place is of the same work
        if catalog.store.size(name) is None:
            catalog.store.write(name, iter([data]))


def _file_of(reference: str, run_id: str) -> str:
    return f"{folder_of(reference)}/{run_id}.json"


def folder_of(reference: str) -> str:
    """The folder, below the root, with the events of a version."""
    return f"{LINEAGE}/{short_reference(reference).replace('@', '/')}"


def read_lineage(catalog: Catalog, reference: str) -> list[dict[str, Any]]:
    """The events of a version, "name@<64 digits>", by the time of their recording. It may have been deleted."""
    events = (parse_line(data) for data in catalog.store.read_files(folder_of(reference)).values())
    return sorted((event for event in events if event is not None), key=lambda event: str(event.get("eventTime")))


def run_event(made: Manifest, parents: Sequence[Manifest], key: str, namespace: str) -> dict[str, Any]:
    """The RunEvent of the step that made a version, with its key."""
    facts = {"rowCount": made.rows, "size": made.bytes, "fileCount": len(made.shards)}
    files = new_sources(made, parents)
    output = _dataset(made, namespace) | {"outputFacets": {"outputStatistics": {**_facet(STATISTICS_FACET), **facts}}}
    code = {"key": key, "code": plain(made.code), "aifx": made.aifx}
    step = {STEP_FACET: {**_facet(JOB_FACET), **plain(made.step), **code, "sources": len(files)}}
    inputs = [*(_dataset(parent, namespace) for parent in parents), *(_file(one.name) for one in files[:MOST_FILES])]
    return _event(_run_id(key, made), made.step.name, step, inputs, [output])


def new_sources(made: Manifest, parents: Sequence[Manifest]) -> list[Source]:
    """The sources of a version that none of its parents has, with this content."""
    known = {(source.name, source.sha256) for parent in parents for source in parent.sources}
    return [source for source in made.sources if (source.name, source.sha256) not in known]


def _event(
    run_id: str, step: str, facets: Mapping[str, Any], inputs: Sequence[Any], outputs: Sequence[Any]
) -> dict[str, Any]:
    return {
        "eventType": "COMPLETE",
        "eventTime": datetime.now(UTC).isoformat(timespec="microseconds"),
        "run": {"runId": run_id, "facets": {}},
        "job": {"namespace": "aifx", "name": f"data.{step}", "facets": dict(facets)},
        "inputs": list(inputs),
        "outputs": list(outputs),
        "producer": PRODUCER,
        "schemaURL": SCHEMA,
    }


def _file(name: str) -> dict[str, str]:
    """A source, named as OpenLineage's naming conventions do."""
    scheme, separator, rest = name.partition("://")
    if not separator:
        return {"namespace": "file", "name": name}
    host, _, path = rest.partition("/")
    scheme = {"postgresql": "postgres"}.get(scheme, scheme)
    return {"namespace": f"{scheme}://{host}", "name": path or "/"}


def _dataset(manifest: Manifest, namespace: str) -> dict[str, Any]:
    fields = [{"name": name, "type": kind} for name, kind in manifest.columns.items()]
    return {
        "namespace": _namespace(namespace),
        "name": manifest.name,
        "facets": {
            "version": {**_facet(VERSION_FACET), "datasetVersion": manifest.sha256},
            "schema": {**_facet(SCHEMA_FACET), "fields": fields},
        },
    }


def _namespace(root: str) -> str:
    return root if "://" in root else f"file://{root}"


def _facet(schema: str) -> dict[str, str]:
    return {"_producer": PRODUCER, "_schemaURL": schema}
