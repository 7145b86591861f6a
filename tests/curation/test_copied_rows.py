"""Rows of tables and pictures that a test has too: copies are found, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from inprocess import run
from label_rows import rows_version
from made_rows import rows_of

from aifx.data.names import ROW, SPLIT
from aifx.data.versions.catalog import Catalog, open_catalog


def decontaminate(folder: Path, *args: str, code: int) -> Any:
    done = run(["data", "decontaminate", *args, "--root", "datasets", "--json"], folder, dict(os.environ))
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def compare(folder: Path, *args: str) -> dict[str, str | None]:
    """The rows that overlap, with their twins."""
    found = decontaminate(folder, *args, code=1)
    assert found["overlapping"] == len(found["overlaps"]) == sum(found["by_reference"].values())
    assert all(each["words"] == 0 and each["place"] for each in found["overlaps"])
    return {each["row"]: each["twin"] for each in found["overlaps"]}


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


def table(catalog: Catalog, splits: Sequence[str], name: str = "reviews", **more: Any) -> str:
    columns = {"id": [*range(len(splits))], "score": [None, *range(1, len(splits))], SPLIT: [*splits], **more}
    return rows_version(catalog, name, columns, "table").reference


def test_rows_that_moved_into_the_test_are_found(tmp_path: Path, catalog: Catalog) -> None:
    old = table(catalog, ["train", "train", "validation", "test", "train"])
    new = table(catalog, ["test", "train", "test", "test", "train", "train", "test"])
    assert decontaminate(tmp_path, new, code=0)["against"] == [{"name": new, "texts": 4, "too_short": 0}]
    assert compare(tmp_path, old, "--against", new) == {"f-0": "f-0"}  # the held-out rows of `old` trained nothing
    made = decontaminate(tmp_path, old, "--against", new, "--drop", code=0)
    version = catalog.open(made["reference"])
    assert [row[ROW] for row in rows_of(version.shards)] == ["f-1", "f-2", "f-3", "f-4"]
    assert rows_of(version.dropped) == [{ROW: "f-0", "rule": f"overlaps {new}", "twin": "f-0"}]


def test_values_count_and_neither_their_types_nor_other_columns(tmp_path: Path, catalog: Catalog) -> None:
    rows_version(catalog, "rows", {"amount": [1, 2, None, 4], "name": ["a", "b", "", None]}, "table")
    other = {"name": ["b", "a", None, ""], "amount": [2.0, 1.5, 4.0, 4.0], "more": [1, 2, 3, 4]}
    rows_version(catalog, "test", other, "table")
    assert compare(tmp_path, "rows", "--against", "test") == {"f-1": "f-0", "f-3": "f-2"}
    (tmp_path / "test.csv").write_text("name,amount\nz,0\na,1.0\n")
    assert compare(tmp_path, "rows", "--against", "test.csv") == {"f-0": None}
    both = decontaminate(tmp_path, "rows", "--against", "test.csv", "--against", "test", code=1)
    assert both["by_reference"] == {"test.csv": 1, catalog.manifest("test").reference: 2}
    rows_version(catalog, "others", {"x": [1]}, "table")
    assert "none of its columns" in decontaminate(tmp_path, "rows", "--against", "others", code=2)["error"]["why"]


def test_pictures_are_compared_by_their_bytes(tmp_path: Path, catalog: Catalog) -> None:
    rows_version(catalog, "photos", {"image": [b"one", b"two", b"three"], "label": ["x", "y", "z"]}, "images")
    rows_version(catalog, "test", {"image": [b"four", b"two"], "label": ["x", "other"]}, "images")
    assert compare(tmp_path, "photos", "--against", "test") == {"f-1": "f-1"}
    rows_version(catalog, "fresh", {"image": [b"four"], "label": ["x"]}, "images")
    assert decontaminate(tmp_path, "photos", "--against", "fresh", code=0)["overlapping"] == 0
    assert (
        "holds table"
        in decontaminate(tmp_path, "photos", "--against", table(catalog, ["test"]), code=2)["error"]["why"]
    )


def test_held_out_texts_of_another_version_of_the_data_set_are_no_training_rows(
    tmp_path: Path, catalog: Catalog
) -> None:
    texts = [" ".join(f"{name}{number}" for number in range(15)) for name in ("a", "b", "c")]
    old = rows_version(catalog, "texts", {"text": texts, SPLIT: ["train", "test", "train"]}).reference
    new = rows_version(catalog, "texts", {"text": texts, SPLIT: ["train", "test", "test"]}).reference
    found = decontaminate(tmp_path, old, "--against", new, code=1)
    assert [each["row"] for each in found["overlaps"]] == ["f-2"]
    assert decontaminate(tmp_path, new, "--against", new, code=0)["against"][0]["name"] == new
