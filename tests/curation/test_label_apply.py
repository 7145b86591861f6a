"""Labels become a column of a new version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import inprocess
import pytest
from label_rows import add_labels, entry, rows_version, texts_version
from pyarrow import parquet

from aifx.curation.labels.agreement import decide
from aifx.data.versions.catalog import Catalog, open_catalog


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


def apply(catalog: Catalog, *options: str) -> tuple[int, Any]:
    folder = catalog.local
    assert folder is not None
    command = ["data", "label", "apply", "reviews", *options, "--json", "--root", str(folder)]
    done = inprocess.run(command, folder.parent, {})
    return done.returncode, json.loads(done.stdout)


def column(catalog: Catalog, name: str = "label") -> dict[str, str | None]:
    version = catalog.open("reviews")
    tables = [parquet.read_table(shard) for shard in version.shards]
    return {row["_row"]: row[name] for table in tables for row in table.to_pylist()}


def test_the_majority_decides() -> None:
    labels = {
        "a": {"ann": "good", "bob": "good", "eve": "bad"},
        "b": {"ann": "good", "bob": "bad"},
        "c": {"ann": "bad"},
        "d": {"ann": "x", "bob": "y", "eve": "z"},
    }
    assert decide(labels) == {"a": "good", "c": "bad"}


def test_a_version_with_the_labels(catalog: Catalog) -> None:
    """New labels make a version from the one before; the same labels make none; a row without label keeps its value."""
    before = texts_version(catalog)
    add_labels(catalog, entry(0, "good"), entry(1, "bad"), entry(2, None))
    code, made = apply(catalog)
    assert (code, made["is_new"], made["parents"]) == (0, True, [before.reference])
    assert made["facts"] == {"rows_changed": 2, "rows_labelled": 2}
    found = column(catalog)
    assert {row: label for row, label in found.items() if label is not None} == {"f-0": "good", "f-1": "bad"}
    assert len(found) == before.manifest.rows == made["rows"]
    assert apply(catalog)[1]["is_new"] is False
    add_labels(catalog, entry(1, "good", id="later"), entry(1, "bad", "bob"), entry(3, "bad"))
    code, again = apply(catalog)
    assert again["facts"] == {"rows_changed": 1, "rows_labelled": 3}
    assert column(catalog)["f-1"] == "bad"  # no majority any more


def test_nothing_to_apply(catalog: Catalog) -> None:
    texts_version(catalog)
    code, document = apply(catalog)
    assert (code, "no labels" in document["error"]["what"]) == (2, True)
    code, document = apply(catalog, "--column", "text/2")
    assert code == 2


def test_a_column_of_numbers(catalog: Catalog) -> None:
    rows_version(catalog, "reviews", {"words": [3, 4], "label": [1, 2]}, "table")
    add_labels(catalog, entry(0, "good"))
    code, document = apply(catalog)
    assert (code, "column label" in document["error"]["what"]) == (2, True)
