"""What a project trains: a task joins a model with data, an objective and metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import jax
import numpy as np

from aifx.config import Config
from aifx.config.sections import Section
from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.data.base import Batch, BatchSource, Split
from aifx.data.rows import InputFile, Row, read_rows
from aifx.specs import Params, Specs

Sums: TypeAlias = dict[str, tuple[jax.Array, jax.Array]]
"""Additive (total, weight) by name, float32 scalars or small arrays. Training follows total / weight of "loss"."""

Totals: TypeAlias = Mapping[str, tuple[Any, Any]]
"""The same on the host, added up over batches in float64."""


class Model(Protocol):
    """Pure functions over array specs; knows nothing of losses or data."""

    def specs(self) -> Specs: ...

    def flops(self, batch_shape: tuple[int, ...]) -> int:
        """Floating-point operations of a forward and backward pass over a batch `(rows, ...)` (docs/models.md)."""
        ...


class Task(Protocol):
    """What a project trains.

    A task of a project's own derives from this class; `model_section` and `data_section` are then the models of its
    `[model]` and `[data]`.
    """

    model_section: ClassVar[type[Section]]
    data_section: ClassVar[type[Section]]
    metric_names: ClassVar[tuple[str, ...]] = ()  # what `metrics` returns of a whole split, if known before any data
    model: Model
    unit: str  # what throughput counts: "tokens", "images"

    @classmethod
    def create(cls, config: Config, project: Project, assets: Path) -> Task:
        """The task of a project. Raises DataError, ConfigError.

        `assets` is the run's folder for what must be kept with the model (a tokenizer): what is there is used, what is
        not is made and written there.
        """
        ...

    @classmethod
    def load(cls, config: Config, project: Project, assets: Path) -> Task:
        """The task of a trained run, without the data that it was trained on. Takes what `create` takes.

        A task that does not define it is created, which needs that data.
        """
        return cls.create(config, project, assets)

    def with_data(self, path: Path) -> Task:
        """This task with the data set at `path` as its test split: what `aifx eval --data` measures."""
        raise undefined(type(self), "with_data", "measure other data")

    def with_split(self, split: Split, project: Project) -> Task | None:
        """This task with the files of `split` alone, so that it is measured without the training data.

        None where the split is a part of the training data.
        """
        return None

    def source(self, split: Split) -> BatchSource:
        """Batches of `train.global_batch_size` rows for training, of `eval.batch_size` otherwise."""
        ...

    def evaluation_source(self, split: Split) -> BatchSource:
        """What validation and `aifx eval` read: each example once, of "train" as well where a task brings this."""
        return self.source(split)

    def objective(self, params: Params, batch: Mapping[str, jax.Array], key: jax.Array, *, training: bool) -> Sums:
        """Additive sums over the batch. Runs inside jit, in the dtype that the params were cast to."""
        ...

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """Numbers by name from totals ("loss", "bits_per_byte", "accuracy"); nested reports may stand beside."""
        ...

    def units(self, batch: Batch) -> int:
        """Tokens or images in a batch, for throughput."""
        ...

    def batch_shape(self) -> tuple[int, ...]:
        """(global_batch_size, ...) as `Model.flops` takes it."""
        ...

    def data_digest(self) -> str:
        """SHA-256 over the data and how it is read: equal digests give equal batches."""
        ...

    def read_rows(self, file: InputFile) -> Iterator[Row]:
        """The rows of a file that `aifx predict` reads. By default of .jsonl, .csv, .parquet and .txt."""
        return read_rows(file)

    def encode(self, row: Mapping[str, Any]) -> Batch:
        """One row of input as arrays `[examples, ...]`: one example, or several for a row that does not fit in one.

        An exception says that the row cannot be used; aifx adds the file and the line. Values of .csv are text.
        """
        raise undefined(type(self), "encode", "make predictions")

    def predictions(self, params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What the model says about each example of a batch of `encode`'s arrays: arrays `[examples, ...]`.

        Runs inside jit, in the dtype that the params were cast to. The last batch ends with examples of zeros.
        """
        raise undefined(type(self), "predictions", "make predictions")

    def decode(self, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The record that is written for a row, JSON-ready, from the predictions for its examples.

        By default the predictions of a row's one example as Python's numbers and lists.
        """
        return {name: values[0].tolist() for name, values in predictions.items()}


def undefined(task: type, method: str, purpose: str) -> UsageError:
    """The error for a task that lacks an optional method."""
    why = f"it does not define {method}"
    return UsageError(
        f"the task {task.__name__} cannot {purpose}", why, f"define {task.__name__}.{method}: docs/tasks.md"
    )
