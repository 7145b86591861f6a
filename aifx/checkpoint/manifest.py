"""`manifest/manifest.json` of a checkpoint: what it holds, the digest of every array, and what the host kept.

Reading it needs neither jax nor Orbax, so that listing checkpoints is quick.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aifx.config.best_by import Score
from aifx.core.errors import CheckpointError
from aifx.core.files import UnsafeFile, check_folder, read_file
from aifx.core.json_values import plain
from aifx.core.os_errors import UNREADABLE
from aifx.core.parsing import parse_json

FORMAT = 2
ITEM = "manifest"
FILE = "manifest.json"
TEMPORARY_SUFFIX = ".orbax-checkpoint-tmp"
DAMAGED_SUFFIX = ".damaged"


class Damaged(CheckpointError):
    """A checkpoint is not what was saved: a file is missing, torn or altered."""


@dataclass(frozen=True)
class ArrayEntry:
    """One array of a checkpoint."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Manifest:
    """The description of a checkpoint."""

    step: int
    saved_at: float  # Unix time
    validation_loss: float | None
    size_bytes: int  # of the arrays
    arrays: Mapping[str, ArrayEntry]  # by name
    host: Mapping[str, Any]  # JSON of the training loop: early stopping, tokens seen
    score: Score | None  # what ranks it; None if it was not validated
    run: Mapping[str, Any]  # id of the run, and digests of its files that its numbers depend on (aifx.runs.binding)

    @property
    def num_parameters(self) -> int:
        """Elements of the arrays under `params`."""
        return sum(entry.size for name, entry in self.arrays.items() if name.split("/")[0] == "params")

    def to_json(self) -> dict[str, Any]:
        body = plain(
            {
                "format": FORMAT,
                "step": self.step,
                "saved_at": self.saved_at,
                "validation_loss": self.validation_loss,
                "size_bytes": self.size_bytes,
                "arrays": {n: {"dtype": a.dtype, "shape": a.shape, "sha256": a.sha256} for n, a in self.arrays.items()},
                "host": self.host,
                "score": None if self.score is None else asdict(self.score),
                "run": self.run,
            }
        )
        return {**body, "checksum": _checksum(body)}


def manifest_path(directory: Path) -> Path:
    return directory / ITEM / FILE


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint at `directory`, a folder named after its step.

    A folder that was renamed, or copied over another, is damaged: training would resume from a wrong state.

    Raises Damaged if it is not as written, OSError if the machine refuses to read it.
    """
    path = manifest_path(directory)
    try:
        doc = parse_json(read_file(path, below=directory))
        checksum = doc.pop("checksum")
        # The checksum comes first, whatever the format: a flipped bit must not pass for a newer one.
        if checksum != _checksum(doc):
            raise ValueError("its checksum does not match its content")
        if doc["format"] != FORMAT:
            raise CheckpointError(
                f"checkpoint {directory} has format {doc['format']}", f"this aifx reads format {FORMAT}"
            )
        if str(doc["step"]) != directory.name:
            raise ValueError(f"it was saved as the checkpoint of step {doc['step']}")
        arrays = {n: ArrayEntry(a["dtype"], tuple(a["shape"]), a["sha256"]) for n, a in doc["arrays"].items()}
        loss = doc["validation_loss"]
        score = None if doc["score"] is None else Score(**doc["score"])
        size = doc["size_bytes"]
        return Manifest(doc["step"], doc["saved_at"], loss, size, arrays, doc["host"], score, dict(doc["run"]))
    except (OSError, UnsafeFile, ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, OSError) and e.errno in UNREADABLE:
            raise
        why = (
            f"{FILE} is missing"
            if isinstance(e, FileNotFoundError | NotADirectoryError)
            else f"{FILE}: {e.what if isinstance(e, UnsafeFile) else e or type(e).__name__}"
        )
        raise Damaged(f"checkpoint {directory} is damaged", why) from e


def step_directories(directory: Path) -> dict[int, Path]:
    """Committed checkpoints in `directory` by step, in order. Raises UnsafeFile if `directory` is a link."""
    check_folder(directory)
    if not directory.is_dir():
        return {}
    steps = [p for p in directory.iterdir() if p.name.isascii() and p.name.isdigit() and p.is_dir()]
    found = {int(p.name): p for p in steps if p.name == str(int(p.name))}
    return dict(sorted(found.items()))


def set_aside_folders(directory: Path) -> list[Path]:
    """Checkpoints in `directory` that were found damaged and renamed."""
    return sorted(p for p in directory.glob(f"*{DAMAGED_SUFFIX}*") if p.is_dir())


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
