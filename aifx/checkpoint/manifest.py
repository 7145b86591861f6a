"""The manifest of a checkpoint: the content of its artefact (`aifx.core.artifact`), beside the files of its arrays.

Also summaries of checkpoints from their manifests alone, and which of them stay. Imports neither jax nor TensorStore.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from aifx.config.best_by import Score
from aifx.core.artifact import MANIFEST, Artifact, DamagedArtifact, Files, missing_file, read_artifact
from aifx.core.digests import Sha256
from aifx.core.errors import CheckpointError
from aifx.core.files import check_folder
from aifx.core.json_values import plain

KIND = "checkpoint"
VERSION = 5

STATE = "state"
"""The folder of the checkpoint that holds the arrays."""

TEMPORARY_SUFFIX = ".unfinished"
DAMAGED_SUFFIX = ".damaged"


class Damaged(CheckpointError):
    """A checkpoint is not what was saved: a file is missing, torn or altered."""


@dataclass(frozen=True)
class ArrayEntry:
    """One array of a checkpoint."""

    dtype: str
    shape: tuple[int, ...]
    digest: str  # additive (aifx.checkpoint.digest), 16 hexadecimal digits

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """The bytes of its elements, each as wide as the number in the dtype's name says, and at least a byte."""
        bits = re.search(r"\d+", self.dtype)
        return self.size * max(int(bits[0]) // 8 if bits else 1, 1)


@dataclass(frozen=True)
class Manifest:
    """The description of a checkpoint: the content of its artefact."""

    step: int
    saved_at: float  # Unix time
    validation_loss: float | None
    arrays: Mapping[str, ArrayEntry]  # by name
    host: Mapping[str, Any]  # JSON of the training loop: early stopping, tokens seen
    score: Score | None  # what ranks it; None if it was not validated
    run: Mapping[str, Any]  # id of the run, and digests of what its numbers depend on (aifx.runs.binding)

    @property
    def size_bytes(self) -> int:
        """The bytes of the arrays."""
        return sum(entry.num_bytes for entry in self.arrays.values())

    @property
    def num_parameters(self) -> int:
        """Elements of the arrays under `params`."""
        return sum(entry.size for name, entry in self.arrays.items() if name.split("/")[0] == "params")

    @property
    def state_digest(self) -> str:
        """The digest of the state that was saved."""
        return digest_of((name, entry.dtype, entry.shape, entry.digest) for name, entry in self.arrays.items())

    def artifact(self, files: Files) -> Artifact:
        """The checkpoint with these files."""
        return Artifact(KIND, VERSION, plain(self), files)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint at `directory`, a folder named after its step. Raises as `read_checkpoint`."""
    return read_checkpoint(directory)[1]


def read_checkpoint(directory: Path) -> tuple[Artifact, Manifest]:
    """The checkpoint at `directory`, a folder named after its step, of which only the manifest is read.

    A folder that was renamed, or copied over another, is damaged: training would resume from a wrong state.

    Raises Damaged if it is not as written, AifxError if another aifx wrote it, OSError if the machine refuses to read
    it.
    """
    with as_damaged(str(directory)):
        try:
            artifact = read_artifact(directory, KIND, VERSION)
            return artifact, manifest_of(artifact, str(directory))
        except FileNotFoundError as e:
            raise DamagedArtifact(directory, f"{MANIFEST} is missing") from e


@contextmanager
def as_damaged(place: str, hint: str = "") -> Iterator[None]:
    """Raise Damaged instead of DamagedArtifact."""
    try:
        yield
    except DamagedArtifact as e:
        raise Damaged(f"checkpoint {place} is damaged", e.why, hint) from e


def manifest_of(artifact: Artifact, place: str) -> Manifest:
    """The manifest of the checkpoint at `place`, a path or URL that ends in its step. Raises DamagedArtifact."""
    try:
        doc = artifact.content
        if str(doc["step"]) != PurePosixPath(place).name:
            raise ValueError(f"it was saved as the checkpoint of step {doc['step']}")
        arrays = {n: ArrayEntry(a["dtype"], tuple(a["shape"]), a["digest"]) for n, a in doc["arrays"].items()}
        score = None if doc["score"] is None else Score(**doc["score"])
        run = dict(doc["run"])
        return Manifest(doc["step"], doc["saved_at"], doc["validation_loss"], arrays, doc["host"], score, run)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DamagedArtifact(place, f"{MANIFEST}: {e}") from e


def step_directories(directory: Path) -> dict[int, Path]:
    """Committed checkpoints in `directory` by step, in order. Raises UnsafeFile if `directory` is a link."""
    check_folder(directory)
    if not directory.is_dir():
        return {}
    steps = [p for p in directory.iterdir() if p.name.isascii() and p.name.isdigit() and p.is_dir()]
    found = {int(p.name): p for p in steps if p.name == str(int(p.name))}
    return dict(sorted(found.items()))


def digest_of(arrays: Iterable[tuple[str, str, Sequence[int], str]]) -> str:
    """The digest of a state from the name, dtype, shape and digest of each of its arrays, in any order."""
    digest = Sha256()
    for name, dtype, shape, lanes in sorted(arrays, key=lambda array: array[0].encode()):
        digest.update(f"{name}\0{dtype}\0{','.join(str(n) for n in shape)}\0{lanes}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class CheckpointName:
    """A checkpoint by its run and its step."""

    run: str
    step: int

    def __str__(self) -> str:
        return f"{self.run}:{self.step}"


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
