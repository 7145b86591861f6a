"""A run's model, ready to use: what `aifx.load` returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from aifx.data.base import DataFormat, undefined
from aifx.data.frames import Rows, rows_of
from aifx.data.readers.rows import Row, input_file
from aifx.data.readers.sources import SourceFile
from aifx.loading.prediction import predict_rows
from aifx.loading.restore import RestoredRun

CHUNK = 64
"""Predictions that are written at a time."""


@dataclass(frozen=True, repr=False)
class LoadedModel:
    """A trained model without the data that it was trained on."""

    trained: RestoredRun

    def __repr__(self) -> str:
        return f"LoadedModel(run={self.run!r}, step={self.step}, task={self.trained.config.task.kind!r})"

    @property
    def run(self) -> str:
        return self.trained.run.name

    @property
    def step(self) -> int:
        return self.trained.step

    @property
    def _format(self) -> DataFormat:
        form = self.trained.task.format
        if form is None:
            raise undefined(type(self.trained.task), "format", "make predictions")
        return form

    def predict(self, rows: Rows) -> Iterator[dict[str, Any]]:
        """A prediction for each row, in order; a batch at a time, so that memory does not grow with the rows.

        A row has the fields that the task reads: {"text": "Call me Ishmael."}. Rows are mappings, a data frame or
        another table, as `aifx.data.frames.rows_of` takes them. A series without values has nulls and a `reason`.
        Raises UsageError for data without rows, DataError for a row that cannot be used.
        """
        numbered = (Row("rows", number, f"row {number}", values) for number, values in enumerate(rows_of(rows), 1))
        return (prediction for _, prediction in predict_rows(self.trained, numbered))

    def decode(self, data: bytes) -> Mapping[str, Any]:
        """The row for `predict` of a picture's file. Raises ValueError for bytes that are no picture."""
        return self._format.decode(data)

    def predict_files(self, *paths: str | Path) -> Iterator[dict[str, Any]]:
        """A prediction for each row or image of the files, in order."""
        rows = self.read([input_file(str(path)) for path in paths])
        return (prediction for _, prediction in predict_rows(self.trained, rows))

    def read(self, files: Iterable[SourceFile]) -> Iterator[Row]:
        """The rows of files as the task reads them. Raises DataError naming the file and the line."""
        for file in files:
            yield from self._format.read_rows(file)

    def write_predictions(
        self, files: Iterable[SourceFile], write: Callable[[list[dict[str, Any]]], None]
    ) -> tuple[int, list[str]]:
        """Predict each row of the files, and call `write` with records in chunks.

        Records are what `DataFormat.records` makes of a row and its prediction. Returns how many there were, and the
        places of rows without a prediction.
        """
        form, skipped = self._format, list[str]()

        def recorded() -> Iterator[dict[str, Any]]:
            for row, prediction in predict_rows(self.trained, self.read(files)):
                if form.skip_reason(row.values):
                    skipped.append(row.place)
                yield from form.records(row, prediction)

        records = recorded()
        count = 0
        while chunk := list(islice(records, CHUNK)):
            write(chunk)
            count += len(chunk)
        return count, skipped
