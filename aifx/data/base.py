"""Data sets, and the batches that programs read: a function of (seed, number, rows). Imports no jax."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from aifx.core.digests import sha256_of_values
from aifx.core.errors import DataError, UsageError, did_you_mean
from aifx.core.project import Project
from aifx.data.names import ROW
from aifx.data.readers.rows import Row, read_rows
from aifx.data.readers.sources import SourceFile
from aifx.data.spec import DataSpec
from aifx.data.splits import Split

Batch: TypeAlias = dict[str, np.ndarray]  # each array [rows, ...]

TEXT_BYTES = "num_bytes"
"""The field with the bytes of each row's text, int32 `[rows]`, of a batch of text that is evaluated or predicted."""


def not_finite_input(batch: Batch) -> str | None:
    """Where a batch holds a NaN or an infinity ("batch has NaN in 'y', row 12"), None if it holds none."""
    for name, array in batch.items():
        values = np.asarray(array)
        # ml_dtypes' types (bfloat16) have kind V.
        if values.dtype.kind not in "fcV":
            continue
        values = values.astype(np.float32) if values.dtype.kind == "V" else values
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            first = values[tuple(bad[0])]
            rows = sorted({int(place[0]) for place in bad}) if values.ndim else []
            where = f", row {rows[0]}" if rows else ""
            more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
            return f"batch has {'NaN' if np.isnan(first) else 'an infinity'} in {name!r}{where}{more}"
    return None


class BatchSource(Protocol):
    """One split of a data set.

    With a seed, `num_batches` is None and any batch may be read. Without one, batches 0..num_batches-1 hold each
    example once; the last is filled with rows whose `weights` are 0.
    """

    @property
    def batch_size(self) -> int:
        """Rows of a global batch."""

    @property
    def num_batches(self) -> int | None: ...

    def read(self, number: int, rows: slice) -> Batch:
        """Rows `rows` of global batch `number`, counted from 0. The same bytes whenever it is called.

        Step n of a run, from 1, takes batch n - 1, unless guards have left out earlier ones (`batch_number`).
        """


class Dataset(Protocol):
    """A data set that is open for reading."""

    @property
    def spec(self) -> DataSpec:
        """The facts about it that a model must know."""

    @property
    def digest(self) -> str:
        """SHA-256 over the data and how it is read: equal digests give equal batches."""

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> BatchSource:
        """Batches of `split`: shuffled without end, or without a seed in order, each example once. Raises DataError."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """The contents of a batch by unit ("examples", "tokens", "bytes"), padding left out."""


@dataclass(frozen=True)
class Labels:
    """A value for each example of a split, or for each of its targets if an example holds several documents.

    Attributes:
        names: the different values, as text; "" for a missing one.
        codes: number of the value among `names`, in the order of the split: `[examples]` or `[examples, targets]`. -1
            for a target that does not count.
    """

    names: tuple[str, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> Labels:
        """The labels of texts `[examples]`."""
        names, codes = np.unique(values.astype(np.str_), return_inverse=True)
        return cls(tuple(names.tolist()), codes)


class DataFormat(ABC):
    """The way to read a kind of data. Except for `open`, it needs no training data."""

    spec: DataSpec

    @property
    def media_types(self) -> tuple[str, ...]:
        """Types of single files that are rows, such as "image/png": `aifx serve` takes their bytes. By default none."""
        return ()

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Fields that each row to predict for must have. By default none is known: `encode` finds what is missing."""
        return ()

    @property
    def outcome_column(self) -> str:
        """Field of a row with its target, once that is known: one value. By default "": `read_rows` gives none."""
        return ""

    def decode(self, data: bytes) -> Mapping[str, Any]:
        """The row of a file of one of `media_types`. Raises ValueError for bytes that cannot be used."""
        raise undefined(type(self), "decode", "read files of its media types")

    @classmethod
    @abstractmethod
    def describe(cls, section: Any, project: Project) -> DataSpec:
        """The spec that follows from `[data]`. Raises ConfigError that names the missing key if that is not enough."""

    @classmethod
    @abstractmethod
    def open(cls, section: Any, project: Project, assets: Path) -> tuple[DataFormat, Dataset]:
        """The data set of a project. Raises ConfigError, DataError.

        Args:
            assets: the run's folder for what is kept with its model (a tokenizer): what is there is used, what is
                missing is made and written there.
        """

    @classmethod
    @abstractmethod
    def load(cls, section: Any, spec: DataSpec, assets: Path) -> DataFormat:
        """The format of a trained run, whose model was made for `spec`. Raises DataError."""

    @classmethod
    def summary(cls, section: Any, project: Project) -> list[str]:
        """Lines about the data of a project, which `aifx config check` prints. By default none. Raises AifxError."""
        return []

    def open_file(self, path: Path) -> Dataset:
        """The file at `path` as a test split: what `aifx eval --data` measures."""
        raise undefined(type(self), "open_file", "measure other data")

    def open_split(self, split: Split, project: Project) -> Dataset | None:
        """The files of `split` alone, without the training data; None if the split is a part of the training data."""
        return None

    def baselines(self, dataset: Any, split: Split) -> Iterator[tuple[str, np.ndarray]]:
        """Simple predictors that `aifx eval` measures beside the model. By default none.

        Each is a name and what a model's head would give for the examples of `split`, in order: `[examples, outputs]`.

        Args:
            dataset: the one that `open` made, for what can be learned from its training split.
        """
        return iter(())

    def places(self, dataset: Any, split: Split, rows: Sequence[int]) -> list[str]:
        """Where these examples of a split are from: a file, or a file and a line. By default unknown: an empty list.

        Args:
            rows: their numbers in the order of the split, from 0.
        """
        return []

    def labels(self, dataset: Any, split: Split, column: str | None) -> Labels | None:
        """The value of a column of the source for each example of a split.

        Without a column it is what examples of one origin have in common: their series, or their document. None if each
        example is a group of its own, as by default. `aifx eval` groups and slices by it.

        Raises DataError if there is no such column.
        """
        if column is None:
            return None
        raise no_column(column, type(self).__name__)

    def sizes(self, dataset: Any, split: Split) -> dict[str, np.ndarray]:
        """The contents of each target by unit ("bytes"), `[examples, targets]`, by which a metric is divided."""
        return {}

    def split_digest(self, dataset: Any, split: Split) -> str:
        """SHA-256 over which examples a split has, whatever a model makes of them: by default that of the data set."""
        return sha256_of_values(dataset.digest, split)

    def format_example(self, example: Mapping[str, np.ndarray]) -> dict[str, str]:
        """The fields of an example as people read them. By default empty: its arrays are displayed."""
        return {}

    def read_rows(self, file: SourceFile) -> Iterator[Row]:
        """The rows of a file that `aifx predict` reads. By default of .jsonl, .csv, .parquet and .txt."""
        return read_rows(file)

    def encode(self, row: Mapping[str, Any]) -> Batch:
        """One row of input as arrays `[examples, ...]`: one example, or several for a row that does not fit in one.

        An exception means that the row cannot be used; aifx adds the file and the line. Values of .csv are text.
        """
        raise undefined(type(self), "encode", "make predictions")

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Batch | None:
        """What `encode` makes of each row, one example per row, at once and faster; None, as by default, if it cannot.

        An exception means that one of the rows cannot be used: `encode` finds which.
        """
        return None

    def skip_reason(self, row: Mapping[str, Any]) -> str:
        """The reason why this row gets no prediction although the rows around it do; "" by default.

        Its prediction is what others have with null for each number, and this as `reason`.
        """
        return ""

    def records(self, row: Row, prediction: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The records that `aifx predict` writes for a row.

        By default there is one: its file, its number in it, its id in a data set if it has one, and the prediction.
        """
        row_id = {ROW: row.values[ROW]} if isinstance(row.values.get(ROW), str) else {}
        return [{"file": row.file, "row": row.number, **row_id, **prediction}]


def no_column(column: str, name: str, known: Iterable[str] = ()) -> DataError:
    """The error for a column that `eval.group` or `eval.slices` names and the data lacks."""
    why = did_you_mean(column, known) if known else "rows of this kind of data have no columns"
    return DataError(f"{name}: no column {column!r} to group or slice by", why, "aifx eval --help, docs/eval.md")


def undefined(cls: type, method: str, purpose: str) -> UsageError:
    """The error for a class that lacks an optional method."""
    why = f"it does not define {method}"
    return UsageError(f"{cls.__name__} cannot {purpose}", why, f"define {cls.__name__}.{method}: docs/tasks.md")
