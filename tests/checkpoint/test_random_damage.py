"""A checkpoint of which a bit was flipped, a file cut, emptied, lost or overwritten: `aifx ckpt verify` finds it.

`make test` damages 20 checkpoints, with a seed that follows the commit, and `make test-all` 100, with LONG=1 1,000.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from effort import parts, seed_of_commit

from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.manifest import Damaged
from aifx.checkpoint.verification import verify_stored
from aifx.config.sections import CheckpointSection

FEW, MANY, PARTS = 20, 1000, 10


def state() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"step": jnp.int32(1), "params": {f"w{i}": rng.standard_normal((48, 40 + i), np.float32) for i in range(5)}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    Checkpoints(folder, CheckpointSection(asynchronous=False)).save(1, state(), host={"units": 3})
    assert is_whole(folder / "1")
    return folder / "1"


def damage(folder: Path, dice: random.Random) -> str:
    """Change one file of a checkpoint. Returns how."""
    path = dice.choice(sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size))
    data = bytearray(path.read_bytes())
    match how := dice.choice(["flip", "flip", "cut", "cut", "lost", "zeros", "longer"]):
        case "flip":
            bit = dice.randrange(len(data) * 8)
            data[bit // 8] ^= 1 << bit % 8
        case "cut":
            del data[dice.randrange(len(data)) :]
        case "zeros":  # a page that the disk never wrote
            start = dice.randrange(len(data)) // 4096 * 4096
            page = data[start : start + 4096]
            if not any(page):
                return damage(folder, dice)
            data[start : start + 4096] = bytes(len(page))
        case "longer":
            data += dice.randbytes(dice.randint(1, 4096))
    path.write_bytes(data)
    if how == "lost":
        path.unlink()
    return f"{how}: {path.relative_to(folder)}"


def is_whole(folder: Path) -> bool:
    try:
        found = verify_stored(folder)
    except Damaged:
        return False
    return not found.damaged and not found.files


def check(saved: Path, place: Path, dice: random.Random) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(saved, place)
    how = damage(place, dice)
    assert not is_whole(place), how


def test_some(saved: Path, tmp_path: Path) -> None:
    dice = random.Random(seed_of_commit())
    for _ in range(FEW):
        check(saved, tmp_path / "1", dice)


@pytest.mark.slow
@pytest.mark.parametrize("part", parts(PARTS))
def test_many(saved: Path, tmp_path: Path, part: int, record_property: Callable[[str, object], None]) -> None:
    dice = random.Random(f"{seed_of_commit()} {part}")
    for _ in range(MANY // PARTS):
        check(saved, tmp_path / "1", dice)
    record_property("damaged checkpoints", MANY // PARTS)
