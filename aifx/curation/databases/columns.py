"""Columns of a version as columns of a table in PostgreSQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aifx.core.errors import DataError
from aifx.core.json_values import encode_json
from aifx.core.os_errors import first_line

if TYPE_CHECKING:
    from pyarrow import Array, DataType, RecordBatch, Schema


def storage_type(kind: DataType) -> DataType:
    """The Arrow type in which the values of a type are sent: one that the driver writes and PostgreSQL has."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(kind):
        return storage_type(kind.value_type)
    widened = {pa.uint8(): pa.int16(), pa.int8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}
    widened |= {pa.uint64(): pa.decimal128(20, 0), pa.float16(): pa.float32()}
    if kind in widened:
        return widened[kind]
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz and "UTC")
    if types.is_date(kind):
        return pa.date32()
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return pa.binary()
    if types.is_list(kind) and not types.is_nested(kind.value_type):
        return pa.list_(storage_type(kind.value_type))
    is_kept = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal128(kind)
    return kind if is_kept else pa.string()


def sql_type(kind: DataType) -> str:
    """PostgreSQL's name of a storage type."""
    import pyarrow as pa
    from pyarrow import types

    names = {
        pa.bool_(): "boolean",
        pa.int16(): "smallint",
        pa.int32(): "integer",
        pa.int64(): "bigint",
        pa.float32(): "real",
        pa.float64(): "double precision",
        pa.date32(): "date",
        pa.binary(): "bytea",
    }
    if types.is_decimal(kind):
        return f"numeric({kind.precision}, {kind.scale})"
    if types.is_timestamp(kind):
        return "timestamptz" if kind.tz else "timestamp"
    return f"{sql_type(kind.value_type)}[]" if types.is_list(kind) else names.get(kind, "text")


def stored(batch: RecordBatch, schema: Schema) -> RecordBatch:
    """The rows in their storage types. Values of other types, such as objects, become JSON.

    Raises DataError for a value that its storage type does not have.
    """
    import pyarrow as pa

    columns = []
    for field in schema:
        column = batch.column(field.name)
        try:
            columns.append(column if column.type == field.type else _as_stored(column, field.type))
        except (pa.ArrowException, ValueError, OverflowError) as e:
            what = f"column {field.name!r} of type {column.type} does not fit into {sql_type(field.type)}"
            raise DataError(what, first_line(e), "aifx data push --columns leaves it out") from None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _as_stored(column: Array, kind: DataType) -> Array:
    import pyarrow as pa

    if not pa.types.is_nested(column.type) or not pa.types.is_string(kind):
        return column.cast(kind)
    values = column.to_pylist()
    texts = [None if value is None else encode_json(value, ensure_ascii=False) for value in values]
    return pa.array(texts, pa.string())
