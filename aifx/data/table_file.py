"""Files of rows, whole in memory by column."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, islice
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.errors import DataError, did_you_mean
from aifx.core.project import Project
from aifx.data.columns import is_missing
from aifx.data.file_index import ImplicitVersion, version_of_path
from aifx.data.names import RESERVED, ROW
from aifx.data.readers.rows import FORMATS, Row, read_rows
from aifx.data.readers.sources import SourceFile, local_file, named_file
from aifx.data.sections import PathSection
from aifx.data.versions.parts import DatasetPart

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The rows of a file, or of a version of a data set.

    Attributes:
        file: of a version, its reference alone.
        file_versions: the file by the key that names it.
    """

    file: SourceFile
    part: DatasetPart | None = None
    file_versions: Mapping[str, ImplicitVersion] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the file, or the reference of the version."""
        return self.file.name

    def rows(self) -> Iterator[Row]:
        """The rows in order, without the columns that aifx adds. Raises DataError, also if the file has changed."""
        yield from read_rows(self.file) if self.part is None else _rows_of(self.part)
        for version in self.file_versions.values():
            version.check_unchanged()

    def places(self, numbers: np.ndarray) -> list[str]:
        """The file and the line of rows by their numbers, from 0, in one more reading: places take no memory."""
        if self.part is None and self.file.is_stream:
            return [f"{self.name}: row {number + 1}" for number in numbers.tolist()]  # they were read
        rows = islice(self.rows(), int(numbers.max(initial=-1)) + 1)
        wanted = set(numbers.tolist())
        places = {row.number - 1: row.place for row in rows if row.number - 1 in wanted}
        return [places[number] for number in numbers.tolist()]


def open_source(section: PathSection, project: Project) -> Source:
    """The file or the version that `[data]` names. Raises UsageError, DataError."""
    if (part := section.open_part(project)) is not None:
        return Source(SourceFile(part.reference, part.reference, "dataset"), part)
    file = named_file(section.path, project.root)
    return Source(file, file_versions=version_of_path(file, project))


def _rows_of(part: DatasetPart) -> Iterator[Row]:
    batches = (batch for _, batch in part.batches(list(part.manifest.columns)))
    for number, values in enumerate((values for batch in batches for values in batch.to_pylist()), 1):
        kept = {name: value for name, value in values.items() if name not in RESERVED}
        yield Row(part.reference, number, f"{part.reference}: row {values.get(ROW) or number}", kept)


@dataclass(frozen=True)
class Table:
    """Rows of a file or a version, their values by column."""

    source: Source
    values: Mapping[str, Sequence[Any]]
    numbers: np.ndarray  # of the rows in the file, from 0 [rows]

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def num_rows(self) -> int:
        return len(self.numbers)

    def column(self, name: str, key: str | None = None) -> Sequence[Any]:
        """The values of a column. Raises DataError if there is none of this name, which `key` of aifx.toml has."""
        if name in self.values:
            return self.values[name]
        what = f"{self.name}: no column {name!r}" + (f", which {key} names" if key else "")
        hint = f"head -n 1 {shlex.quote(self.name)}" if self.source.file.format == "csv" else ""
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
            what = f"{self.name}: column {name!r} is empty"
            raise DataError(what, "no row has a value to learn", f"head {self.name}")
        missing = np.flatnonzero(~is_known)
        first = self.place(int(missing[0]))
        logger.warning(f"{self.name}: {len(missing):,} rows without {name!r} are left out, such as {first}")
        return self.rows_where(is_known)

    def convert(self, name: str, function: Callable[[Any], Any]) -> list[Any]:
        """The function of each value of a column. Raises DataError with the line of one that it refuses."""
        converted: list[Any] = []
        try:
            converted.extend(map(function, self.column(name)))  # keeps those before the one that fails
        except ValueError as error:
            what = f"{self.place(len(converted))}: column {name!r}"
            hint = "correct the row, or give the column another kind in data.columns: aifx config keys data"
            raise DataError(what, str(error), hint) from None
        return converted

    def place(self, row: int) -> str:
        """The file and the line of a row."""
        return self.source.places(self.numbers[[row]])[0]


def read_table(path: Path, name: str) -> Table:
    """The table at `path`, as `table_of` reads it. Raises DataError."""
    return table_of(Source(local_file(path, name)))


def table_of(source: Source) -> Table:
    """Its rows. Raises DataError, also for a row that lacks a column of the first."""
    if source.part is None and source.file.format not in FORMATS:
        why = f"a table is a file of {', '.join(f'.{format}' for format in FORMATS)}"
        raise DataError(f"{source.name} cannot be read as a table", why, f"ls -l {source.name}")
    values: dict[str, list[Any]] = {}
    numbers: list[int] = []
    for row in source.rows():
        if not numbers:
            values = {column: [] for column in row.values}
        if odd := sorted(row.values.keys() ^ values.keys()):
            why = f"it differs from the first in {', '.join(odd[:3])}"
            raise DataError(f"{row.place}: the row has other columns", why, "give each row the same fields")
        for column, cells in values.items():
            cells.append(row.values[column])
        numbers.append(row.number - 1)
    if not numbers:
        raise DataError(f"{source.name}: no rows", "a table has a header and rows below it", f"head {source.name}")
    return Table(source, values, np.array(numbers))
