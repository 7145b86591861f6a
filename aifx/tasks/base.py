"""The task of a project: a model, an objective and data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from aifx.config import Config
from aifx.config.config import number_settings
from aifx.config.sections import DataSection, ModelSection, ObjectiveSection
from aifx.core.digests import sha256_of_values
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.data.base import BatchSource, DataFormat, Dataset, undefined
from aifx.data.spec import DataSpec
from aifx.data.splits import Split
from aifx.models.base import Model
from aifx.objectives.base import Objective


@dataclass(frozen=True)
class Task:
    """A model, an objective and data.

    A task of a project's own, `task.kind = "module:Class"`, derives from this class and defines `open`.
    """

    model_section: ClassVar[type[ModelSection]] = ModelSection
    objective_section: ClassVar[type[ObjectiveSection]] = ObjectiveSection
    data_section: ClassVar[type[DataSection]] = DataSection
    metric_names: ClassVar[tuple[str, ...]] = ()  # what the objective reports, if that is known before any data

    model: Model
    objective: Objective
    data: DataSpec
    format: DataFormat | None = None  # reads rows to predict; None if the task makes no predictions
    dataset: Dataset | None = None  # None for the task of a trained run

    @classmethod
    def open(cls, config: Config, project: Project, assets: Path) -> Self:
        """The task of a project with its data; `assets` as in `DataFormat.open`. Raises ConfigError, DataError."""
        raise undefined(cls, "open", "be opened")

    @classmethod
    def load(cls, config: Config, project: Project, assets: Path) -> Self:
        """The task of a trained run without its training data. A class that does not define it needs that data."""
        return cls.open(config, project, assets)

    @classmethod
    def describe(cls, config: Config, project: Project) -> Self:
        """The task without any data, from the configuration alone: what `aifx plan` needs."""
        what = f"{cls.__name__} is known only with its data"
        raise ConfigError(what, "it does not define describe", "docs/tasks.md has an example")


def dataset_of(task: Task) -> Dataset:
    assert task.dataset is not None, "the task was loaded without data"
    return task.dataset


def training_source(task: Task, config: Config) -> BatchSource:
    """Shuffled batches of `train.global_batch_size` rows, without end, changed as `[augment]` says.

    Raises ConfigError if the run is longer than the data lets it be.
    """
    source = dataset_of(task).source("train", config.train.global_batch_size, seed=config.train.seed)
    needed, most = config.train.num_steps * config.train.global_batch_size, getattr(source, "most_rows", None)
    if most is not None and needed > most:
        what = f"the data set has too few rows for train.num_steps = {config.train.num_steps}"
        why = f"the epochs of its mix allow {most:,} rows, and the run takes {needed:,}"
        steps = most // config.train.global_batch_size
        raise ConfigError(what, why, f"aifx train --set train.num_steps={steps}, or aifx data mix with more --epochs")
    from aifx.data.augment import augmented  # with Pillow, for pictures alone

    return augmented(source, config.augment, task.data, config.train.seed)


def evaluation_source(task: Task, config: Config, split: Split) -> BatchSource:
    """Batches of `eval.batch_size` rows, each example of the split once."""
    rows = config.eval.batch_size or config.train.global_batch_size
    return dataset_of(task).source(split, rows, seed=None)


def data_digest(task: Task, config: Config) -> str:
    """SHA-256 over the data and everything that decides how it becomes batches."""
    return sha256_of_values(dataset_of(task).digest, *data_settings(config))


def data_settings(config: Config) -> tuple[object, ...]:
    """The settings that decide how data becomes batches."""
    settings = {key: value for key, value in number_settings(config).items() if key.startswith(("data.", "augment."))}
    if settings.get("data.dataset") is None:  # runs that began before there was this key have digests without it
        settings.pop("data.dataset", None)
    return settings, config.train.global_batch_size, config.eval.batch_size, config.train.seed


def sharded_axes(task: Task) -> tuple[str, ...]:
    """The logical axes that a task's model and objective can both divide."""
    of_model, of_objective = task.model.divides, task.objective.divides
    inner = ("heads", "kv_heads", "mlp")  # no objective sees them, but tokens are divided between them
    able = (axis for axis in of_model if axis in of_objective or (axis in inner and "tokens" in of_objective))
    return tuple(able)
