"""Rows in batches: each row gets the predictions for its own examples, in order, whatever the batch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aifx.data.rows import Row
from aifx.prediction import in_batches


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
