"""Tables of a data set's version."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stored_versions import make_version

from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.data.sections import TableSection
from aifx.data.table import TableFormat

HELD_OUT = {"validation_fraction": 0.2, "test_fraction": 0.3}


def columns(count: int = 80) -> dict[str, list[str]]:
    source = random.Random(4)
    x = [f"{source.uniform(0, 9):.2f}" for _ in range(count)]
    kind = [source.choice(["a", "b", "c"]) for _ in range(count)]
    return {"x": x, "kind": kind, "target": ["yes" if float(value) > 4 else "no" for value in x]}


def open_table(project: Project, **keys: object) -> tuple[TableFormat, object]:
    return TableFormat.open(TableSection(**{**HELD_OUT, **keys}), project, project.root / "assets")


def test_the_batches_are_those_of_the_file(project: Project, write: Callable[..., Path]) -> None:
    rows = columns()
    lines = [",".join(rows), *(",".join(row) for row in zip(*rows.values(), strict=True))]
    write("table.csv", "\n".join(lines) + "\n")
    make_version(project, "points", rows, "table", shards=3)
    of_file, of_version = (
        open_table(project, **keys)[1] for keys in ({"path": "data/table.csv"}, {"dataset": "points"})
    )
    assert of_version.digest == of_file.digest
    for split, seed in (("train", 3), ("validation", None), ("test", None)):
        one, other = (data.source(split, 4, seed=seed).read(1, slice(None)) for data in (of_file, of_version))
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])


def test_columns_that_aifx_adds_are_no_inputs(project: Project) -> None:
    clusters = [f"r-{index % 20}" for index in range(80)]
    make_version(project, "points", {**columns(), "_cluster": clusters}, "table")
    form, data = open_table(project, dataset="points")
    assert {column.name for column in form.spec.columns} == {"x", "kind"}
    found = {
        split: {int(p.rpartition("-")[2]) % 20 for p in data.places(split, range(len(a["targets"])))}
        for split, a in data.splits.items()
    }
    assert all(found.values())
    assert sum(map(len, found.values())) == 20


def test_the_column_of_splits_decides(project: Project) -> None:
    named = [("train", "validation", "test")[index % 3] for index in range(80)]
    rows = {**columns(), "_split": named}
    rows["target"][0] = ""  # a row that is left out
    make_version(project, "points", rows, "table", shards=2)
    _, data = open_table(project, dataset="points")
    for number, split in enumerate(("train", "validation", "test")):
        count = len(data.splits[split]["targets"])
        expected = [index for index in range(number, 80, 3) if index]
        assert data.places(split, range(count)) == [f"{data.name}: row r-{index}" for index in expected]
    _, data = open_table(project, dataset="points", validation_fraction=0.0)
    counts = {split: len(arrays["targets"]) for split, arrays in data.splits.items()}
    assert counts == {"train": 53, "validation": 0, "test": 26}


def test_folds_are_of_all_rows_that_the_column_of_splits_leaves(project: Project) -> None:
    named = [("train", "validation", "test")[index % 3] for index in range(80)]
    make_version(project, "points", {**columns(), "_split": named}, "table", shards=2)
    _, data = TableFormat.open(TableSection(dataset="points"), project, project.root / "assets", 3)
    folds = {split: set(arrays["fold"].tolist()) for split, arrays in data.splits.items()}
    assert folds == {"train": {0, 1, 2}, "validation": {0, 1, 2}, "test": {-1}}
    assert [len(arrays["fold"]) for arrays in data.splits.values()] == [54, 54, 26]


def test_a_column_that_is_missing_is_named(project: Project) -> None:
    version = make_version(project, "points", columns(), "table")
    with pytest.raises(DataError, match=f"{version.reference}: no column 'y'"):
        open_table(project, dataset="points", target="y")
