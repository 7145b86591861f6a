"""Predictions of a run's model, which `aifx.load` returns: in batches, so that memory does not grow with the rows."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aifx.config.project_errors import project_errors
from aifx.core.errors import AifxError, ConfigError, DataError
from aifx.data.base import Batch, DataFormat, undefined
from aifx.data.frames import Rows, rows_of
from aifx.data.readers.rows import Row, input_file
from aifx.data.readers.sources import SourceFile
from aifx.data.spec import DataSpec
from aifx.loading.restore import RestoredRun
from aifx.objectives.base import Objective

logger = logging.getLogger(__name__)


def predict_rows(trained: RestoredRun, rows: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Each row with its prediction, in order, computed as evaluation computes.

    A batch has `eval.batch_size` rows, otherwise `train.global_batch_size`. Raises DataError naming the file and the
    line of a row that cannot be used; the rows before it in the same batch have no prediction then.

    A row with a `DataFormat.skip_reason` has a prediction of nulls with this `reason`, and a warning names it. Raises
    DataError if no row has another.
    """
    programs, params, frozen = trained.programs(trained.config.eval.quantize)
    task, rows_per_batch = programs.task, programs.eval_rows
    if task.format is None:
        raise undefined(type(task), "format", "make predictions")

    def predict(batch: Batch) -> Mapping[str, np.ndarray]:
        predicted = jax.device_get(programs.predict_step(params, frozen, programs.place(batch)))
        return checked_predictions(task.objective, predicted, rows_per_batch)

    form, read = task.format, deque[tuple[Row, str]]()  # rows without a prediction so far, and why they get none

    def usable() -> Iterator[Row]:
        for row in rows:
            reason = form.skip_reason(row.values)
            read.append((row, reason))
            if reason:
                logger.warning(f"{row.place}: no prediction: {reason}")
            else:
                yield row

    objective, data, decoded = task.objective, task.data, dict[str, Any]()
    with project_errors(trained.config.parts, trained.project):
        if _defines_both(form, "encode", "encode_rows"):
            predictions = _predicted_at_once(form, objective, data, usable(), predict, rows_per_batch)
        else:
            outputs = in_batches(encoded_rows(form, usable()), predict, rows_per_batch)
            predictions = ((row, record(objective, objective.decode(found, data))) for row, found in outputs)
        for row, decoded in predictions:
            while read[0][1]:
                skipped, reason = read.popleft()
                yield skipped, _nulls(decoded) | {"reason": reason}
            read.popleft()
            yield row, decoded
    for skipped, reason in read:
        if not decoded:
            raise DataError(f"{skipped.place}: the row cannot be used", reason, "correct the row, or leave it out")
        yield skipped, _nulls(decoded) | {"reason": reason}


def hidden_rows(trained: RestoredRun, rows: Iterable[Row]) -> np.ndarray:
    """What the head reads of each row, `[rows, embed]`, of a format that makes one example per row."""
    programs, params, frozen = trained.programs("none")
    if programs.task.format is None:
        raise undefined(type(programs.task), "format", "read rows")

    def compute(batch: Batch) -> Mapping[str, np.ndarray]:
        found: Mapping[str, np.ndarray] = jax.device_get(programs.hidden_step(params, frozen, programs.place(batch)))
        return found

    with project_errors(trained.config.parts, trained.project):
        found = in_batches(encoded_rows(programs.task.format, rows), compute, programs.eval_rows)
        return np.concatenate([arrays["hidden"] for _, arrays in found])


def _defines_both(found: object, one: str, all: str) -> bool:
    """Whether the class that defines the method `one` also defines its counterpart for many rows."""
    return next(all in vars(cls) for cls in type(found).__mro__ if one in vars(cls) or all in vars(cls))


def _predicted_at_once(
    form: DataFormat,
    objective: Objective,
    data: DataSpec,
    rows: Iterator[Row],
    predict: Callable[[Batch], Mapping[str, np.ndarray]],
    batch_size: int,
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Each row with its prediction; `batch_size` rows are encoded, predicted and decoded at once."""
    encoder = RowEncoder(form)
    while chunk := list(islice(rows, batch_size)):
        padding = batch_size - len(chunk)
        batch = {
            name: np.concatenate([values, np.zeros((padding, *values.shape[1:]), values.dtype)])
            for name, values in encoder.encode_rows(chunk).items()
        }
        outputs = {name: values[: len(chunk)] for name, values in predict(batch).items()}
        yield from zip(chunk, _decoded(objective, outputs, data), strict=True)


def _decoded(objective: Objective, outputs: Mapping[str, np.ndarray], data: DataSpec) -> list[dict[str, Any]]:
    """The predictions of rows with one example each."""
    if _defines_both(objective, "decode", "decode_rows"):
        return objective.decode_rows(outputs, data)
    each = (
        {name: values[row : row + 1] for name, values in outputs.items()}
        for row in range(len(next(iter(outputs.values()))))
    )
    return [record(objective, objective.decode(one, data)) for one in each]


def _nulls(value: Any) -> Any:
    """The same with None for each number and text."""
    if isinstance(value, Mapping):
        return {name: _nulls(item) for name, item in value.items()}
    return [_nulls(item) for item in value] if isinstance(value, list) else None


class RowEncoder:
    """Makes examples of rows, which fit in a batch with those of the first row."""

    def __init__(self, form: DataFormat) -> None:
        self.form = form
        self._first: dict[str, tuple[Any, ...]] | None = None

    def encode_rows(self, rows: Sequence[Row]) -> Batch:
        """The examples of rows, one each, as `DataFormat.encode_rows` makes them. Raises as `encode` does."""
        try:
            batch = self.form.encode_rows([row.values for row in rows])
        except (MemoryError, RecursionError):
            raise
        except Exception:  # `encode` names the row
            batch = None
        if batch is None:
            each = [self.encode(row) for row in rows]
            return {name: np.concatenate([one[name] for one in each]) for name in each[0]}
        _check_fields(self.form, rows[0], batch)
        return batch

    def encode(self, row: Row) -> Batch:
        """The examples of a row. Raises DataError naming the row whose arrays differ from those of the first."""
        form = self.form
        batch = _encode(form, row)
        _check_fields(form, row, batch)
        kinds = {name: (values.dtype, values.shape[1:]) for name, values in batch.items()}
        self._first = first = self._first or kinds
        if kinds != first:
            odd = next(name for name in {**first, **kinds} if kinds.get(name) != first.get(name))
            why = f"{type(form).__name__}.encode: {odd!r} has another type or shape than in the first row"
            raise DataError(f"{row.place}: the row does not fit in a batch with the first", why, "docs/tasks.md")
        return batch


def encoded_rows(form: DataFormat, rows: Iterable[Row]) -> Iterator[tuple[Row, Batch]]:
    """Each row with its examples. Raises DataError, as `RowEncoder.encode` does."""
    encoder = RowEncoder(form)
    return ((row, encoder.encode(row)) for row in rows)


def checked_predictions(objective: Objective, predicted: Any, batch_size: int) -> Mapping[str, np.ndarray]:
    """The predictions of an objective for a batch. Raises ConfigError unless they are arrays, an entry per example."""
    if isinstance(predicted, Mapping) and predicted:
        arrays = {name: np.asarray(values) for name, values in predicted.items()}
        if all(values.shape[:1] == (batch_size,) for values in arrays.values()):
            return arrays
    name = f"{type(objective).__name__}.predictions"
    raise ConfigError(
        f"{name} returned no predictions", f"it returns arrays [{batch_size}, ...] by name", "docs/tasks.md"
    )


def record(objective: Objective, decoded: Any) -> dict[str, Any]:
    """The prediction for a row with Python's own numbers and lists. Raises ConfigError for other values."""
    name = f"{type(objective).__name__}.decode"
    if not isinstance(decoded, Mapping):
        raise ConfigError(f"{name} returned {type(decoded).__name__}", "a record is a dict", "docs/tasks.md")

    def native(value: Any) -> Any:
        if hasattr(value, "tolist"):
            return value.tolist()
        if isinstance(value, Mapping):
            return {str(key): native(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [native(item) for item in value]
        if value is None or isinstance(value, (str, bool, int, float)):
            return value
        why = "a record holds numbers, text, lists and dicts"
        raise ConfigError(f"{name} returned a value of type {type(value).__name__}", why, "docs/tasks.md")

    return {str(key): native(value) for key, value in decoded.items()}


def in_batches(
    rows: Iterable[tuple[Row, Batch]], predict: Callable[[Batch], Mapping[str, np.ndarray]], batch_size: int
) -> Iterator[tuple[Row, dict[str, np.ndarray]]]:
    """Each row with the predictions for its examples, `[examples, ...]`, which are computed `batch_size` at a time.

    Zeros fill the last batch.
    """
    examples = _examples(rows)
    outputs: list[Mapping[str, np.ndarray]] = []  # for the examples so far of a row that is not complete
    while chunk := list(islice(examples, batch_size)):
        batch = [example for _, example, _ in chunk]
        empty = {name: np.zeros_like(value) for name, value in batch[0].items()}
        predicted = predict(_stacked([*batch, *[empty] * (batch_size - len(batch))]))
        for index, (row, _, is_last) in enumerate(chunk):
            outputs.append({name: values[index] for name, values in predicted.items()})
            if is_last:
                yield row, _stacked(outputs)
                outputs = []


def _examples(rows: Iterable[tuple[Row, Batch]]) -> Iterator[tuple[Row, Batch, bool]]:
    """The examples of each row one by one, and whether one is the last of its row."""
    for row, batch in rows:
        count = len(next(iter(batch.values())))
        for index in range(count):
            yield row, {name: values[index] for name, values in batch.items()}, index == count - 1


def _stacked(examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def _encode(form: DataFormat, row: Row) -> Batch:
    """The examples of a row. Raises DataError for one that cannot be used."""
    try:
        batch = {name: np.asarray(values) for name, values in form.encode(row.values).items()}
    except (AifxError, MemoryError, RecursionError):
        raise
    except Exception as error:
        kinds = {ValueError: f"{error}", KeyError: f"no field {error}"}
        why = kinds.get(type(error), f"{type(error).__name__}: {error}")
        raise DataError(f"{row.place}: the row cannot be used", why, "correct the row, or leave it out") from error
    lengths = {values.shape[:1] for values in batch.values()}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        shapes = ", ".join(f"{name} {list(values.shape)}" for name, values in batch.items())
        why = f"{type(form).__name__}.encode returned {shapes or 'nothing'}; arrays are [examples, ...]"
        raise DataError(f"{row.place}: the row has no examples", why, "docs/tasks.md")
    return batch


def _check_fields(form: DataFormat, row: Row, batch: Batch) -> None:
    """Raise DataError unless the arrays are as the DataSpec describes the model's inputs."""
    for name, values in batch.items():
        field = form.spec.fields.get(name)
        dtype = jax.dtypes.canonicalize_dtype(values.dtype).name  # as the device takes it
        if field is not None and (field.shape, field.dtype) != (values.shape[1:], dtype):
            found = f"{name!r} {values.dtype} {list(values.shape[1:])}"
            why = f"{type(form).__name__}.encode made {found} of it; the model takes {field.dtype} {list(field.shape)}"
            raise DataError(f"{row.place}: the row does not fit the model", why, "docs/tasks.md")


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
    def format(self) -> DataFormat:
        """The way to read rows. Raises UsageError for a task that does not define it."""
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
        return self.format.decode(data)

    def predict_files(self, *paths: str | Path) -> Iterator[dict[str, Any]]:
        """A prediction for each row or image of the files, in order."""
        rows = self.read([input_file(str(path)) for path in paths])
        return (prediction for _, prediction in predict_rows(self.trained, rows))

    def read(self, files: Iterable[SourceFile]) -> Iterator[Row]:
        """The rows of files as the task reads them. Raises DataError naming the file and the line."""
        for file in files:
            yield from self.format.read_rows(file)

    def write_predictions(
        self, files: Iterable[SourceFile], write: Callable[[list[dict[str, Any]]], None]
    ) -> tuple[int, list[str]]:
        """Predict each row of the files, and call `write` with records in chunks.

        Records are what `DataFormat.records` makes of a row and its prediction. Returns how many there were, and the
        places of rows without a prediction.
        """
        form, skipped = self.format, list[str]()

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
