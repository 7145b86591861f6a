"""The names that a project's own tasks, models, objectives, data, readers and hooks are made of: docs/tasks.md.

A name comes from its module when it is first used: a file that only defines settings imports no JAX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifx.config.sections import (
        RESUME_SAFE,
        DataSection,
        Fraction,
        ModelSection,
        ObjectiveSection,
        PositiveFloat,
        PositiveInt,
    )
    from aifx.core.errors import ConfigError, DataError
    from aifx.core.project import Project
    from aifx.data.arrays import ArrayDataset, ArrayFormat, ArraysSection, array_dataset, read_examples, split_arrays
    from aifx.data.base import Batch, BatchSource, DataFormat, Dataset
    from aifx.data.kinds import DataKind
    from aifx.data.readers.base import BadRow
    from aifx.data.readers.own import FileReader
    from aifx.data.readers.rows import Row, input_file, read_rows
    from aifx.data.spec import DataSpec, Field, need_spec
    from aifx.data.splits import Split
    from aifx.models import Family
    from aifx.models.base import Decodes, Head, Model
    from aifx.nn.initializers import normal, ones, zeros
    from aifx.nn.layers import dropout, linear
    from aifx.objectives import ObjectiveKind
    from aifx.objectives.base import DeviceBatch, Objective, Predictions, Rows, Sums, Totals, WorstError, outputs
    from aifx.objectives.regression import Regression
    from aifx.parallel.context import ForwardContext
    from aifx.specs import ArraySpec, Params, Specs
    from aifx.tasks import Task
    from aifx.training.hook import Hook, Stop, TakeStep
    from aifx.training.records import Record, RunInfo, TrainResult

_NAMES = {
    "aifx.config.sections": "RESUME_SAFE DataSection Fraction ModelSection ObjectiveSection PositiveFloat PositiveInt",
    "aifx.core.errors": "ConfigError DataError",
    "aifx.core.project": "Project",
    "aifx.data.arrays": "ArrayDataset ArrayFormat ArraysSection array_dataset read_examples split_arrays",
    "aifx.data.base": "Batch BatchSource DataFormat Dataset",
    "aifx.data.kinds": "DataKind",
    "aifx.data.readers.base": "BadRow",
    "aifx.data.readers.own": "FileReader",
    "aifx.data.readers.rows": "Row input_file read_rows",
    "aifx.data.spec": "DataSpec Field need_spec",
    "aifx.data.splits": "Split",
    "aifx.models": "Family",
    "aifx.models.base": "Decodes Head Model",
    "aifx.nn.initializers": "normal ones zeros",
    "aifx.nn.layers": "dropout linear",
    "aifx.objectives": "ObjectiveKind",
    "aifx.objectives.base": "DeviceBatch Objective Predictions Rows Sums Totals WorstError outputs",
    "aifx.objectives.regression": "Regression",
    "aifx.parallel.context": "ForwardContext",
    "aifx.specs": "ArraySpec Params Specs",
    "aifx.tasks": "Task",
    "aifx.training.hook": "Hook Stop TakeStep",
    "aifx.training.records": "Record RunInfo TrainResult",
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
