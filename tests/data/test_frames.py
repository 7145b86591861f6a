"""Rows of data frames, Arrow tables and NumPy arrays with names: what `predict` takes."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from aifx.core.errors import DataError, UsageError
from aifx.data.frames import ROWS, rows_of

MAPPINGS = [{"name": "a", "size": 1.5, "count": 3}, {"name": "b", "size": 2.5, "count": 4}]


def columns() -> dict[str, np.ndarray]:
    return {"name": np.array(["a", "b"]), "size": np.array([1.5, 2.5]), "count": np.array([3, 4], np.int16)}


def structured() -> np.ndarray:
    return np.array([("a", 1.5, 3), ("b", 2.5, 4)], [("name", "U1"), ("size", "f8"), ("count", "i4")])


def frame() -> Any:
    return pytest.importorskip("pandas").DataFrame(columns())


@pytest.mark.parametrize(
    "data",
    [
        MAPPINGS,
        iter(MAPPINGS),
        (row for row in MAPPINGS),
        columns(),
        structured(),
        pa.table(columns()),
        pa.record_batch(columns()),
        pa.RecordBatchReader.from_batches(pa.table(columns()).schema, pa.table(columns()).to_batches()),
        pa.table({**columns(), "name": pa.array(["a", "b"]).cast(pa.string_view())}),  # as Polars has texts
        frame(),
        frame().astype({"name": "category"}).set_index(np.array([7, 9])),
    ],
    ids=lambda data: type(data).__name__,
)
def test_rows(data: Any) -> None:
    rows = [{name: row[name] for name in MAPPINGS[0]} for row in rows_of(data)]
    assert rows == MAPPINGS
    assert [type(value) for value in rows[0].values()] == [str, float, int]


def test_values_that_are_missing_are_none_and_dates_are_dates() -> None:
    pandas = pytest.importorskip("pandas")
    at = datetime.datetime(2026, 12, 1, 10)
    found = pandas.DataFrame({"size": [1.5, None], "name": ["a", None], "at": [at, at]})
    first, second = rows_of(found)
    assert first["at"] == at
    assert (second["size"], second["name"]) == (None, None)


def test_pictures_keep_their_arrays() -> None:
    pictures = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    first, second = rows_of({"image": pictures})
    assert second["image"].dtype == np.uint8
    assert np.array_equal(np.stack([first["image"], second["image"]]), pictures)


def test_rows_are_made_as_they_are_asked_for() -> None:
    def endless() -> Any:
        while True:
            yield {"name": "a"}

    assert next(rows_of(endless())) == {"name": "a"}
    table = pa.table({"count": np.arange(3 * ROWS + 1)})
    assert [row["count"] for row in rows_of(table)] == list(range(3 * ROWS + 1))


@pytest.mark.parametrize(
    ("data", "fact"),
    [
        ({"text": "Call me Ishmael."}, "predict([row])"),
        ({"size": np.zeros(2), "count": np.zeros(3)}, "'count' 3"),
        ("Call me Ishmael.", "str"),
        (np.zeros((2, 3)), "ndarray"),
        (7, "int"),
        (pa.array([1, 2]), "Int64Array"),
        (pa.table([[1], [2]], names=["size", "size"]), "'size'"),
    ],
)
def test_data_without_rows_is_an_error(data: Any, fact: str) -> None:
    with pytest.raises(UsageError) as error:
        list(rows_of(data))
    assert fact in f"{error.value.what} {error.value.why} {error.value.hint}"


def test_a_frame_that_arrow_cannot_take_is_an_error() -> None:
    pandas = pytest.importorskip("pandas")
    mixed = pandas.DataFrame({"size": [1, "unknown"]})
    with pytest.raises(UsageError) as error:
        list(rows_of(mixed))
    assert "size" in error.value.why
    assert error.value.hint == 'predict(frame.to_dict("records"))'
    assert [row["size"] for row in rows_of(mixed.to_dict("records"))] == [1, "unknown"]


def test_dates_of_numpy_are_dates_whatever_their_unit() -> None:
    at = datetime.datetime(2026, 12, 1, 10)
    for unit in ("s", "us", "ns"):
        times = np.array([at, "NaT"], f"M8[{unit}]")
        assert [row["at"] for row in rows_of({"at": times})] == [at, None]


def test_a_row_that_is_no_mapping_is_an_error() -> None:
    with pytest.raises(DataError, match="row 2") as error:
        list(rows_of([{"text": "a"}, "b"]))
    assert "str" in error.value.what
