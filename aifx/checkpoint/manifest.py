"""`manifest.json` of a checkpoint: what it holds, the digest of every array, and what the host kept.

Reading it needs neither jax nor TensorStore, so that listing checkpoints is quick.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from aifx.config.best_by import Score
from aifx.core.digests import Sha256, sha256_of_json
from aifx.core.errors import CheckpointError
from aifx.core.files import UnsafeFile, check_folder, read_file
from aifx.core.json_values import plain
from aifx.core.os_errors import UNREADABLE
from aifx.core.parsing import parse_json

FORMAT = 4
ITEM = "manifest"
STATE = "state"
"""The folder of the checkpoint that holds the arrays."""

FILE = "manifest.json"
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

    @property
    def state_digest(self) -> str:
        """The digest of the state that was saved."""
        return digest_of((name, entry.dtype, entry.shape, entry.digest) for name, entry in self.arrays.items())

    def to_json(self) -> dict[str, Any]:
        body = {"format": FORMAT, **plain(self)}
        return {**body, "checksum": sha256_of_json(body)}


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the checkpoint at `directory`, a folder named after its step.

    A folder that was renamed, or copied over another, is damaged: training would resume from a wrong state.

    Raises Damaged if it is not as written, OSError if the machine refuses to read it.
    """
    try:
        return parse_manifest(read_file(directory / ITEM / FILE, below=directory), str(directory))
    except (OSError, UnsafeFile) as e:
        if isinstance(e, OSError) and e.errno in UNREADABLE:
            raise
        why = f"{FILE}: {e.what if isinstance(e, UnsafeFile) else e}"
        if isinstance(e, FileNotFoundError | NotADirectoryError):
            why = f"{FILE} is missing"
        raise Damaged(f"checkpoint {directory} is damaged", why) from e


def parse_manifest(data: bytes, place: str) -> Manifest:
    """The manifest of the checkpoint at `place`, a path or URL that ends in its step. Raises Damaged."""
    try:
        doc = parse_json(data)
        checksum = doc.pop("checksum")
        # The checksum comes first, whatever the format: a flipped bit must not pass for a newer one.
        if checksum != sha256_of_json(doc):
            raise ValueError("its checksum does not match its content")
        if doc["format"] != FORMAT:
            what = f"checkpoint {place} has format {doc['format']}"
            raise CheckpointError(what, f"this aifx reads format {FORMAT}")
        if str(doc["step"]) != PurePosixPath(place).name:
            raise ValueError(f"it was saved as the checkpoint of step {doc['step']}")
        arrays = {n: ArrayEntry(a["dtype"], tuple(a["shape"]), a["digest"]) for n, a in doc["arrays"].items()}
        loss = doc["validation_loss"]
        score = None if doc["score"] is None else Score(**doc["score"])
        size = doc["size_bytes"]
        return Manifest(doc["step"], doc["saved_at"], loss, size, arrays, doc["host"], score, dict(doc["run"]))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise Damaged(f"checkpoint {place} is damaged", f"{FILE}: {e}") from e


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
