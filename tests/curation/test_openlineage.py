"""The history holds the events that OpenLineage's own client would write, with the facets of its schemas."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from toy_steps import Rows, WithoutLetter

from aifx.curation.execution import execute
from aifx.curation.step import Limits
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.lineage import (
    STEP_FACET,
    is_recorded,
    read_lineage,
    record_index,
    record_push,
    record_removal,
    record_run,
    run_event,
)

event_v2 = pytest.importorskip("openlineage.client.event_v2")

from openlineage.client import facet_v2  # noqa: E402
from openlineage.client.serde import Serde  # noqa: E402

LIMITS = Limits(1 << 30, 1)
FACETS = {
    "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
    "schema": facet_v2.schema_dataset.SchemaDatasetFacet,
    "outputStatistics": facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
    "lifecycleStateChange": facet_v2.lifecycle_state_change_dataset.LifecycleStateChangeDatasetFacet,
}


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    catalog = open_catalog(str(tmp_path / "datasets"))
    first = execute(Rows((), (("a cat", "a dog"), ("an ox",))), "pets", catalog, LIMITS).version
    execute(WithoutLetter((first,), "d"), "pets", catalog, LIMITS)
    for _ in range(2):
        record_index(catalog, first.manifest, "7a0fa8be4456", {"column": "text"})
    record_push(catalog, first.manifest, "postgres://db:5432", "shop.public.pets")
    record_removal(catalog, [first.manifest])
    return catalog


def facet(name: str, given: dict[str, Any]) -> Any:
    """The client's own facet of these values. It refuses unknown ones."""
    kind = FACETS[name]
    assert given["_schemaURL"] == kind._get_schema(), name
    values = {key: value for key, value in given.items() if not key.startswith("_")}
    if name == "schema":
        values["fields"] = [facet_v2.schema_dataset.SchemaDatasetFacetFields(**field) for field in values["fields"]]
    return kind(producer=given["_producer"], **values)


def rebuilt(event: dict[str, Any]) -> Any:
    """The client's event of the same content, which checks ids, times and URLs."""

    def datasets(kind: Any, given: list[dict[str, Any]]) -> list[Any]:
        found = []
        for one in given:
            facets = {
                key: {name: facet(name, value) for name, value in one[key].items()}
                for key in ("facets", "outputFacets")
                if key in one
            }
            found.append(kind(namespace=one["namespace"], name=one["name"], **facets))
        return found

    job = event["job"]
    return event_v2.RunEvent(
        eventTime=event["eventTime"],
        eventType=event_v2.RunState[event["eventType"]],
        run=event_v2.Run(runId=event["run"]["runId"]),
        job=event_v2.Job(namespace=job["namespace"], name=job["name"]),
        inputs=datasets(event_v2.InputDataset, event["inputs"]),
        outputs=datasets(event_v2.OutputDataset, event["outputs"]),
        producer=event["producer"],
    )


def without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: without_empty(one) for key, one in value.items() if key != STEP_FACET}
        return {key: one for key, one in kept.items() if one not in (None, {}, [])}
    return [without_empty(one) for one in value] if isinstance(value, list) else value


def test_the_client_would_write_the_same(catalog: Catalog) -> None:
    references = [f"pets@{version}" for version in catalog.versions("pets")]
    events = [event for one in references for event in read_lineage(catalog, catalog.manifest(one).whole_reference)]
    events.sort(key=lambda event: str(event["eventTime"]))
    names = ["data.rows", "data.without-letter", "data.index", "data.push", "data.purge"]
    assert [event["job"]["name"] for event in events] == names
    for event in events:
        theirs = json.loads(Serde.to_json(rebuilt(event)))
        assert without_empty(event) == without_empty(theirs)
    assert events[0]["inputs"] == [{"namespace": "file", "name": "s0.txt"}, {"namespace": "file", "name": "s1.txt"}]
    assert events[1]["inputs"][0]["facets"]["version"] == events[0]["outputs"][0]["facets"]["version"]
    assert events[1]["job"]["facets"][STEP_FACET]["settings"] == {"letter": "d"}


def test_the_first_record_of_a_step_stays(catalog: Catalog) -> None:
    made = catalog.manifest("pets")
    (event,) = read_lineage(catalog, made.whole_reference)
    key = event["job"]["facets"][STEP_FACET]["key"]
    assert is_recorded(catalog, made, key)
    assert not is_recorded(catalog, made, "0" * 64)
    record_run(catalog, made, [], key)
    assert read_lineage(catalog, made.whole_reference) == [event]
    record_run(catalog, made, [], "0" * 64)
    assert len(read_lineage(catalog, made.whole_reference)) == 2


def test_a_store_that_creates_nothing_exclusively_has_the_history_too(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    made = catalog.manifest("pets")
    for _ in range(2):
        record_run(catalog, made, [], "0" * 64)
    assert len(read_lineage(catalog, made.whole_reference)) == 2


def test_sources_elsewhere(catalog: Catalog) -> None:
    from dataclasses import replace

    manifest = catalog.manifest("pets")
    sources = tuple(replace(manifest.sources[0], name=f"s3://bucket/a/{n}.txt") for n in range(1200))
    event = run_event(replace(manifest, sources=sources), [], "0" * 8, "s3://bucket/datasets")
    assert event["inputs"][0] == {"namespace": "s3://bucket", "name": "a/0.txt"}
    assert len(event["inputs"]) == 1000
    assert event["job"]["facets"][STEP_FACET]["sources"] == 1200
