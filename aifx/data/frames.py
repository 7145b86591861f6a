"""Rows of data frames, Arrow tables and NumPy arrays with names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np

from aifx.core.errors import DataError, UsageError

Rows: TypeAlias = "Iterable[Mapping[str, Any]] | Mapping[str, np.ndarray] | Any"
"""Rows as `rows_of` takes them."""

ROWS = 256  # made of columns at a time
EXAMPLE = 'predict([{"text": "Call me Ishmael."}])'


def rows_of(data: Rows) -> Iterator[Mapping[str, Any]]:
    """The rows of `data`, in order, made as they are asked for.

    Args:
        data: mappings, as a list or an iterator; what offers Arrow's C interface, such as a pandas or Polars data frame
            and an Arrow table; a structured NumPy array `[rows]`; or NumPy arrays `[rows, ...]` by name.

    Raises UsageError for data without rows, DataError for a row that is not a mapping.
    """
    if hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__"):
        return _arrow_rows(data)
    if isinstance(data, np.ndarray) and data.dtype.names and data.ndim == 1:
        return _array_rows({name: data[name] for name in data.dtype.names})
    if isinstance(data, Mapping):
        return _array_rows(data)
    if isinstance(data, (str, bytes, np.ndarray)) or not isinstance(data, Iterable):
        what = f"rows are a {type(data).__name__}"
        raise UsageError(what, "a row is a mapping by field", 'predict([{"text": "..."}])')
    return _checked(data)


def _arrow_rows(data: Any) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa

    try:
        if hasattr(data, "__arrow_c_stream__"):
            batches = pa.RecordBatchReader.from_stream(data)
        else:
            batches = pa.Table.from_batches([pa.record_batch(data)]).to_reader()
    except (TypeError, ValueError) as error:  # one column alone, or a column of pandas with values of two types
        why, hint = " ".join(map(str, error.args)), 'predict(frame.to_dict("records"))'
        raise UsageError(f"a {type(data).__name__} cannot be read as a table", why, hint) from None
    if doubled := [name for name, count in Counter(batches.schema.names).items() if count > 1]:
        raise UsageError(f"two columns are called {doubled[0]!r}", "a row is a mapping by field", "rename one of them")
    for batch in batches:
        for start in range(0, len(batch), ROWS):
            yield from batch.slice(start, ROWS).to_pylist()


def _array_rows(data: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    arrays = dict(data)
    if not all(isinstance(values, np.ndarray) and values.ndim for values in arrays.values()):
        why = "its values are not NumPy arrays [rows, ...]"
        raise UsageError("rows are one mapping", why, "for one row: predict([row])")
    if len(set(map(len, arrays.values()))) > 1:
        why = ", ".join(f"{name!r} {len(values):,}" for name, values in arrays.items())
        raise UsageError("the arrays differ in their number of rows", why, "each array is [rows, ...]")
    for values in zip(*arrays.values(), strict=True):
        yield {name: _plain(value) for name, value in zip(arrays, values, strict=True)}


def _plain(value: Any) -> Any:
    """A value of Python; arrays stay."""
    if isinstance(value, np.datetime64):
        value = value.astype("M8[us]")  # finer ones become numbers
    return value.item() if isinstance(value, np.generic) else value


def _checked(rows: Iterable[Any]) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise DataError(f"row {number}: a {type(row).__name__}", "a row is a mapping by field", EXAMPLE)
        yield row
