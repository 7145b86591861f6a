"""Examples as NumPy arrays in memory: images, tables, series."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from aifx.core.errors import DataError
from aifx.data.base import Batch, Split
from aifx.data.order import Shuffle
from aifx.data.spec import DataSpec, Field

WEIGHTS = "weights"

Augment: TypeAlias = Callable[[Batch, int, range], Batch]
"""(batch, seed, the rows' places in the order of training) -> the batch, changed at random by seed and place alone."""


@dataclass(frozen=True)
class ArraySource:
    """Batches of arrays, and "weights" float32 `[rows]`, 0 on the rows that fill the last batch."""

    arrays: Mapping[str, np.ndarray]
    shuffle: Shuffle | None
    batch_size: int
    augment: Augment | None = None

    @property
    def num_examples(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def num_batches(self) -> int | None:
        return None if self.shuffle else -(-self.num_examples // self.batch_size)

    def read(self, step: int, rows: slice) -> Batch:
        """Rows `rows` of the global batch of `step`; what augmentation does to a row depends on its place alone."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        which = np.array([self.shuffle.at(place)[1] for place in places] if self.shuffle else places, np.int64)
        is_real = which < self.num_examples
        batch = {name: values[np.where(is_real, which, 0)] for name, values in self.arrays.items()}
        if self.shuffle and self.augment:
            batch = self.augment(batch, self.shuffle.seed, places)
        for values in batch.values():
            values[~is_real] = 0
        weights = batch.get(WEIGHTS, np.ones(len(places), np.float32))
        return {**batch, WEIGHTS: np.where(is_real, weights, 0).astype(np.float32)}


@dataclass(frozen=True)
class ArrayDataset:
    """A data set of arrays `[examples, ...]` by split and name.

    Attributes:
        digest: SHA-256 over the arrays, and over how they are augmented.
        augment: changes training batches at random.
        name: for errors: the file that the arrays are from.
    """

    splits: Mapping[Split, Mapping[str, np.ndarray]]
    spec: DataSpec
    digest: str
    augment: Augment | None = None
    name: str = "the data"
    hints: Mapping[Split, str] = field(default_factory=dict)

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> ArraySource:
        """Batches of `split`: shuffled by `seed` without end, or without one in order and each example once.

        Raises DataError if the split holds no examples.
        """
        arrays = self.splits.get(split, {})
        if not arrays or not len(next(iter(arrays.values()))):
            raise DataError(f"{self.name}: no examples in the {split} split", "", self.hints.get(split, ""))
        shuffle = None if seed is None else Shuffle(len(next(iter(arrays.values()))), seed)
        return ArraySource(arrays, shuffle, batch_size, self.augment)

    def counts(self, batch: Batch) -> dict[str, int]:
        return {"examples": int(np.count_nonzero(batch[WEIGHTS]))}


def array_dataset(
    splits: Mapping[Split, Mapping[str, np.ndarray]],
    *,
    classes: tuple[str, ...] = (),
    target_size: int = 1,
    axes: Mapping[str, tuple[str | None, ...]] | None = None,
    augment: Augment | None = None,
    how: object = None,
    name: str = "the data",
    hints: Mapping[Split, str] | None = None,
) -> ArrayDataset:
    """The data set of these arrays, with the spec and the digest that follow from them.

    Args:
        splits: `{"train": {"inputs": [examples, ...], "targets": [examples, ...]}, ...}`; "weights" may be among them.
        classes: names of the labels in "targets".
        target_size: numbers per example in "targets".
        axes: logical names of the dimensions of each array, without that of examples.
        how: what else decides the batches, such as settings of `augment`; part of the digest.

    Raises ValueError if the arrays of a split differ in length, or splits in shape or dtype.
    """
    fields: dict[str, Field] = {}
    digest = hashlib.sha256(repr(how).encode())
    for split, arrays in splits.items():
        lengths = {key: len(values) for key, values in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of {split} differ in length: {lengths}")
        for key, values in sorted(arrays.items()):
            found = Field(values.shape[1:], values.dtype.name, (axes or {}).get(key, (None,) * (values.ndim - 1)))
            if fields.setdefault(key, found) != found:
                raise ValueError(f"{key!r} of {split} is {found}, and elsewhere {fields[key]}")
            digest.update(f"{split} {key} {values.shape} {values.dtype.str}".encode())
            digest.update(np.ascontiguousarray(values))
    fields[WEIGHTS] = Field((), "float32")
    spec = DataSpec(fields, classes=classes, target_size=target_size)
    return ArrayDataset(splits, spec, digest.hexdigest(), augment, name, hints or {})
