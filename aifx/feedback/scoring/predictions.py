"""Predictions as rows of a target: an id, the row's key, the model version, the request, and the values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import RecordBatch, Schema

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.json_values import encode_json
from aifx.data.names import RESERVED
from aifx.data.readers.rows import Row

ID = "prediction_id"
OWN = pa.schema(
    [
        (ID, pa.string()),
        ("key", pa.string()),
        ("model", pa.string()),
        ("request", pa.string()),
        ("scored_at", pa.timestamp("us", "UTC")),
    ]
)
"""The columns of each target. Those of the prediction follow."""

ID_DIGITS = 32
_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


@dataclass(frozen=True)
class KeyedRow:
    """A row to score.

    Attributes:
        key: as text.
        id: of its prediction, a function of the model version, the key and the row.
    """

    row: Row
    key: str
    id: str


def key_text(key: Any, place: str, column: str) -> str:
    """A key as text. Raises DataError if it is missing, has no UTF-8, or has NUL, which databases do not keep."""
    if key is None or key == "":
        hint = "--key COLUMN, of a column with a value in each row"
        raise DataError(f"{place}: the row has no key", f"its {column!r} is missing", hint)
    text, wrong = str(key), ""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        wrong = f"half of a surrogate pair at character {e.start + 1}: {text[e.start]!a}"
    if (at := text.find("\0")) >= 0:
        wrong = f"NUL at character {at + 1}"
    if wrong:
        what, hint = f"{place}: the key cannot be written", "correct the row, or --key COLUMN of another column"
        raise DataError(what, f"its {column!r} has {wrong}", hint)
    return text


def keyed(row: Row, column: str, model: str) -> KeyedRow:
    """A row with its key and the id of its prediction by a model version.

    Args:
        column: with the key.
        model: the version's digest.
    """
    key = key_text(row.values.get(column), row.place, column)
    values = {name: value for name, value in row.values.items() if name not in RESERVED}
    text = _canonical([model, key, values])  # may have a half of a surrogate pair, as JSON may
    return KeyedRow(row, key, sha256_of(text.encode("utf-8", "surrogatepass"))[:ID_DIGITS])


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, np.ndarray):
        return {"array": [str(value.dtype), list(value.shape), sha256_of(np.ascontiguousarray(value))]}
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value.item() if isinstance(value, np.generic) else str(value)


_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_as_json).encode


def prediction_batch(
    scored: Sequence[tuple[KeyedRow, Mapping[str, Any]]],
    model: str,
    request: str | None,
    now: datetime,
    schema: Schema | None = None,
) -> RecordBatch:
    """Predictions as rows of a target. Nested values, such as probabilities by class, become JSON.

    Args:
        model: the version's digest.
        schema: that of the batches before; None for the first.

    Raises DataError for predictions with other values than those before.
    """
    first = scored[0][1]
    if schema is None:
        schema = pa.schema([*OWN, *((_free(name), _type(value)) for name, value in first.items())])
    count = len(scored)
    columns: list[Any] = [
        [one.id for one, _ in scored],
        [one.key for one, _ in scored],
        [model] * count,
        [request] * count,
        [now] * count,
    ]
    for name in first:
        values = [found.get(name) for _, found in scored]
        is_nested = isinstance(first[name], Mapping | list)
        columns.append([encode_json(value) for value in values] if is_nested else values)
    try:
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
    except (pa.ArrowInvalid, pa.ArrowTypeError, ValueError) as error:
        what = f"{scored[0][0].row.place} and the rows after it: predictions have other values than the first"
        raise DataError(what, str(error).splitlines()[0], "docs/score.md") from None
    return RecordBatch.from_arrays(arrays, schema=schema)


def _free(name: str) -> str:
    """The column of a value of a prediction, which may have the name of one of OWN."""
    return f"prediction_{name}" if name in OWN.names else name


def _type(value: Any) -> pa.DataType:
    return _TYPES.get(type(value), pa.string())


def check_keys(keys: Iterable[tuple[Any, str]], column: str, again: Iterable[tuple[Any, str]]) -> int:
    """The number of rows. Raises DataError for one without key, or two with the same.

    Args:
        keys: with the places of their rows.
        again: the same once more, of which an error names two.
    """
    hashes = np.fromiter((hash(key_text(key, place, column)) for key, place in keys), np.int64)
    found, counts = np.unique(hashes, return_counts=True)
    if len(found) == len(hashes):
        return len(hashes)
    suspects, before = set(found[counts > 1].tolist()), dict[str, str]()
    for key, place in again:
        text = key_text(key, place, column)
        if hash(text) not in suspects:
            continue
        if text in before:
            why = f"{before[text]} and {place} have the same value"
            hint = "--key COLUMN, of a column with a different value in each row"
            raise DataError(f"--key {column} does not tell rows apart", why, hint)
        before[text] = place
    return len(hashes)
