"""Simple predictors that data offers, measured by the objective as a model is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.typing import DTypeLike

from aifx.data.base import Batch, BatchSource, Dataset
from aifx.data.spec import DataSpec, Field
from aifx.data.splits import Split
from aifx.models.base import Head, Model
from aifx.parallel.context import ForwardContext
from aifx.programs.build import Programs
from aifx.specs import ArraySpec, Params, Specs
from aifx.tasks.base import dataset_of

OUTPUTS = "baseline_outputs"
"""The field of a batch with what a baseline predicts: `[rows, outputs]`."""


@dataclass(frozen=True)
class GivenOutputs(Model):
    """A model that reads its outputs from the batch."""

    num_outputs: int

    def specs(self) -> Specs:
        shape = (self.num_outputs, self.num_outputs)
        return {"output": ArraySpec(shape, (None, None), identity)}

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        return batch[OUTPUTS]

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        return Head(params["output"])

    def flops(self, rows: int) -> int:
        return 0


@dataclass(frozen=True)
class WithOutputs:
    """A split of a data set, and what a baseline predicts for each of its examples, `[examples, outputs]`."""

    dataset: Dataset
    outputs: np.ndarray
    spec: DataSpec

    @property
    def digest(self) -> str:
        return self.dataset.digest

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> OutputsSource:
        return OutputsSource(self.dataset.source(split, batch_size, seed=seed), self.outputs)

    def counts(self, batch: Batch) -> dict[str, int]:
        return self.dataset.counts(batch)


@dataclass(frozen=True)
class OutputsSource:
    """The batches of a source without a seed, with the outputs of their examples."""

    source: BatchSource
    outputs: np.ndarray

    @property
    def batch_size(self) -> int:
        return self.source.batch_size

    @property
    def num_batches(self) -> int | None:
        return self.source.num_batches

    def read(self, step: int, rows: slice) -> Batch:
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        is_real = places < len(self.outputs)
        outputs = self.outputs[np.where(is_real, places, 0)] * is_real[:, None]
        return {**self.source.read(step, rows), OUTPUTS: outputs}


def identity(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    return jax.numpy.eye(shape[0], dtype=dtype)


def baseline_programs(programs: Programs, split: Split) -> Iterator[tuple[str, Programs, Params]]:
    """The baselines that the data offers for a split: a name, and programs and parameters to evaluate as a model's.

    Thresholds of classes are those of the model's probabilities, so baselines go without.
    """
    form = programs.task.format
    task = replace(programs.task, objective=programs.objective.with_thresholds({}))
    for name, values in () if form is None else form.baselines(dataset_of(task), split):
        outputs = np.asarray(values, np.float32)
        num_outputs = outputs.shape[1]
        spec = replace(task.data, fields={**task.data.fields, OUTPUTS: Field((num_outputs,), "float32")})
        dataset = WithOutputs(dataset_of(task), outputs, spec)
        given = replace(task, model=GivenOutputs(num_outputs), data=spec, dataset=dataset)
        weights = {"output": np.eye(num_outputs, dtype=np.float32)}
        yield name, replace(programs, task=given, casts=False), weights
