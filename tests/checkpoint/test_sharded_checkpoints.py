"""A state saved on any mesh is restored on any other, and each process touches only what it needs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from effort import seed_of_commit
from hypothesis import given
from hypothesis import strategies as st

from aifx.checkpoint import storage
from aifx.checkpoint.capture import HostArray

AXES = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([1, 2, 3, 8])), min_size=1, max_size=3)

EIGHT = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}


def run(directory: Path, seed: int, rounds: int) -> None:
    command = [sys.executable, str(Path(__file__).with_name("mesh_process.py")), str(directory), str(seed), str(rounds)]
    done = subprocess.run(command, env=EIGHT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.representative("checkpoints of several processes")
def test_random_meshes(tmp_path: Path) -> None:
    run(tmp_path, seed_of_commit(), 12)


@given(AXES, st.sampled_from([1, 16, 256]))
def test_chunks_are_small_and_none_is_of_two_parts(axes: list[tuple[int, int]], limit: int) -> None:
    part, shape = tuple(size for size, _ in axes), tuple(size * count for size, count in axes)
    with mock.patch.object(storage, "CHUNK_BYTES", limit):
        chunk = storage.chunk_shape(HostArray(np.dtype("float32"), shape, part, ()))
    for size, (part_size, count) in zip(chunk, axes, strict=True):
        assert 1 <= size <= part_size
        assert count == 1 or part_size % size == 0
    splittable = [
        s for s, (_, n) in zip(chunk, axes, strict=True) if s > 1 and (n == 1 or not all(s % f for f in (2, 3, 5, 7)))
    ]
    assert math.prod(chunk) * 4 <= limit or not splittable


@pytest.mark.slow
def test_many_random_meshes(tmp_path: Path) -> None:
    run(tmp_path, seed_of_commit() + 1, 200)
