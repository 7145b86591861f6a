"""Arrays in memory as batches: tables and series, their splits, their digests, and files that cannot be used."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aifx.core.errors import ConfigError, DataError
from aifx.core.project import Project
from aifx.data.arrays import (
    ArrayDataset,
    ArrayFormat,
    Arrays,
    ArraysSection,
    array_dataset,
    read_examples,
    split_arrays,
)
from aifx.data.spec import Field, keep_spec, need_spec

RNG = np.random.default_rng(0)
TABLE: Arrays = {"inputs": RNG.normal(size=(103, 4)).astype(np.float32), "targets": np.arange(103, dtype=np.float32)}


def table(**options: Any) -> ArrayDataset:
    return array_dataset(split_arrays(TABLE, 0.2, 0.1), **options)


def read_all(dataset: ArrayDataset, split: Any, batch_size: int) -> dict[str, np.ndarray]:
    source = dataset.source(split, batch_size, seed=None)
    assert source.num_batches is not None
    batches = [source.read(step, slice(0, batch_size)) for step in range(source.num_batches)]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_a_table_says_what_a_model_must_know_of_it() -> None:
    spec = table(axes={"inputs": ("features",)}).spec
    numbers = {"targets": Field((), "float32"), "weights": Field((), "float32")}
    assert spec.fields == {"inputs": Field((4,), "float32", ("features",)), **numbers}
    assert (spec.vocab_size, spec.classes, spec.target_size) == (None, (), 1)
    pairs = array_dataset({"test": {"inputs": TABLE["inputs"], "targets": TABLE["inputs"][:, :2]}})
    assert pairs.spec.target_size == 2


def test_a_spec_is_kept_with_a_run(tmp_path: Path) -> None:
    spec = table(classes=("a", "b"), axes={"inputs": ("features",)}).spec
    keep_spec(tmp_path, spec)
    assert need_spec(tmp_path) == spec


@pytest.mark.parametrize("batch_size", [1, 7, 103, 200])
def test_without_a_seed_each_example_comes_once_in_order(batch_size: int) -> None:
    dataset = array_dataset({"test": TABLE})
    found = read_all(dataset, "test", batch_size)
    real = found["weights"] == 1
    assert real.sum() == 103
    for name, values in TABLE.items():
        np.testing.assert_array_equal(found[name][real], values)
        assert not found[name][~real].any(), "rows that fill the last batch hold nothing"
    assert dataset.counts(found) == {"examples": 103}


def test_with_a_seed_each_epoch_is_an_order_of_its_own() -> None:
    source = array_dataset({"train": TABLE}).source("train", 103, seed=3)
    assert source.num_batches is None
    first, second = (source.read(step, slice(0, 103)) for step in (0, 1))
    for batch in (first, second):
        assert sorted(batch["targets"]) == list(range(103))
        np.testing.assert_array_equal(TABLE["inputs"][batch["targets"].astype(int)], batch["inputs"])
    assert first["targets"].tolist() != second["targets"].tolist()
    part = source.read(1, slice(40, 60))
    np.testing.assert_array_equal(part["targets"], second["targets"][40:60])


def test_weights_of_the_data_count() -> None:
    weighted = {**TABLE, "weights": np.full(103, 0.5, np.float32)}
    weighted["weights"][3] = 0
    dataset = array_dataset({"test": weighted})
    found = read_all(dataset, "test", 50)
    assert found["weights"].tolist() == [*weighted["weights"], *[0.0] * 47]
    assert dataset.counts(found) == {"examples": 102}


def test_an_order_and_an_emphasis_change_training_alone() -> None:
    dataset = replace(
        array_dataset({"train": TABLE, "test": TABLE}),
        order=lambda places, seed: np.array([place % 7 for place in places]),
        emphasis=np.arange(103, dtype=np.float32),
    )
    batch = dataset.source("train", 4, seed=0).read(1, slice(0, 4))
    np.testing.assert_array_equal(batch["targets"], TABLE["targets"][[4, 5, 6, 0]])
    assert batch["weights"].tolist() == [4, 5, 6, 0]
    whole = read_all(dataset, "train", 10)
    np.testing.assert_array_equal(whole["targets"][:103], TABLE["targets"])
    assert whole["weights"].tolist() == [1] * 103 + [0] * 7
    shuffled = dataset.source("test", 4, seed=0).read(1, slice(0, 4))
    assert shuffled["weights"].tolist() == [1] * 4


def test_numbers_have_32_bits() -> None:
    wide = {"inputs": np.arange(6.0).reshape(3, 2), "targets": np.arange(3), "seen": np.array([True, False, True])}
    dataset = array_dataset({"test": wide})
    dtypes = {name: field.dtype for name, field in dataset.spec.fields.items()}
    assert dtypes == {"inputs": "float32", "targets": "int32", "seen": "bool", "weights": "float32"}
    assert {name: values.dtype.name for name, values in read_all(dataset, "test", 2).items()} == dtypes
    with pytest.raises(ValueError, match="'targets' holds 2147483648"):
        array_dataset({"test": {"targets": np.array([1, 2**31])}})


def test_equal_examples_are_in_one_split() -> None:
    doubled = {name: np.concatenate([values, values]) for name, values in TABLE.items()}
    splits = split_arrays(doubled, 0.3, 0.3)
    counts = {split: Counter(arrays["targets"].tolist()) for split, arrays in splits.items()}
    assert all(set(count.values()) == {2} for count in counts.values())
    assert sum(map(len, counts.values())) == 103
    assert all(len(count) > 15 for count in counts.values())
    alone = split_arrays(TABLE, 0.3, 0.3)
    assert {split: set(count) for split, count in counts.items()} == {
        split: set(arrays["targets"].tolist()) for split, arrays in alone.items()
    }


def test_a_series_is_divided_in_order() -> None:
    series = np.sin(np.arange(1010) / 5).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(series, 10)[:-1]
    splits = split_arrays({"inputs": windows, "targets": series[10:]}, 0.2, 0.1, by="block")
    assert {split: len(arrays["targets"]) for split, arrays in splits.items()} == {
        "train": 700,
        "validation": 200,
        "test": 100,
    }
    joined = np.concatenate([splits[split]["targets"] for split in ("train", "validation", "test")])
    np.testing.assert_array_equal(joined, series[10:])
    dataset = array_dataset(splits, axes={"inputs": ("seq",)})
    assert dataset.spec.fields["inputs"] == Field((10,), "float32", ("seq",))
    batch = dataset.source("train", 64, seed=0).read(5, slice(0, 64))
    place = np.searchsorted(np.arange(700), [np.flatnonzero(series == target)[0] - 10 for target in batch["targets"]])
    np.testing.assert_array_equal(batch["inputs"], windows[place])


def test_the_digest_follows_the_arrays() -> None:
    digests = {table().digest, table(how="flip").digest, array_dataset(split_arrays(TABLE, 0.1, 0.1)).digest}
    changed = {**TABLE, "targets": TABLE["targets"] + (np.arange(103) == 50)}
    digests.add(
        array_dataset(split_arrays({**changed, "targets": changed["targets"].astype(np.float32)}, 0.2, 0.1)).digest
    )
    assert len(digests) == 4
    assert table().digest in digests


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": {"inputs": np.zeros((3, 2)), "targets": np.zeros(4)}}, "arrays differ in length: .*'targets': 4"),
        ({"train": {}}, "no arrays"),
        ({"train": {"inputs": np.array(["a", "b"])}}, "'inputs' is <U1; batches hold real numbers"),
        ({"train": {"inputs": np.zeros((3, 2))}, "test": {"inputs": np.zeros((3, 3))}}, "'inputs' of test is .*3"),
        ({"train": {"inputs": np.zeros(3)}, "test": {"inputs": np.zeros(3, "i4")}}, "int32.* elsewhere .*float32"),
        ({"train": {"inputs": np.zeros(3)}, "test": {"x": np.zeros(3)}}, r"test has the arrays \['x'\], .*'inputs'"),
    ],
)
def test_arrays_that_do_not_go_together(splits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        array_dataset(splits)


class Sums(ArrayFormat):
    """Rows {"a", "b", "sum"}."""

    @classmethod
    def read(cls, section: Any, path: Path) -> Arrays:
        def example(row: Any) -> dict[str, Any]:
            return {"inputs": np.array([row["a"], row["b"]], np.float32), "targets": np.float32(row["sum"])}

        return read_examples(path, example)


def csv(folder: Path, *rows: str) -> Path:
    (folder / "sums.csv").write_text("\n".join(["a,b,sum", *rows]) + "\n")
    return folder


def test_a_format_opens_its_file_and_others(tmp_path: Path) -> None:
    csv(tmp_path, *(f"{n},{2 * n},{3 * n}" for n in range(100)))
    section = ArraysSection(path="sums.csv", split="block", validation_fraction=0.2)
    form, dataset = Sums.open(section, Project(tmp_path), tmp_path)
    assert read_all(dataset, "test", 10)["targets"].tolist() == [3.0 * n for n in range(90, 100)]
    assert len(dataset.splits["validation"]["targets"]) == 20
    assert Sums.load(section, form.spec, tmp_path) == form
    other = csv(tmp_path, "1,2,3") / "sums.csv"
    measured = form.open_file(other)
    assert measured.spec == form.spec
    assert read_all(measured, "test", 1)["inputs"].tolist() == [[1.0, 2.0]]
    with pytest.raises(ConfigError, match="without the data"):
        Sums.describe(section, Project(tmp_path))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["1,2,3", "1,two,3"], ["sums.csv:3: the row cannot be used", "two"]),
        (["1,2,3", "1,2,"], ["sums.csv:3"]),
        ([], ["sums.csv", "no rows"]),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, rows: list[str], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        Sums.open(ArraysSection(path="sums.csv"), Project(csv(tmp_path, *rows)), tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_a_field_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "sums.csv").write_text("a,c,sum\n1,2,3\n")
    with pytest.raises(DataError, match="no field 'b'"):
        Sums.open(ArraysSection(path="sums.csv"), Project(tmp_path), tmp_path)


def test_an_empty_split_says_what_helps(tmp_path: Path) -> None:
    section = ArraysSection(path="sums.csv", split="block", validation_fraction=0.0)
    _, dataset = Sums.open(section, Project(csv(tmp_path, "1,2,3", "2,3,5")), tmp_path)
    with pytest.raises(DataError) as caught:
        dataset.source("validation", 4, seed=None)
    assert "sums.csv: " in str(caught.value)
    assert "validation split" in str(caught.value)
    assert "data.validation_fraction" in caught.value.hint
