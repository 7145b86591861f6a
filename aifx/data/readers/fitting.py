"""Types that Parquet can hold, and values in the types of a version's columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyarrow import DataType, Schema


def storable(kind: DataType) -> DataType:
    """The type with null in place of an object without fields, which Parquet cannot hold."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return pa.struct([(field.name, storable(field.type)) for field in kind]) if kind.num_fields else pa.null()
    return pa.list_(storable(kind.value_type)) if pa.types.is_list(kind) else kind


def storable_columns(schema: Schema) -> Schema:
    """The schema with types that Parquet can hold."""
    import pyarrow as pa

    return pa.schema([(field.name, storable(field.type)) for field in schema])


def fitted(column: Any, kind: DataType) -> Any:
    """The values of a chunked column in a wider type, or in its storable one."""
    import pyarrow as pa

    if column.type == kind:
        return column
    return pa.chunked_array([_fitted(chunk, kind) for chunk in column.chunks], kind)


def _fitted(values: Any, kind: DataType) -> Any:
    import pyarrow as pa

    if values.type == kind:
        return values
    if pa.types.is_null(kind) or pa.types.is_null(values.type):
        return pa.nulls(len(values), kind)
    if pa.types.is_struct(kind) and pa.types.is_struct(values.type):
        names = [field.name for field in values.type]
        children = [
            _fitted(values.field(names.index(field.name)), field.type)
            if field.name in names
            else pa.nulls(len(values), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=values.is_null())
    if pa.types.is_list(kind) and pa.types.is_list(values.type):
        whole = values if values.offset == 0 else pa.concat_arrays([values, values[:0]])
        items = _fitted(whole.values, kind.value_type)
        return pa.ListArray.from_arrays(whole.offsets, items, type=kind, mask=whole.is_null())
    return values.cast(kind)
