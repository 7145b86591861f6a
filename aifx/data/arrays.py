"""Examples as NumPy arrays in memory: images, tables, series."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np
from pydantic import Field as Setting

from aifx.config import Config
from aifx.config.sections import Conflict, DataSection, Fraction
from aifx.core.digests import Hash64, Sha256, fraction_of
from aifx.core.errors import AifxError, ConfigError, DataError
from aifx.core.project import Project
from aifx.data.base import Batch, DataFormat, Labels, undefined
from aifx.data.order import shuffled
from aifx.data.readers.rows import FORMATS, input_file, read_rows
from aifx.data.sections import held_out_conflicts, missing_file
from aifx.data.spec import DataSpec, Field
from aifx.data.splits import Split

if TYPE_CHECKING:
    from aifx.data.file_index import ImplicitVersion

WEIGHTS = "weights"

FOLD = "fold"
"""The field with the fold of each row, int32 `[rows]`, of data for `train.folds`; -1 for one of none."""

Arrays: TypeAlias = Mapping[str, np.ndarray]
"""By name, each `[examples, ...]`."""

Places: TypeAlias = Callable[[Split, Sequence[int]], list[str]]
"""(split, numbers of examples in its order) -> where each is from: a file, or a file and a line."""

LabelsOf: TypeAlias = Callable[[Split, str | None], Labels | None]
"""`DataFormat.labels` of a data set."""

Order: TypeAlias = Callable[[range, int], np.ndarray]
"""(places in the order of training, seed) -> the example at each place, by seed and place alone."""


@dataclass(frozen=True)
class ExampleSource:
    """Batches of numbered examples. Rows that fill the last batch are 0, also their "weights".

    Attributes:
        gather: the arrays of the examples of these numbers.
        order: of training; by default each example once per epoch.
    """

    num_examples: int
    gather: Callable[[np.ndarray], Batch]
    seed: int | None
    batch_size: int
    order: Order | None = None

    @property
    def num_batches(self) -> int | None:
        return -(-self.num_examples // self.batch_size) if self.seed is None else None

    def read(self, number: int, rows: slice) -> Batch:
        places = range(number * self.batch_size, (number + 1) * self.batch_size)[rows]
        count, seed = self.num_examples, self.seed
        if seed is None:
            which = np.array(places, np.int64)
        elif self.order:
            which = self.order(places, seed)
        else:
            which = np.array([shuffled(place, count, seed)[1] for place in places], np.int64)
        is_real = which < count
        batch = self.gather(np.where(is_real, which, 0))
        for values in batch.values():
            values[~is_real] = 0
        return batch


def array_source(
    arrays: Arrays, seed: int | None, batch_size: int, order: Order | None = None, emphasis: np.ndarray | None = None
) -> ExampleSource:
    """Batches of arrays with "weights" float32 `[rows]`, which training multiplies by `emphasis`, one per example."""

    def gather(which: np.ndarray) -> Batch:
        batch = {name: values[which] for name, values in arrays.items()}
        weights = batch.get(WEIGHTS, np.ones(len(which), np.float32))
        if seed is not None and emphasis is not None:
            weights = weights * emphasis[which]
        return {**batch, WEIGHTS: weights.astype(np.float32)}

    return ExampleSource(_num_examples(arrays), gather, seed, batch_size, order)


@dataclass(frozen=True)
class ArrayDataset:
    """A data set of arrays `[examples, ...]` by split and name."""

    splits: Mapping[Split, Arrays]
    spec: DataSpec
    digest: str  # SHA-256 over the arrays, and over how training orders and weighs them
    name: str = "the data"  # for errors: the file that the arrays are from
    hints: Mapping[Split, str] = field(default_factory=dict)  # what helps if a split is empty
    order: Order | None = None  # of the training split, as in `array_source`
    emphasis: np.ndarray | None = None  # of the training split, as in `array_source`
    places: Places | None = None
    labels: LabelsOf | None = None
    file_versions: Mapping[str, ImplicitVersion] = field(default_factory=dict)  # that it was made of, by key

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> ExampleSource:
        arrays = self.splits.get(split)
        if not arrays or not _num_examples(arrays):
            there = ", ".join(name for name, values in self.splits.items() if any(map(len, values.values())))
            why = f"it has examples for {there}" if there else "it is empty"
            raise DataError(f"{self.name}: no examples in the {split} split", why, self.hints.get(split, ""))
        how = (self.order, self.emphasis) if split == "train" else ()
        return array_source(arrays, seed, batch_size, *how)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"examples": int(np.count_nonzero(batch[WEIGHTS]))}


def array_dataset(
    splits: Mapping[Split, Arrays],
    *,
    classes: tuple[str, ...] = (),
    axes: Mapping[str, tuple[str | None, ...]] | None = None,
    how: object = None,
    name: str = "the data",
    hints: Mapping[Split, str] | None = None,
) -> ArrayDataset:
    """The data set of these arrays, with the spec and the digest that follow from them. 64-bit numbers become 32-bit.

    Args:
        splits: `{"train": {"inputs": [examples, ...], "targets": [examples, ...]}, ...}`; "weights" may be among them.
        classes: names of the labels in "targets".
        axes: logical names of the dimensions of each array, without that of examples.
        how: what else decides the batches; part of the digest.

    Raises ValueError if the arrays of a split differ in length, or splits in names, shape or dtype, or for an array
    that does not hold 32-bit numbers.
    """
    fields: dict[str, Field] = {}
    digest = Sha256(repr(how).encode())
    splits = {split: {key: _narrow(key, values) for key, values in arrays.items()} for split, arrays in splits.items()}
    for split, arrays in splits.items():
        _num_examples(arrays)  # raises if they differ
        if fields and set(arrays) != set(fields):
            raise ValueError(f"{split} has the arrays {sorted(arrays)}, and other splits {sorted(fields)}")
        for key, values in sorted(arrays.items()):
            found = Field(values.shape[1:], values.dtype.name, (axes or {}).get(key, (None,) * (values.ndim - 1)))
            if fields.setdefault(key, found) != found:
                raise ValueError(f"{key!r} of {split} is {found}, and elsewhere {fields[key]}")
            digest.update(f"{split} {key} {values.shape} {values.dtype.str}".encode())
            digest.update(np.ascontiguousarray(values))
    fields[WEIGHTS] = Field((), "float32")
    targets = fields.get("targets", Field((), "float32")).shape
    spec = DataSpec(fields, classes=classes, target_size=int(np.prod(targets, dtype=int)))
    return ArrayDataset(splits, spec, digest.hexdigest(), name, hints or {})


def held_out_hints(what: str) -> dict[Split, str]:
    """The hints of a data set whose held-out splits are shares of the data, to which one may add `what`."""
    held_out: tuple[Split, ...] = ("validation", "test")
    return {split: f"raise data.{split}_fraction, or add {what}" for split in held_out}


class ArraysSection(DataSection):
    """A file of examples that fit in memory."""

    path: str = Setting(description="File of the examples, relative to the project.")
    split: Literal["example", "block"] = Setting(
        "example", description="example: by the hash of each example. block: contiguous parts, the test last."
    )
    validation_fraction: Fraction = Setting(0.1, description="Share held out for validation.")
    test_fraction: Fraction = Setting(0.1, description="Share held out for the test.")

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from held_out_conflicts(config.train, self.validation_fraction, self.test_fraction)

    def check_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        yield from missing_file(project, "data.path", self.path)


@dataclass(frozen=True)
class ArrayFormat(DataFormat):
    """Examples that fit in memory, from one file. Derive from it, define `read`, and `encode` for predictions."""

    section: Any
    spec: DataSpec

    @classmethod
    def read(cls, section: Any, path: Path) -> Arrays:
        """All examples of the file at `path`: "inputs", "targets" and, if they do not all count alike, "weights"."""
        raise undefined(cls, "read", "read data")

    @classmethod
    def describe(cls, section: Any, project: Project) -> DataSpec:
        why = f"{cls.__name__} infers it from the data: it does not define describe"
        raise ConfigError("the DataSpec is not known without the data", why, "docs/tasks.md")

    @classmethod
    def open(cls, section: Any, project: Project, assets: Path) -> tuple[Self, ArrayDataset]:
        """The examples of `data.path`, divided by `data.split`."""
        arrays = cls.read(section, project.root / section.path)
        with _usable(cls):
            splits = split_arrays(arrays, section.validation_fraction, section.test_fraction, by=section.split)
            data = array_dataset(splits, name=section.path, hints=held_out_hints("examples"))
        return cls(section, data.spec), data

    @classmethod
    def load(cls, section: Any, spec: DataSpec, assets: Path) -> Self:
        return cls(section, spec)

    def places(self, dataset: ArrayDataset, split: Split, rows: Sequence[int]) -> list[str]:
        return dataset.places(split, rows) if dataset.places else []

    def labels(self, dataset: ArrayDataset, split: Split, column: str | None) -> Labels | None:
        return super().labels(dataset, split, column) if dataset.labels is None else dataset.labels(split, column)

    def split_digest(self, dataset: ArrayDataset, split: Split) -> str:
        """Of the targets in their unit, and where the examples are from if that is known."""
        arrays, spec = dataset.splits[split], dataset.spec
        targets = np.asarray(arrays.get("targets", ()))
        if targets.dtype.kind == "f" and not spec.classes:  # scaled by the training split, which may be another
            targets = (targets * spec.target_scale + spec.target_mean).astype(np.float32).round(4)
        places = dataset.places(split, range(len(targets))) if dataset.places else []
        return Sha256(repr((places, targets.shape)).encode() + targets.tobytes()).hexdigest()

    def open_file(self, path: Path) -> ArrayDataset:
        arrays = self.read(self.section, path)
        with _usable(type(self)):
            return array_dataset({"test": arrays}, name=str(path))


def read_examples(path: Path, example: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> Arrays:
    """The arrays of a .csv, .jsonl or .parquet file. `example` makes those of a row of its fields, text in a .csv.

    Raises DataError naming the file and the line of a row that `example` refuses.
    """
    examples = []
    file = input_file(str(path))
    if file.format not in FORMATS:
        why = f"examples are rows of {', '.join(f'.{name}' for name in FORMATS)}"
        raise DataError(f"{path} cannot be read", why, "name a file of one of these formats")
    for row in read_rows(file):
        try:
            examples.append({name: np.asarray(value) for name, value in example(row.values).items()})
        except (ValueError, TypeError, KeyError) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            why = f"no field {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            why += f" ({Path(frame.filename).name}:{frame.lineno})"
            raise DataError(f"{row.place}: the row cannot be used", why, "correct the row or the code") from error
    if not examples:
        raise DataError(f"{path}: no rows", "it has no examples", f"ls -l {path}")
    return {name: np.stack([arrays[name] for arrays in examples]) for name in examples[0]}


def split_arrays(
    arrays: Arrays, validation: float, test: float, *, by: Literal["example", "block"] = "example"
) -> dict[Split, Arrays]:
    """The examples of each split; `validation` and `test` are the shares that are held out.

    By "example", a hash decides, so that equal examples are in one split. By "block", the order does, the test last.
    """
    count = _num_examples(arrays)
    if by == "block":
        places = (np.arange(count) + 0.5) / count
    else:
        places = np.array([hash_fraction(*(arrays[name][i] for name in sorted(arrays))) for i in range(count)])
    return {split: take(arrays, which) for split, which in split_places(places, validation, test).items()}


def split_places(places: np.ndarray, validation: float, test: float) -> dict[Split, np.ndarray]:
    """Which examples are in each split, bool `[examples]`, by places in [0, 1) that a hash or an order gives them."""
    is_test, is_train = places >= 1.0 - test, places < 1.0 - test - validation
    return {"train": is_train, "validation": ~is_train & ~is_test, "test": is_test}


def take(arrays: Arrays, which: np.ndarray) -> dict[str, np.ndarray]:
    """The examples at these places, or where this is true."""
    return {name: values[which] for name, values in arrays.items()}


def target_units(spec: DataSpec, examples: int) -> dict[str, np.ndarray]:
    """The "location" and the "scale" of targets that are numbers, float32 `[examples]`; nothing for classes.

    The objective `quantile` reads them: its metrics and predictions are in the unit of the data.
    """
    if spec.classes:
        return {}
    units = {"location": spec.target_mean, "scale": spec.target_scale}
    return {name: np.full(examples, value, np.float32) for name, value in units.items()}


@contextmanager
def _usable(cls: type) -> Iterator[None]:
    """Turn errors about the arrays of `cls.read` into ConfigErrors."""
    try:
        yield
    except (ValueError, TypeError, AttributeError) as error:
        what = f"{cls.__name__}.read returned arrays that cannot be used"
        raise ConfigError(what, str(error), "docs/tasks.md") from error


def _narrow(name: str, values: np.ndarray) -> np.ndarray:
    """The numbers in at most 32 bits, as JAX takes them. Raises ValueError if that changes whole numbers."""
    if values.dtype.kind in "cOSUMm":
        raise ValueError(f"{name!r} is {values.dtype}; batches hold real numbers")
    narrow = {"f8": np.float32, "i8": np.int32, "u8": np.uint32}.get(values.dtype.str[1:], values.dtype)
    narrowed = values.astype(narrow, copy=False)
    if narrowed is not values and values.dtype.kind in "iu" and not np.array_equal(narrowed, values):
        raise ValueError(f"{name!r} holds {np.abs(values).max()}; batches hold 32-bit numbers")
    return narrowed


def _num_examples(arrays: Arrays) -> int:
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"arrays differ in length: {lengths}" if lengths else "there are no arrays")
    return next(iter(lengths.values()))


def hash_fraction(*example: np.ndarray) -> float:
    """A number in [0, 1) that depends on the bytes of an example alone."""
    digest = Hash64()
    for values in example:
        digest.update(np.ascontiguousarray(values))
    return fraction_of(digest.digest())
