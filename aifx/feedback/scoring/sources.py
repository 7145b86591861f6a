"""Rows to score: of files, or of a version of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyarrow import parquet

from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.data.base import DataFormat
from aifx.data.names import ROW
from aifx.data.readers.rows import Row
from aifx.data.readers.sources import SourceFile
from aifx.feedback.scoring.predictions import check_keys


class Source(ABC):
    """Rows that are open for reading, the same ones as often as they are read.

    Attributes:
        name: without secrets.
        key: the column with a different value in each row.
        end: the position after all rows, from which the next scoring goes on; None if there is none.
    """

    name: str
    key: str
    end: Any = None

    @abstractmethod
    def rows(self, form: DataFormat) -> Iterator[Row]:
        """The rows, in order, as the model's format reads them. Raises DataError, EnvironmentFault."""

    def position_of(self, row: Row) -> Any:
        """The position after a row and all rows before it; None if there is none."""
        return None

    def columns(self, form: DataFormat) -> list[str] | None:
        """The names of the columns; None without rows."""
        first = next(self.rows(form), None)
        return None if first is None else list(first.values)

    def keys(self, form: DataFormat) -> Iterator[tuple[Any, str]]:
        """The key of each row, None if it has none, and its place."""
        return ((row.values.get(self.key), row.place) for row in self.rows(form))

    def check(self, form: DataFormat) -> int:
        """The number of rows. Raises DataError if the model lacks a column, or the key does not tell rows apart."""
        if (names := self.columns(form)) is not None:
            self._check_columns(names, form)
        return check_keys(self.keys(form), self.key, self.keys(form))

    def _check_columns(self, names: Sequence[str], form: DataFormat) -> None:
        lacking = [name for name in form.input_columns if name not in names]
        if lacking:
            what = f"{self.name} lacks {', '.join(map(repr, lacking))}"
            why = f"the model reads {', '.join(form.input_columns)}; the rows have {', '.join(names)}"
            raise DataError(what, why, "rename the columns, or select them with --query 'SELECT … AS …'")
        if self.key not in names:
            what = f"{self.name} has no column {self.key!r}"
            raise DataError(what, did_you_mean(self.key, names), "--key COLUMN")


@dataclass
class FileSource(Source):
    """Files that a model's format reads."""

    name: str
    key: str
    files: Sequence[SourceFile]

    @contextmanager
    def open(self, position: Any) -> Iterator[FileSource]:
        yield self

    def rows(self, form: DataFormat) -> Iterator[Row]:
        for file in self.files:
            yield from form.read_rows(file)

    def keys(self, form: DataFormat) -> Iterator[tuple[Any, str]]:
        for file in self.files:
            if file.format == "parquet" and not file.is_remote:
                number = 0
                with parquet.ParquetFile(file.path) as opened:
                    for batch in (
                        opened.iter_batches(columns=[self.key]) if self.key in opened.schema_arrow.names else ()
                    ):
                        for key in batch.column(0).to_pylist():
                            number += 1
                            yield key, f"{file.name}: row {number}"
            else:
                yield from ((row.values.get(self.key), row.place) for row in form.read_rows(file))


def default_key(key: str | None, name: str, *, is_version: bool = False) -> str:
    """The column with the key. Raises UsageError if none is named, and the source has none of its own."""
    if key is None and not is_version:
        why = "a prediction names its row by a key"
        raise UsageError(f"{name} needs --key", why, "--key COLUMN, of a column with a different value in each row")
    return key or ROW
