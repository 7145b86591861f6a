"""Summaries of checkpoints from their manifests alone. Imports neither jax nor Orbax."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.checkpoint.inventory import missing_files
from aifx.checkpoint.manifest import Damaged, Manifest, read_manifest, step_directories
from aifx.checkpoint.retention import ranked
from aifx.config.best_by import Score


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
    manifests = {step: read_info(folder) for step, folder in step_directories(directory).items()}
    best = ranked({i.step: i.cost for i in manifests.values()})[:1]
    return [i if i.step not in best else CheckpointInfo(**{**vars(i), "is_best": True}) for i in manifests.values()]


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
        info = checkpoint_info(step, read_manifest(folder))
    except Damaged as e:
        return CheckpointInfo(step, damaged=e.why)
    damage = missing_files(folder)
    return CheckpointInfo(step, damaged=damage) if damage else info


def checkpoint_info(step: int, manifest: Manifest) -> CheckpointInfo:
    """The summary of a checkpoint with this manifest. Only the whole list shows whether it is the best."""
    m = manifest
    return CheckpointInfo(step, m.saved_at, m.validation_loss, m.score, m.num_parameters, len(m.arrays), m.size_bytes)
