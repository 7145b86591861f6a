"""Weights in bfloat16: what they begin with, how they are updated, that a stop and a checkpoint lose no bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import stopped

from aifx.checkpoint.manifest import read_manifest
from aifx.core.errors import CheckpointError
from aifx.evaluation.held_out import evaluate
from aifx.optim import round_stochastically, round_weights
from aifx.specs import ArraySpec, stack_layer_specs
from aifx.tasks.base import training_source

NARROW = "train.parameter_dtype=bfloat16"


def test_rounding_keeps_the_mean_and_takes_a_neighbour() -> None:
    x = jnp.float32([1.0, 1.0 + 2**-9, -(1.0 + 2**-10), 3.3e38, 1e-40, 0.0, jnp.inf, -jnp.inf, jnp.nan])
    bits = jax.random.bits(jax.random.key(0), (40_000, x.size), jnp.uint16)
    drawn = np.asarray(jax.vmap(round_stochastically, (None, 0))(x, bits).astype(jnp.float32))
    assert [set(column.tolist()) for column in drawn.T[:3]] == [{1.0}, {1.0, 1.0078125}, {-1.0, -1.0078125}]
    np.testing.assert_allclose(drawn[:, :3].mean(axis=0), x[:3], atol=1e-4)
    np.testing.assert_array_equal(drawn[0, 5:], x[5:])
    assert np.isfinite(drawn[:, :6]).all()


@pytest.mark.slow
def test_a_stack_of_layers_rounds_as_its_layers_do() -> None:
    layer = {"w": ArraySpec((3, 5), (None, None), lambda *_: jnp.zeros((3, 5)), jnp.bfloat16)}
    values = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5)), jnp.float32)
    key = jax.random.key(4)
    stacked = round_weights({"layers": {"w": values}}, {"layers": stack_layer_specs(layer, 2)}, key)
    tree = {"layers": {str(i): {"w": values[i]} for i in range(2)}}
    unrolled = round_weights(tree, {"layers": {"0": layer, "1": layer}}, key)
    for i in range(2):
        np.testing.assert_array_equal(stacked["layers"]["w"][i], unrolled["layers"][str(i)]["w"])
    assert not np.array_equal(stacked["layers"]["w"], values.astype(jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_small_updates_are_not_lost(tiny, kind: str) -> None:
    """Each is a small part of the distance between two bfloat16s, so the nearest one would be the old one."""
    rates = [
        "optimizer.learning_rate=2e-5",
        "schedule.kind=constant",
        "optimizer.weight_decay=0",
        f"optimizer.kind={kind}",
    ]
    wide, narrow = (tiny.programs(*rates, *more) for more in ((), (NARROW,)))
    source = training_source(narrow.task, narrow.config)
    (state, frozen), (first, _) = narrow.init(), wide.init()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), state.params, first.params)
    initial = jax.device_get(state.params)
    for step in range(3):
        state, _ = narrow.train_step(state, frozen, narrow.place(source.read(step, slice(0, 8))))
    assert jax.tree.map(lambda x: x.dtype, state) == jax.tree.map(lambda x: x.dtype, narrow.abstract[0])
    moments = {x.dtype.name for x in jax.tree.leaves(state.opt_state) if x.ndim}
    assert moments == {"float32"}
    assert {x.dtype.name for x in jax.tree.leaves(state.params)} == {"bfloat16"}
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(initial), strict=True)
    moved = [np.mean(np.asarray(a) != b) for a, b in pairs if a.ndim > 1]
    assert 0 < max(moved) < 0.5
    size = narrow.state_bytes()
    assert (2 * size["parameters"], size["gradients"]) == (wide.state_bytes()["parameters"],) * 2


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit_and_its_average_is_float32(tiny) -> None:
    settings = [NARROW, "optimizer.moment_dtype=bfloat16", "optimizer.ema_decay=0.9", "train.gradient_accumulation=2"]
    whole = tiny.train(*settings, run="whole")
    stopped(tiny, 5, *settings, run="stopped")
    assert tiny.train(*settings, run="stopped").state_digest == whole.state_digest
    assert tiny.records("stopped") == tiny.records("whole")
    run = tiny.run("whole")
    entries = read_manifest(run.checkpoints / "12").arrays
    dtypes: dict[str, set[str]] = {}
    for name, entry in entries.items():
        dtypes.setdefault(name.split("/")[0], set()).add(entry.dtype)
    assert dtypes["params"] == {"bfloat16"}
    assert dtypes["ema"] == {"float32"}
    assert dtypes["opt_state"] >= {"float32", "bfloat16"}
    validated = tiny.records("whole")[-1]["validation"]["loss"]
    assert evaluate(run, tiny.project, split="validation", step=12).metrics["loss"] == validated
    raw: Any = evaluate(run, tiny.project, split="validation", step=12, overrides=["optimizer.ema_decay=0"])
    assert raw.metrics["loss"] != validated


def test_a_fork_does_not_change_the_type(trained) -> None:
    with pytest.raises(CheckpointError, match=r"train\.parameter_dtype"):
        trained.train(NARROW, "train.num_steps=16", run="narrow", fork_from="main")
