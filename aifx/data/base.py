"""What a task reads: batches that are a function of (seed, step, rows)."""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import numpy as np

Split: TypeAlias = Literal["train", "validation", "test"]
Batch: TypeAlias = dict[str, np.ndarray]  # each array [rows, ...]


class BatchSource(Protocol):
    """One split of a project's data.

    For "train", `num_batches` is None and any step may be read. For the others the batches 0..num_batches-1 hold each
    example once; the last is filled with rows whose `weights` are 0.
    """

    @property
    def batch_size(self) -> int:
        """Rows of a global batch."""
        ...

    @property
    def num_batches(self) -> int | None: ...

    def read(self, step: int, rows: slice) -> Batch:
        """Rows `rows` of the global batch of `step` (steps count from 0). The same bytes whenever it is asked."""
        ...
