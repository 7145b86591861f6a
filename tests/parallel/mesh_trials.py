"""Trainings on meshes of simulated devices: `python mesh_trials.py` reads requests as JSON and writes what it found.

A request is {"name": [family, settings, number of devices]}. Every mesh reads the same batches, drawn from a seed.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.data.base import Batch
from aifx.data.spec import DataSpec
from aifx.kinds import load_config
from aifx.parallel.checks import check_batch
from aifx.parallel.layout import local_layout
from aifx.planning.hlo import _CALLED, COLLECTIVES, _parse
from aifx.programs.build import Programs, build, tree_bytes
from aifx.specs import is_spec
from aifx.tasks.registry import describe_or_open_task

VOCAB = 320
TEXT = (
    f"data.vocab_size={VOCAB}", "data.seq_len=32", "train.num_steps=20", "train.global_batch_size=16",
    "optimizer.learning_rate=0.01", "model.num_layers=2", "model.embed_dim=64", "model.num_heads=8",
    "model.num_kv_heads=4", "model.mlp_dim=128", "model.scan_layers=true",
)  # fmt: skip
PICTURES = (
    "task.kind=vision", "data.channels=1", "data.image_size=[8,8]", 'data.classes=["a", "b", "c"]', "train.num_steps=5",
)  # fmt: skip
NETWORK = (*PICTURES, "model.channels=[8,16]", "model.blocks_per_stage=1", "model.dropout=0.1")
FAMILIES = {
    "text": TEXT,
    "gpt2": (*TEXT[:4], "model.preset=gpt2-10m"),
    "small": NETWORK,
    "basic": (*NETWORK, "model.block=basic", "model.stem=3x3"),
    "vit": (
        *PICTURES, "model.family=vit", "model.patch_size=4", "model.embed_dim=16", "model.num_heads=2",
        "model.num_layers=2", "model.dropout=0.1",
    ),
    "tabular": (
        "task.kind=tabular", "data.path=table.csv", "data.target=y", "model.width=24", "train.num_steps=5",
        "objective.kind=regression",
    ),
    "series": (
        "task.kind=series", "data.path=table.csv", "data.time=t", "data.value=y", "data.context=14", "data.horizon=7",
        "data.validation_steps=30", "data.test_steps=30", "model.embed_dim=16", "model.width=24", "train.num_steps=5",
    ),
}  # fmt: skip
"""Settings of a project of each family."""


def programs_of(family: str, settings: list[str], devices: int) -> Programs:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "aifx.toml").touch()
        days = np.datetime64("2026-01-01") + np.arange(300)
        rows = [f"{day},{i % 7 + i / 50},{'xyz'[i % 3]}" for i, day in enumerate(days)]
        (Path(folder) / "table.csv").write_text("\n".join(["t,y,shop", *rows]))
        project = Project(Path(folder))
        config = load_config(project, [*FAMILIES[family], *settings], {})
        layout = local_layout(devices, config.mesh)
        check_batch(layout, config.train.global_batch_size, config.train.gradient_accumulation)
        return build(config, describe_or_open_task(config, project, Path(folder)), layout)


def batch_of(data: DataSpec, rows: int, step: int) -> Batch:
    rng = np.random.default_rng([7, step])
    if not data.fields["inputs"].dtype.startswith("int"):
        return {name: _drawn(rng, (rows, *field.shape), field.dtype) for name, field in data.fields.items()}
    # Every second token follows from the one before, and some tokens do not count.
    (length,) = data.fields["inputs"].shape
    tokens = rng.integers(0, data.vocab_size, (rows, length + 1))
    tokens[:, 1::2] = (tokens[:, :-1:2] * 3 + 1) % data.vocab_size
    made = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": rng.random((rows, length)) < 0.9}
    places = np.broadcast_to(np.arange(length), (rows, length))
    made |= {"segment_ids": places // 11, "positions": places % 11}
    made |= {"writers": rng.integers(1, 3, (rows, length)), "reference": rng.random((rows, 2)) - 150}
    ones = np.ones((rows,))
    return {name: made.get(name, ones).astype(field.dtype) for name, field in data.fields.items()}


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    drawn = rng.random(shape) if np.dtype(dtype).kind == "f" else rng.integers(0, 2, shape)
    return drawn.astype(dtype)


def trial(family: str, settings: list[str], devices: int) -> dict[str, Any]:
    try:
        programs = programs_of(family, settings, devices)
        lowered = programs.train_step.lower()
    except ConfigError as error:
        return {"what": error.what, "why": error.why, "hint": error.hint}
    state, frozen = beginning(family, programs)
    before = weights_of(state)
    step = lowered.compile()
    found = []
    for number in range(programs.config.train.num_steps):
        batch = programs.place(batch_of(programs.task.data, programs.config.train.global_batch_size, number))
        state, metrics = step(state, frozen, batch)
        found.append(np.asarray(metrics))
    held_out = programs.place(batch_of(programs.task.data, 10, 99))
    sums = programs.eval_step(state.evaluated, frozen, held_out)
    has_reference = "reference" in programs.task.data.fields
    reference = programs.reference_step(state.evaluated, frozen, held_out)["reference"][:10] if has_reference else ()
    losses, norms, _ = np.stack(found).T.tolist()
    return {
        "losses": losses,
        "norms": norms,
        "evaluated": [float(x) for x in sums["loss"]],
        "reference": np.asarray(reference).tolist(),
        "changes": {name: encoded(array - before[name]) for name, array in weights_of(state).items()},
        "state_share": max(held_by_device(state).values()) / tree_bytes(state),
        "layer_bytes": max_layer_bytes(programs),
        "vocab_bytes": VOCAB * 64 * 4,
        "matrix_bytes": 4 * sum(s.size for s in jax.tree.leaves(programs.specs, is_leaf=is_spec) if s.matrix),
        "collectives": collectives_of(step.as_text()),
        "moved": moved_by(lowered.as_text()),
    }


def weights_of(state: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Copies of weights, and of averaged ones, float32 by name."""
    found = jax.tree_util.tree_leaves_with_path({"params": state.params, "ema": state.ema})
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.array(x, np.float32) for path, x in found}


def encoded(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


BEGINNINGS: dict[str, Any] = {}
"""States of text models before the first step, by the shapes of their arrays."""


def beginning(family: str, programs: Programs) -> Any:
    """The result of `init`. A text model's is made once for all meshes: that would be a third of a trial's time."""
    if family != "text":
        return programs.init()
    shapes = str(jax.tree.map(lambda x: (x.shape, x.dtype), programs.abstract))
    if shapes not in BEGINNINGS:
        BEGINNINGS[shapes] = jax.device_get(programs.init())
    return jax.device_put(BEGINNINGS[shapes], jax.tree.map(lambda x: x.sharding, programs.abstract))


def held_by_device(state: Any) -> dict[int, int]:
    """Bytes of a state that each device holds."""
    held: dict[int, int] = {}
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return held


def max_layer_bytes(programs: Programs) -> int:
    """The bytes of the largest weight of a layer."""
    stacked = jax.tree.leaves(programs.abstract[0].params.get("layers", {}))
    return max((math.prod(x.shape[1:]) * x.dtype.itemsize for x in stacked), default=0)


def moved_by(text: str) -> list[tuple[str, str]]:
    """The collectives of a program before XLA changes types for this machine: kind, shape and type of the result."""
    found = re.finditer(r'"stablehlo\.(all_gather|reduce_scatter|all_reduce)"', text)
    results = re.compile(r"-> \(?tensor<([^>]*)>")
    return [(one[1], results.search(text, one.end())[1]) for one in found]  # type: ignore[index]


def collectives_of(text: str) -> list[tuple[str, float, bool]]:
    """The collectives of a compiled program: kind, bytes of the result, and whether a loop repeats it."""
    computations, _ = _parse(text)
    in_loops: set[str] = set()

    def reach(name: str) -> None:
        if name in computations and name not in in_loops:
            in_loops.add(name)
            for one in computations[name]:
                for called in _CALLED.findall(one.attributes):
                    reach(called)

    for one in (one for instructions in computations.values() for one in instructions if one.opcode == "while"):
        for called in _CALLED.findall(one.attributes):
            reach(called)
    return [
        (one.opcode, one.result_bytes, name in in_loops)
        for name, instructions in computations.items()
        for one in instructions
        if one.opcode in COLLECTIVES
    ]


if __name__ == "__main__":
    json.dump({name: trial(*request) for name, request in json.load(sys.stdin).items()}, sys.stdout)
