"""Rows in batches: each row gets the predictions for its own examples, in order, whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aifx.core.errors import ConfigError, DataError
from aifx.data.readers.rows import Row
from aifx.data.spec import DataSpec
from aifx.loading.prediction import checked_predictions, encoded_rows, in_batches, record


@given(st.lists(st.integers(1, 9), max_size=20), st.integers(1, 6))
def test_each_row_gets_its_own_predictions(counts: list[int], batch_size: int) -> None:
    sizes: list[int] = []

    def predict(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(batch["x"]))
        return {"double": 2 * batch["x"], "other": batch["y"]}

    starts = np.cumsum([0, *counts])
    rows = [
        (Row("a", n, "a", {}), {"x": np.arange(starts[n], starts[n + 1]), "y": np.full((count, 2), n)})
        for n, count in enumerate(counts)
    ]
    found = list(in_batches(iter(rows), predict, batch_size))
    assert [row.number for row, _ in found] == list(range(len(counts)))
    for (_, batch), (_, outputs) in zip(rows, found, strict=True):
        assert outputs["double"].tolist() == (2 * batch["x"]).tolist()
        assert outputs["other"].tolist() == batch["y"].tolist()
    assert set(sizes) <= {batch_size}
    assert len(sizes) == -(-sum(counts) // batch_size)  # no batch is computed for filling alone


def test_no_more_rows_are_read_than_a_batch_needs() -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield Row("a", taken, "a", {}), {"x": np.zeros(1)}

    found = in_batches(endless(), lambda batch: batch, 8)  # type: ignore[arg-type]
    for _ in range(80):
        next(found)
    assert taken == 80


class Task:
    spec = DataSpec({})

    def encode(self, row: dict[str, list[float]]) -> dict[str, object]:
        return {"x": row["x"]}


def rows(*values: object) -> list[Row]:
    return [Row("a", n, f"a:{n}", {"x": value}) for n, value in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (([[1.0, 2.0]], [[1.0]]), ["a:2", "'x' has another type or shape"]),
        (([[1.0]], [["text"]]), ["a:2", "'x'"]),
        (([],), ["a:1", "no examples"]),
        ((1.0,), ["a:1", "no examples"]),
    ],
)
def test_a_row_of_another_shape_is_named(values: tuple[object, ...], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        list(encoded_rows(Task(), rows(*values)))  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "predicted", [{}, [1, 2], {"x": 1.0}, {"x": np.zeros(3)}, {"x": np.zeros(4), "y": np.zeros(())}]
)
def test_predictions_without_an_entry_per_example_are_the_tasks_mistake(predicted: object) -> None:
    with pytest.raises(ConfigError, match=r"Task\.predictions"):
        checked_predictions(Task(), predicted, 4)  # type: ignore[arg-type]


def test_records_hold_what_json_can_hold() -> None:
    decoded = {"a": np.float32(0.5), "b": (np.int64(2), {"c": np.arange(2)}), 1: None}
    assert record(Task(), decoded) == {"a": 0.5, "b": [2, {"c": [0, 1]}], "1": None}  # type: ignore[arg-type]
    for odd in ([1], {"a": object()}, {"a": [b"bytes"]}):
        with pytest.raises(ConfigError, match=r"Task\.decode"):
            record(Task(), odd)  # type: ignore[arg-type]
