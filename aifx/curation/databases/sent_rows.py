"""Whether a table of PostgreSQL has the rows that were sent to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aifx.core.errors import DataError
from aifx.data.versions.sql import identifier

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch, Schema


class SentRows:
    """Rows that were sent: their number, and of each column the number of its values and a sum.

    The sum is that of whole numbers, or of the bytes of texts and binary values; 0 for other types.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._facts = [0] * (1 + 2 * len(schema))

    def add(self, batch: RecordBatch) -> None:
        facts = [len(batch)]
        for column in batch.columns:
            facts += [len(column) - column.null_count, _sum(column)]
        self._facts = [one + more for one, more in zip(self._facts, facts, strict=True)]

    def check(self, cursor: Any, table: str) -> None:
        """Raise DataError if a table, named as in SQL, has other rows."""
        expressions = ["count(*)"]
        for field in self._schema:
            expressions += [f"count({identifier(field.name)})", _sql_sum(field)]
        cursor.execute(f"SELECT ARRAY[{', '.join(expressions)}]::text[] FROM {table}")
        found = [int(value) for value in cursor.fetchone()[0]]
        if found == self._facts:
            return
        at, got, sent = next(
            (at, *both) for at, both in enumerate(zip(found, self._facts, strict=True)) if both[0] != both[1]
        )
        if not at:
            why = f"it has {got:,} rows instead of {sent:,}"
        else:
            name = self._schema[(at - 1) // 2].name
            noun = f"column {name!r} has {got:,} values" if at % 2 else f"the sum of column {name!r} is {got:,}"
            why = f"{noun} instead of {sent:,}"
        hint = "aifx has written nothing; run the same command again"
        raise DataError("the database has other rows than aifx sent", why, hint)


def check_copied(cursor: Any, source: str, values: Sequence[str], target: str, names: Sequence[str]) -> None:
    """Raise DataError if the columns `names` of a table differ from the expressions `values` over another one.

    The sum of the rows' hashes is compared, so their order does not count.
    """
    hashes = []
    for table, columns in ((source, values), (target, names)):
        row_hash = f"hashtextextended(ROW({', '.join(columns)})::text, 0)"
        cursor.execute(f"SELECT count(*), coalesce(sum({row_hash}), 0)::text FROM {table}")
        hashes.append(cursor.fetchone())
    (rows, sent), (kept, found) = hashes
    hint = "aifx has written nothing; name another table"
    if kept != rows:
        why = f"it has {kept:,} rows instead of {rows:,}, perhaps because of a trigger or rule"
        raise DataError(f"the table {target} does not take all rows", why, hint)
    if found != sent:
        raise DataError(f"the table {target} changes rows", "perhaps by a trigger or rule", hint)


def _sum(column: Array) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
        column = pc.binary_length(column)
    if not pa.types.is_integer(column.type):
        return 0
    numbers = column.fill_null(0).cast(pa.int64()).to_numpy()
    return (int((numbers >> 32).sum()) << 32) + int((numbers & 0xFFFFFFFF).sum())  # a sum of int64 may overflow


def _sql_sum(field: Any) -> str:
    import pyarrow as pa

    name = identifier(field.name)
    if pa.types.is_string(field.type) or pa.types.is_binary(field.type):
        return f"coalesce(sum(octet_length({name})), 0)"
    return f"coalesce(sum({name}), 0)" if pa.types.is_integer(field.type) else "0"
