"""Sine waves: eight readings, and the one that follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from aifx.extend import (
    ArrayDataset,
    ArrayFormat,
    Batch,
    DataSpec,
    Field,
    Project,
    Split,
    array_dataset,
    split_arrays,
)

READINGS = 8


class Waves(ArrayFormat):
    @classmethod
    def describe(cls, section: Any, project: Project) -> DataSpec:
        numbers = {"targets": Field((), "float32"), "weights": Field((), "float32")}
        return DataSpec({"inputs": Field((READINGS,), "float32", ("seq",)), **numbers})

    @classmethod
    def open(cls, section: Any, project: Project, assets: Path) -> tuple[Self, ArrayDataset]:
        rng = np.random.default_rng(0)
        phases = rng.uniform(0, 2 * np.pi, section.examples)[:, None] + np.arange(READINGS + 1) / 2
        waves = (np.sin(phases) + section.noise * rng.standard_normal(phases.shape)).astype(np.float32)
        splits = split_arrays({"inputs": waves[:, :-1], "targets": waves[:, -1]}, 0.2, 0.2)
        data = array_dataset(splits, axes={"inputs": ("seq",)})
        return cls(section, data.spec), data

    def encode(self, row: Mapping[str, Any]) -> Batch:
        return {"inputs": np.array([row["readings"]], np.float32)}

    def baselines(self, dataset: Any, split: Split) -> Iterator[tuple[str, np.ndarray]]:
        yield "last reading", dataset.splits[split]["inputs"][:, -1:]
