"""Summaries of checkpoints from their manifests alone, and which of them stay. Imports neither jax nor TensorStore."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aifx.checkpoint.manifest import Damaged, Manifest, read_checkpoint, read_manifest, step_directories
from aifx.config.best_by import Score
from aifx.core.artifact import missing_file


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint in a line. Of a damaged one only `step` and `damaged` are known."""

    step: int
    saved_at: float | None = None  # Unix time
    validation_loss: float | None = None
    score: Score | None = None  # what ranks it
    num_parameters: int = 0  # elements under params
    num_arrays: int = 0
    size_bytes: int = 0  # of the arrays
    is_best: bool = False
    damaged: str | None = None  # the manifest cannot be read, or files are missing; arrays are not read

    @property
    def cost(self) -> float | None:
        """Less is better; None if it was not validated."""
        return None if self.score is None else self.score.cost


def list_checkpoints(directory: Path) -> list[CheckpointInfo]:
    """The checkpoints in `directory` by step."""
    infos = [read_info(folder) for folder in step_directories(directory).values()]
    best = ranked({i.step: i.cost for i in infos})[:1]
    return [replace(i, is_best=i.step in best) for i in infos]


def list_bindings(directory: Path) -> dict[int, Mapping[str, Any]]:
    """The entry on the run in the manifest of each checkpoint, by step; damaged checkpoints are left out."""
    bindings: dict[int, Mapping[str, Any]] = {}
    for step, folder in step_directories(directory).items():
        with suppress(Damaged):
            bindings[step] = read_manifest(folder).run
    return bindings


def read_info(folder: Path) -> CheckpointInfo:
    """The summary of the checkpoint in `folder`. Only the whole list shows whether it is the best."""
    step = int(folder.name)
    try:
        artifact, manifest = read_checkpoint(folder)
    except Damaged as e:
        return CheckpointInfo(step, damaged=e.why)
    damage = missing_file(folder, artifact.every_file)
    return CheckpointInfo(step, damaged=damage) if damage else checkpoint_info(manifest)


def checkpoint_info(m: Manifest) -> CheckpointInfo:
    """The summary of a checkpoint with this manifest. Only the whole list shows whether it is the best."""
    return CheckpointInfo(m.step, m.saved_at, m.validation_loss, m.score, m.num_parameters, len(m.arrays), m.size_bytes)


def kept(costs: Mapping[int, float | None], keep_last: int, keep_best: int) -> set[int]:
    """The steps that stay: the newest `keep_last`, and the `keep_best` of lowest cost.

    Args:
        costs: by step, less is better; None for a step that was not validated.
    """
    newest = sorted(costs)[-keep_last:] if keep_last > 0 else []
    return {*newest, *ranked(costs)[:keep_best]}


def ranked(costs: Mapping[int, float | None]) -> list[int]:
    """Validated steps, the best first; of equals the earlier."""
    validated = [(cost, step) for step, cost in costs.items() if cost is not None and math.isfinite(cost)]
    return [step for _, step in sorted(validated)]
