"""Fault injection into the data of a run, at the source that every training reads.

The copy of a project that a drill trains names `drilled:DATA` as its kind of data, or `drilled:TASK` as its task: the
project's own, whose batches `disturb` changes by the file that VARIABLE names. Imports no jax.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aifx.checkpoint.manifest import step_directories
from aifx.config.parts import PARTS, import_object, resolve
from aifx.core.errors import DataError
from aifx.core.json_files import write_json
from aifx.core.project import Project
from aifx.data.base import Batch, BatchSource
from aifx.data.kinds import DataKind
from aifx.data.splits import Split
from aifx.kinds import find_kind

VARIABLE = "DRILL_FAULT"
MODULE = "drilled"
DATA = f"{MODULE}:DATA"
TASK = f"{MODULE}:TASK"

LOOK_S = 0.002

Action = Literal["none", "pause", "raise", "nan", "noise", "drop"]


@dataclass(frozen=True)
class DataFault:
    """The fault that is injected into the batches of a run.

    Attributes:
        action: pause: the reader stops until `released`, and raise: it raises, once; nan: the batch's numbers are NaN;
            noise: they are random; drop: the batch is not there, and the next one has its number.
        at: the batch of training, from 0; of validation, how many validations have begun before.
        checkpoints: a folder. `pause` and `raise` come at the first such batch that is read once the folder holds a
            complete checkpoint. Without it they come at once.
        pace_s: a batch of training takes at least so long to read, so that a run lasts long enough to be disturbed.
    """

    action: Action = "none"
    split: Split = "train"
    at: int = -1
    checkpoints: str | None = None
    pace_s: float = 0.0

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def reached(path: Path) -> Path:
    """The file that exists once the fault described at `path` has happened."""
    return path.with_suffix(".reached")


def released(path: Path) -> Path:
    """The file that ends the pause described at `path`."""
    return path.with_suffix(".released")


def module_text(data: str | None, task: str | None) -> str:
    """The module MODULE of a project whose kind of data is `data`, or whose task is the class `task`."""
    name, function, made = ("TASK", "disturbed_task", task) if task else ("DATA", "disturbed_data", data)
    return f"from aifx.drills.injection import {function}\n\n{name} = {function}({made!r}, __file__)\n"


def disturbed_data(name: str, file: str) -> DataKind:
    """The kind of data `name` of the project that `file` lies in, with disturbed sources."""
    (part,) = (part for part in PARTS if part.section == "data")
    project = Project(Path(file).parent)
    kind = find_kind(part, name, project)
    own = isinstance(kind.make, str) and ":" in name
    make: Any = import_object("data.kind: make", str(kind.make), project) if own else resolve(kind.make)

    class Disturbed(make):  # type: ignore[misc]
        @classmethod
        def open(cls, *args: Any) -> Any:
            form, dataset = super().open(*args)
            disturb(dataset)
            return form, dataset

    return DataKind(kind.name, kind.section, Disturbed)


def disturbed_task(name: str, file: str) -> type[Any]:
    """The task `name` ("module:Class") of the project that `file` lies in, with disturbed sources."""
    cls: Any = import_object("task.kind", name, Project(Path(file).parent))

    class Disturbed(cls):  # type: ignore[misc]
        @classmethod
        def open(cls, *args: Any) -> Any:
            task = super().open(*args)
            disturb(task.dataset)
            return task

    return Disturbed


def disturb(dataset: Any) -> None:
    """Disturb the sources of a data set by the file that VARIABLE names. Without one, nothing changes."""
    if not (path := os.environ.get(VARIABLE)):
        return
    fault = DataFault(**json.loads(Path(path).read_text()))
    source = dataset.source

    def disturbed(split: Split, batch_size: int, *, seed: int | None) -> BatchSource:
        return _Disturbed(source(split, batch_size, seed=seed), split, fault, Path(path))

    object.__setattr__(dataset, "source", disturbed)  # the data set keeps its type; many are frozen


_validations = 0


class _Disturbed:
    def __init__(self, source: BatchSource, split: Split, fault: DataFault, path: Path) -> None:
        self._source, self._split, self._path = source, split, path
        self._fault = fault if fault.split == split else replace(fault, action="none")
        self._lock, self._read_at = threading.Lock(), 0.0

    @property
    def batch_size(self) -> int:
        return self._source.batch_size

    @property
    def num_batches(self) -> int | None:
        return self._source.num_batches

    def read(self, number: int, rows: slice) -> Batch:
        if self._fault.action == "drop":
            return self._source.read(number + (number >= self._fault.at), rows)
        batch = self._source.read(number, rows)
        if self._split == "train":
            self._keep_pace()
        if self._fault.action in ("none", "nan", "noise"):
            changed = _changed(batch, self._fault.action, number) if number == self._fault.at else batch
            if any(changed[name] is not array for name, array in batch.items()):
                reached(self._path).touch()
            return changed
        if self._is_due(number) and _first_time(reached(self._path)):
            if self._fault.action == "raise":
                raise DataError(f"batch {number} cannot be read", "a drill has the reader of the data fail here")
            while not released(self._path).exists():
                time.sleep(LOOK_S)
        return batch

    def _is_due(self, step: int) -> bool:
        global _validations
        _validations += self._split != "train" and step == 0
        is_at = step >= self._fault.at if self._split == "train" else _validations > self._fault.at
        folder = self._fault.checkpoints
        return is_at and (folder is None or bool(step_directories(Path(folder))))

    def _keep_pace(self) -> None:
        with self._lock:
            wait_s = self._read_at + self._fault.pace_s - time.monotonic()
            self._read_at = time.monotonic() + max(wait_s, 0.0)
        time.sleep(max(wait_s, 0.0))


def _first_time(path: Path) -> bool:
    """Make the file `path`; False if it exists: another process, or an earlier one, was first."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _changed(batch: Mapping[str, np.ndarray], action: Action, step: int) -> Batch:
    """The batch with NaN in its numbers, or with random numbers: whole ones as it holds, and others that are large."""
    changed = dict(batch)
    for index, (name, array) in enumerate(batch.items()):
        if action == "nan" and np.issubdtype(array.dtype, np.floating) and name != "weights":
            changed[name] = np.full_like(array, np.nan)
        elif action == "noise" and np.issubdtype(array.dtype, np.integer):
            draw = np.random.default_rng(step).integers(int(array.min()), int(array.max()) + 1, array.shape)
            changed[name] = draw.astype(array.dtype)
        elif action == "noise" and np.issubdtype(array.dtype, np.floating) and name != "weights":
            draw = np.random.default_rng([step, index]).standard_normal(array.shape)
            changed[name] = (100.0 * draw).astype(array.dtype)
    return changed
