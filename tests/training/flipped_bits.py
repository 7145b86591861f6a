"""A step on two devices, computed twice with a bit flipped: what is found, as JSON. A program of test_verified_step."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.parallel.group import Group
from aifx.parallel.layout import local_layout
from aifx.programs.build import build
from aifx.tasks.base import training_source
from aifx.tasks.registry import open_task
from aifx.training.hooks.verification import Corrupted, Verification

project = Project(Path())
config = load_config(project, (), {})
programs = build(config, open_task(config, project, Path()), local_layout(2))
compiled = programs.train_step.lower().compile()
frozen = programs.init()[1]
batch = programs.place(training_source(programs.task, programs.config).read(0, slice(0, 8)))


def flipped(array: jax.Array, devices: set[int]) -> jax.Array:
    """The array with the lowest bit of its first element flipped in the copies of some devices."""
    parts = []
    for number, shard in enumerate(array.addressable_shards):
        data = np.array(shard.data)
        if number in devices:
            data.view(np.uint32)[0] ^= 1
        parts.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)


def faulty(of_call: int, devices: set[int]) -> Callable[..., Any]:
    """The step as one whose result of a call has a bit flipped."""
    calls = 0

    def step(number: int, state: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        state, numbers = compiled(state, frozen, batch)
        if calls == of_call:
            state.params["bias"] = flipped(state.params["bias"], devices)
        return state, numbers

    return step


def found(of_call: int, devices: set[int], before: frozenset[int] = frozenset()) -> dict[str, str] | None:
    state, _ = programs.init()
    if before:  # of ones: what is added to a zero would hide it
        layer = state.params["layers"]["0"]
        layer["scale"] = flipped(layer["scale"], set(before))
    try:
        Verification(Group(), 1).around_step(faulty(of_call, devices))(1, state, batch)
    except Corrupted as error:
        return {"what": error.what, "why": error.why}
    return None


document = {
    "devices": [str(device) for device in jax.devices()],
    "none": found(0, set()),
    "first": found(1, {1}),
    "second": found(2, {1}),
    "both": found(2, {0, 1}),
    "replica": found(0, set(), frozenset({1})),
}
sys.stdout.write(json.dumps(document))
