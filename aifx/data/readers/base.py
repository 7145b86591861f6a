"""The options and results of every reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aifx.data.names import Kind
from aifx.data.readers.arrow import pa, pc

TEXT = "text"
"""The column with the text in a version of texts; the source may have another name for it."""

BLOCK_BYTES = 2 << 20
SAMPLE_BYTES = 1 << 20
"""Bytes at the beginning of a file from which its columns are inferred."""

ROW_BYTES = 128 << 20
"""Bytes of the largest row. One that is larger ends the reading of its file."""


class DamagedFile(Exception):
    """A file cannot be read to its end.

    Attributes:
        line: from which on, from 1; None if it is not known.
    """

    def __init__(self, why: str, line: int | None = None) -> None:
        super().__init__(why)
        self.line = line


class ColumnsChanged(Exception):
    """A row does not fit the columns that the beginning of its file has: all of the file must be looked at."""


@dataclass(frozen=True)
class OwnReader:
    """A reader of a project's own, which another process imports again.

    Attributes:
        name: `module:Class` in `root`.
        sha256: of the file with the class.
    """

    name: str
    root: Path
    sha256: str


@dataclass(frozen=True)
class ReadOptions:
    """The options of reading files.

    Attributes:
        text_field: the field that becomes the column `text`.
        encoding: of text files that do not begin with a byte order mark; a codec of Python, or "auto" if each file
            decides it.
        split_at: a regular expression of the lines at which a row of a text file begins; None if a file is a row.
        max_expansion: how many times its own size a compressed file may expand to.
    """

    kind: Kind
    text_field: str = TEXT
    encoding: str = "utf-8"
    max_expansion: float = 100
    split_at: str | None = None

    @property
    def text_column(self) -> str | None:
        """The field that must have a text; None unless the rows are texts."""
        return self.text_field if self.kind == "text" else None


@dataclass(frozen=True)
class BadRow:
    """A row, or the rest of a file, that could not be read.

    Attributes:
        line: from 1; the number of a row where rows are no lines. None if it is not known of the rest of a file.
        value: the bytes at fault, as they are in the source.
    """

    line: int | None
    reason: str
    value: bytes | None = None


@dataclass(frozen=True)
class Batch:
    """Rows of one file, in order.

    Attributes:
        rows: in the columns of the file.
        numbers: the number of each row in its file, from 0, bad rows included.
    """

    rows: pa.Table
    numbers: pa.Array
    bad: Sequence[BadRow] = field(default=())


def batch_of(rows: pa.Table, first: int, bad: Sequence[BadRow] = ()) -> Batch:
    """Rows that have consecutive numbers."""
    import numpy as np

    return Batch(rows, pa.array(np.arange(first, first + len(rows))), bad)


def split_valid(batch: Batch, text_field: str | None, raw: Callable[[int], tuple[int, bytes]]) -> Batch:
    """The batch without rows whose strings are not UTF-8 or that have no text; they are added to its bad rows.

    Args:
        text_field: the column that must have a text; None if there is none.
        raw: gives line and bytes of the row with an index in the batch.
    """
    reasons: dict[int, str] = {}
    for name, column in zip(batch.rows.column_names, batch.rows.columns, strict=True):
        for index in rows_not_utf8(column):
            reasons.setdefault(index, f"column {name!r} is not UTF-8")
    if text_field is not None:
        texts = batch.rows.column(text_field)
        if reasons:  # Arrow's functions take valid texts alone
            texts = pc.if_else(pa.array([index in reasons for index in range(len(texts))]), "?", texts)
        is_blank = pc.or_(pc.equal(pc.binary_length(texts), 0), pc.utf8_is_space(texts))
        for index in pc.indices_nonzero(pc.fill_null(is_blank, True)).to_pylist():
            reasons[index] = f"no text in {text_field!r}"
    if not reasons:
        return batch
    keep = pa.array([index not in reasons for index in range(len(batch.rows))], pa.bool_())
    bad = [BadRow(raw(index)[0], reason, raw(index)[1]) for index, reason in reasons.items()]
    in_order = sorted([*batch.bad, *bad], key=lambda row: row.line or 0)
    return Batch(batch.rows.filter(keep), batch.numbers.filter(keep), in_order)


def rows_not_utf8(column: Any) -> list[int]:
    """The rows with a string that is not UTF-8, which Arrow does not check when it reads.

    Args:
        column: an array, or a chunked one.
    """
    return [] if _is_valid(column) else [row for row in range(len(column)) if not _is_valid(column.slice(row, 1))]


def _is_valid(column: Any) -> bool:
    try:
        column.validate(full=True)
    except ValueError:  # ArrowInvalid
        return False
    return True


def joined(first: pa.Schema, second: pa.Schema) -> pa.Schema:
    """The columns of both, each with the type that holds the values of both. Raises ArrowTypeError if none does."""
    return pa.unify_schemas([first, second], promote_options="permissive")
