"""The step: sums make it indifferent to how a batch is cut, the optimizer's rules hold, scanned equals unrolled."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from effort import IS_LONG

from aifx.machine.compilation_cache import enable_compilation_cache
from aifx.nn.precision import compute_dtype
from aifx.parallel import place_batch
from aifx.specs import ArraySpec, init_params
from aifx.training.optimizers import clip_by_global_norm, make_optimizer, merge_weights, select_weights
from aifx.training.restore import initialize
from aifx.training.state import abstract_state, from_tree, to_tree
from aifx.training.step import lower_step, make_step, mean_gradients, mean_loss


@pytest.fixture(scope="module", autouse=True)
def _kept_programs() -> None:
    """Keep compiled programs, as training does: several tests compile the same."""
    enable_compilation_cache()


def batches(step_spec: Any, count: int) -> list[Any]:
    source = step_spec.task.source("train")
    return [source.read(step, slice(0, 8)) for step in range(count)]


def losses(step_spec: Any, steps: int = 5) -> tuple[list[float], Any]:
    abstract = abstract_state(step_spec.specs, step_spec.optimizer, step_spec.mesh)
    state = initialize(step_spec, abstract)
    step = lower_step(step_spec, abstract, batches(step_spec, 1)[0]).compile()
    found = []
    for batch in batches(step_spec, steps):
        state, numbers = step(state, place_batch(batch, step_spec.mesh))
        found.append(float(numbers[0]))
    return found, state


@pytest.mark.parametrize("count", [2, 4, 8] if IS_LONG else [2, 8])
def test_accumulation_equals_the_whole_batch(tiny, count: int) -> None:
    whole = tiny.step_spec("data.noise=0.0")
    cut = tiny.step_spec("data.noise=0.0", f"train.gradient_accumulation={count}")
    params, key = init_params(whole.specs, jax.random.key(3)), jax.random.key(0)
    batch = batches(whole, 1)[0]
    assert len(set(batch["weights"])) > 1, "rows of equal weight would not tell a mean of means from a mean of sums"
    loss, gradients = jax.jit(partial(mean_gradients, whole))(params, batch, key)
    loss_cut, gradients_cut = jax.jit(partial(mean_gradients, cut))(params, batch, key)
    np.testing.assert_allclose(loss_cut, loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradients_cut), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    loss_of = jax.jit(partial(mean_loss, whole))
    mean_of_means = np.mean([
        float(loss_of(params, {k: v[i::count] for k, v in batch.items()}, key))
        for i in range(count)
        if batch["weights"][i::count].sum() > 0
    ])  # fmt: skip
    assert abs(mean_of_means - float(loss)) > 1e-5, "this batch cannot tell sums from means"


def test_a_batch_without_weight_changes_nothing(tiny) -> None:
    step_spec = tiny.step_spec()
    params = init_params(step_spec.specs, jax.random.key(3))
    batch = {**batches(step_spec, 1)[0], "weights": np.zeros(8, np.float32)}
    loss, gradients = jax.jit(partial(mean_gradients, step_spec))(params, batch, jax.random.key(0))
    assert float(loss) == 0.0
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_scanned_layers_train_as_unrolled_ones_do(tiny, kind: str) -> None:
    unrolled, state = losses(tiny.step_spec(f"optimizer.kind={kind}"))
    scanned, stacked = losses(tiny.step_spec(f"optimizer.kind={kind}", "model.scan_layers=true"))
    np.testing.assert_allclose(scanned, unrolled, rtol=1e-5)
    assert unrolled[-1] < unrolled[0]
    ours, theirs = to_tree(state, stacked=False), to_tree(stacked, stacked=True)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs), "one checkpoint must serve both"
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


def test_a_checkpoint_of_unrolled_layers_fits_scanned_ones(tiny) -> None:
    _, state = losses(tiny.step_spec("optimizer.kind=muon"))
    scanned = tiny.step_spec("optimizer.kind=muon", "model.scan_layers=true")
    abstract = abstract_state(scanned.specs, scanned.optimizer, scanned.mesh)
    taken = from_tree(to_tree(state, stacked=False), abstract, stacked=True)
    assert jax.tree.map(lambda x: x.shape, taken) == jax.tree.map(lambda x: x.shape, abstract)
    np.testing.assert_array_equal(taken.params["layers"]["kernel"][1], state.params["layers"]["1"]["kernel"])


def test_muon_orthogonalizes_matrices_alone(tiny) -> None:
    step_spec = tiny.step_spec("optimizer.kind=muon", "optimizer.weight_decay=0", "optimizer.learning_rate=1")
    abstract = abstract_state(step_spec.specs, step_spec.optimizer, step_spec.mesh)
    state = initialize(step_spec, abstract)
    gradients = jax.tree.map(
        lambda w: jax.random.normal(jax.random.key(1), w.shape), select_weights(state.params, step_spec.specs)
    )
    updates, _ = step_spec.optimizer.update(gradients, state.opt_state, select_weights(state.params, step_spec.specs))
    singular = np.linalg.svd(np.asarray(updates["layers"]["0"]["kernel"]), compute_uv=False)
    assert 0.4 < singular.min() < singular.max() < 1.4, "Newton-Schulz leaves singular values near 1"
    adam = np.abs(np.asarray(updates["layers"]["0"]["scale"]))
    assert adam == pytest.approx(adam[0], rel=1e-3), "Adam's first update has the gradient's sign and one size"


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_falls_on_what_the_specs_say(kind: str, tiny) -> None:
    step_spec = tiny.step_spec(
        f"optimizer.kind={kind}", "optimizer.weight_decay=0.5", "optimizer.learning_rate=0.1", "schedule.kind=constant"
    )
    weights = jax.tree.map(lambda s: jnp.ones(s.shape), step_spec.specs, is_leaf=lambda s: isinstance(s, ArraySpec))
    weights = select_weights(weights, step_spec.specs)
    zero = jax.tree.map(jnp.zeros_like, weights)
    updates, _ = step_spec.optimizer.update(zero, step_spec.optimizer.init(weights), weights)
    np.testing.assert_allclose(updates["layers"]["0"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["layers"]["0"]["scale"], 0.0)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_frozen_arrays_stay_and_have_no_optimizer_state(tiny) -> None:
    step_spec = tiny.step_spec()
    assert tiny.config().optimizer.weight_decay > 0
    before = init_params(step_spec.specs, jax.random.key(0))["shift"]
    _, state = losses(step_spec)
    np.testing.assert_array_equal(state.params["shift"], before)
    assert not any(
        "shift" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)
    )
    assert merge_weights(select_weights(state.params, step_spec.specs), state.params, step_spec.specs) is not None


def test_adam_learns_at_its_own_rate(tiny) -> None:
    settings = ("optimizer.kind=muon", "optimizer.learning_rate=0.5", "optimizer.weight_decay=0")
    step_spec = tiny.step_spec(*settings, "optimizer.adam_learning_rate=0.001")
    weights = select_weights(init_params(step_spec.specs, jax.random.key(0)), step_spec.specs)
    updates, _ = step_spec.optimizer.update(weights, step_spec.optimizer.init(weights), weights)
    assert 0.0005 < np.abs(updates["layers"]["0"]["scale"]).max() < 0.002
    assert np.linalg.svd(updates["layers"]["0"]["kernel"], compute_uv=False).max() > 0.3


def test_clipping_bounds_the_norm_and_tells_the_one_before() -> None:
    gradients = {"a": jnp.full((3,), 4.0), "b": jnp.zeros((2,))}
    clipped, norm = clip_by_global_norm(gradients, 1.0)
    assert float(norm) == pytest.approx(np.sqrt(48))
    assert float(optax.tree.norm(clipped)) == pytest.approx(1.0)
    small, norm = clip_by_global_norm({"a": jnp.full((3,), 0.1)}, 1.0)
    np.testing.assert_array_equal(small["a"], jnp.full((3,), 0.1))
    same, _ = clip_by_global_norm(gradients, 0.0)
    np.testing.assert_array_equal(same["a"], gradients["a"])
    zero, norm = clip_by_global_norm({"a": jnp.zeros(3)}, 1.0)
    assert float(norm) == 0.0
    assert np.isfinite(zero["a"]).all()


def test_the_record_has_the_norm_before_clipping(tiny) -> None:
    step_spec = tiny.step_spec("optimizer.clip_norm=1e-3")
    state = initialize(step_spec, abstract_state(step_spec.specs, step_spec.optimizer, step_spec.mesh))
    _, numbers = jax.jit(make_step(step_spec))(state, batches(step_spec, 1)[0])
    assert float(numbers[1]) > 1e-2


def test_bfloat16_computes_and_keeps_float32_parameters(tiny) -> None:
    wide, _ = losses(tiny.step_spec("data.noise=0"))
    narrow, state = losses(tiny.step_spec("data.noise=0", "train.precision=bfloat16"))
    assert narrow != wide
    np.testing.assert_allclose(narrow, wide, rtol=0.05)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert compute_dtype("auto", "cpu") == jnp.float32
    assert compute_dtype("auto", "gpu") == compute_dtype("auto", "tpu") == jnp.bfloat16


def test_the_state_is_donated(tiny) -> None:
    step_spec = tiny.step_spec()
    abstract = abstract_state(step_spec.specs, step_spec.optimizer, step_spec.mesh)
    state = initialize(step_spec, abstract)
    batch = batches(step_spec, 1)[0]
    following, _ = lower_step(step_spec, abstract, batch).compile()(state, place_batch(batch, step_spec.mesh))
    assert state.params["bias"].is_deleted()
    assert not following.params["bias"].is_deleted()


def test_optimizer_needs_no_values(tiny) -> None:
    step_spec = tiny.step_spec("optimizer.kind=muon")
    optimizer = make_optimizer(tiny.config().optimizer, step_spec.specs)
    assert jax.tree.leaves(abstract_state(step_spec.specs, optimizer, step_spec.mesh))
