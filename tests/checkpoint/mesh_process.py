"""Run by test_meshes.py on eight simulated devices: states saved on random meshes and restored on others."""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aifx.checkpoint import storage
from aifx.checkpoint.checkpoints import Checkpoints
from aifx.checkpoint.digest import state_digest
from aifx.config.sections import CheckpointSection

SHAPES = {
    "matrix": (24, 48),
    "vector": (48,),
    "scalar": (),
    "stack": (2, 24, 12),
    "wide": (8, 5),
    "odd": (7, 3),
    "none": (0, 8),
}
DTYPES = ("float32", "bfloat16", "int32", "uint8")

read_bytes = 0
largest_bytes = 0


class Watched(storage.StoredArrays):
    """Counts what is read."""

    def read(self, name: str, index: tuple[slice, ...]) -> Any:
        global read_bytes, largest_bytes
        found = super().read(name, index)
        read_bytes += found.result().nbytes
        largest_bytes = max(largest_bytes, found.result().nbytes)
        return found


def a_mesh(dice: random.Random) -> Mesh:
    """A mesh of one to eight devices with up to three axes."""
    sizes = dice.choice([(1,), (2,), (3,), (4,), (6,), (8,), (2, 2), (2, 3), (4, 2), (2, 4), (2, 2, 2), (1, 8), (3, 2)])
    devices = dice.sample(jax.devices(), math.prod(sizes))
    return Mesh(np.array(devices).reshape(sizes), tuple("abc"[: len(sizes)]))


def a_sharding(dice: random.Random, mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Some axes of the mesh, each along a dimension that it divides."""
    free = list(mesh.axis_names)
    dice.shuffle(free)
    spec: list[Any] = []
    for size in shape:
        axes: list[str] = []
        left = size
        while free and left and dice.random() < 0.6 and left % mesh.shape[free[-1]] == 0:
            left //= mesh.shape[free[-1]]
            axes.append(free.pop())
        spec.append(tuple(axes) or None)
    return NamedSharding(mesh, PartitionSpec(*spec))


def a_state(dice: random.Random) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(dice.randrange(1 << 30))
    return {
        name: rng.integers(-9, 9, shape).astype(jax.numpy.dtype(dice.choice(DTYPES))) for name, shape in SHAPES.items()
    }


def main(directory: Path, seed: int, rounds: int) -> None:
    from aifx.checkpoint import checkpoints as module

    module.StoredArrays = Watched  # type: ignore[misc]
    storage.CHUNK_BYTES = 256  # type: ignore[misc]
    dice = random.Random(seed)
    checkpoints = Checkpoints(directory, CheckpointSection(asynchronous=False, keep_last=1))
    for step in range(rounds):
        values = a_state(dice)
        mesh = a_mesh(dice)
        state = {name: jax.device_put(value, a_sharding(dice, mesh, value.shape)) for name, value in values.items()}
        checkpoints.save(step, {"params": state}, host={})
        copies = list(checkpoints._copies._memory.values())
        assert sum(copy.nbytes for copy in copies) == sum(value.nbytes for value in values.values()), (seed, step)
        shards = [shard.data.nbytes for array in state.values() for shard in array.addressable_shards]
        assert max(copy.nbytes for copy in copies) == max(shards), (seed, step)
        assert checkpoints.verify(step).state_digest == state_digest({"params": values}), (seed, step)
        assert checkpoints.verify(step).damaged == () == checkpoints.verify(step).files, (seed, step)
        for _ in range(2):
            compare(checkpoints, step, values, a_mesh(dice), dice, f"seed {seed}, step {step}")


def compare(
    checkpoints: Checkpoints, step: int, values: dict[str, Any], mesh: Mesh, dice: random.Random, where: str
) -> None:
    global read_bytes, largest_bytes
    wanted = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=a_sharding(dice, mesh, value.shape))
        for name, value in values.items()
    }
    read_bytes = largest_bytes = 0
    restored = checkpoints.restore(step, {"params": wanted})[0]["params"]
    shards = []
    for name, value in values.items():
        assert restored[name].sharding == wanted[name].sharding, where
        assert np.asarray(restored[name]).tobytes() == value.tobytes(), where
        distinct = {str(shard.index): shard.data.nbytes for shard in restored[name].addressable_shards}
        shards += distinct.values()
    assert read_bytes == sum(shards), where
    assert largest_bytes == max(shards), where
    assert state_digest({"params": restored}) == state_digest({"params": values}), where


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
