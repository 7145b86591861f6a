"""Union-find over numbered rows, many pairs at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from aifx.curation.words import I64


class Clusters:
    """Disjoint sets of the rows 0 to `rows` - 1. Each is named by the smallest number in it."""

    def __init__(self, rows: int) -> None:
        self._parents = np.arange(rows, dtype=np.int64)

    def find(self, rows: I64) -> I64:
        """The name of each row's set."""
        names = self._parents[rows]
        while True:
            above = self._parents[names]
            if np.array_equal(above, names):
                self._parents[rows] = names
                return names
            names = above

    def join(self, left: Any, right: Any) -> None:
        """Join the sets of each pair of rows."""
        while len(left):
            left, right = self.find(left), self.find(right)
            differ = left != right
            left, right = left[differ], right[differ]
            # Roots get smaller parents only, so there is no circle; of several parents for a root, the smallest stays.
            np.minimum.at(self._parents, np.maximum(left, right), np.minimum(left, right))

    def labels(self) -> I64:
        """The name of the set of every row."""
        return self.find(np.arange(len(self._parents)))
