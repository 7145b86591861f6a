"""Files of rows, whole in memory by column."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from aifx.core.errors import DataError, did_you_mean
from aifx.data.columns import is_missing
from aifx.data.names import RESERVED, ROW
from aifx.data.readers.rows import FORMATS, Row, read_rows
from aifx.data.readers.sources import SourceFile, local_file
from aifx.data.versions.parts import DatasetPart

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VersionRows:
    """The rows of a version of a data set, without the columns that aifx adds."""

    part: DatasetPart

    format = "dataset"

    @property
    def name(self) -> str:
        return self.part.reference

    def __iter__(self) -> Iterator[Row]:
        batches = (batch for _, batch in self.part.batches(list(self.part.manifest.columns)))
        for number, values in enumerate((values for batch in batches for values in batch.to_pylist()), 1):
            kept = {name: value for name, value in values.items() if name not in RESERVED}
            yield Row(self.name, number, f"{self.name}: row {values.get(ROW) or number}", kept)

    def column(self, name: str) -> list[Any]:
        """The values of one column, also of one that aifx adds."""
        return [value for _, batch in self.part.batches([name]) for value in batch.column(0).to_pylist()]


RowsOf: TypeAlias = SourceFile | VersionRows
"""What the rows of a table are read from."""


def rows_of(source: RowsOf) -> Iterator[Row]:
    return iter(source) if isinstance(source, VersionRows) else read_rows(source)


@dataclass(frozen=True)
class Table:
    """Rows of a file or a version, their values by column."""

    file: RowsOf
    values: Mapping[str, Sequence[Any]]
    numbers: np.ndarray  # of the rows in the file, from 0 [rows]

    @property
    def name(self) -> str:
        """What messages call the file."""
        return self.file.name

    @property
    def num_rows(self) -> int:
        return len(self.numbers)

    def column(self, name: str, key: str | None = None) -> Sequence[Any]:
        """The values of a column. Raises DataError if there is none of this name, which `key` of aifx.toml has."""
        if name in self.values:
            return self.values[name]
        what = f"{self.name}: no column {name!r}" + (f", which {key} names" if key else "")
        hint = f"head -n 1 {shlex.quote(self.name)}" if self.file.format == "csv" else ""
        raise DataError(what, did_you_mean(name, self.values), hint)

    def rows_where(self, which: np.ndarray) -> Table:
        values = {name: list(compress(values, which)) for name, values in self.values.items()}
        return replace(self, values=values, numbers=self.numbers[which])

    def known(self, name: str) -> Table:
        """The rows with a value in this column. Logs how many have none; raises DataError if none has one."""
        is_known = np.array([not is_missing(value) for value in self.column(name, "data.target")])
        if is_known.all():
            return self
        if not is_known.any():
            raise DataError(
                f"{self.name}: column {name!r} is empty", "no row has a value to learn", f"head {self.name}"
            )
        missing = np.flatnonzero(~is_known)
        first = self.place(int(missing[0]))
        logger.warning(f"{self.name}: {len(missing):,} rows without {name!r} are left out, such as {first}")
        return self.rows_where(is_known)

    def convert(self, name: str, function: Callable[[Any], Any]) -> list[Any]:
        """The function of each value of a column. Raises DataError naming the line of one that it refuses."""
        converted: list[Any] = []
        try:
            converted.extend(map(function, self.values[name]))  # keeps those before the one that fails
        except ValueError as error:
            what = f"{self.place(len(converted))}: column {name!r}"
            hint = "correct the row, or give the column another kind in data.columns: aifx config keys data"
            raise DataError(what, str(error), hint) from None
        return converted

    def place(self, row: int) -> str:
        """The file and the line of a row: read again, so that places take no memory."""
        return places_of(self.file, self.numbers[[row]])[0]


def places_of(file: RowsOf, numbers: np.ndarray) -> list[str]:
    """The file and the line of rows by their numbers in the file, from 0, in one reading."""
    places: dict[int, str] = {}
    for number, row in enumerate(islice(rows_of(file), int(numbers.max(initial=-1)) + 1)):
        if number in numbers:
            places[number] = row.place
    return [places[number] for number in numbers.tolist()]


def read_table(path: Path, name: str) -> Table:
    """The table at `path`, as `table_of` reads it. Raises DataError."""
    file = local_file(path, name)
    if file.format not in FORMATS:
        why = f"a table is a file of {', '.join(f'.{format}' for format in FORMATS)}"
        raise DataError(f"{name} cannot be read as a table", why, f"ls -l {name}")
    return table_of(file)


def table_of(file: RowsOf) -> Table:
    """Its rows. Raises DataError, also for a row that lacks a column of the first."""
    values: dict[str, list[Any]] = {}
    count = 0
    for row in rows_of(file):
        if not count:
            values = {column: [] for column in row.values}
        if odd := sorted(row.values.keys() ^ values.keys()):
            why = f"it differs from the first in {', '.join(odd[:3])}"
            raise DataError(f"{row.place}: the row has other columns", why, "give each row the same fields")
        for column, cells in values.items():
            cells.append(row.values[column])
        count += 1
    if not count:
        raise DataError(f"{file.name}: no rows", "a table has a header and rows below it", f"head {file.name}")
    return Table(file, values, np.arange(count))
