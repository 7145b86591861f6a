"""The step: sums make it indifferent to how a batch is cut, the optimizer's rules hold, scanned equals unrolled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from effort import IS_LONG

from aifx.config.sections import OptimizerSection
from aifx.machine.compilation_cache import enable_compilation_cache
from aifx.nn.initializers import ones
from aifx.nn.precision import compute_dtype
from aifx.optim import clip_by_norm, make_optimizer, select_weights
from aifx.programs.state import abstract_state
from aifx.specs import ArraySpec, init_params
from aifx.tasks.base import training_source
from aifx.training.state import from_tree, to_tree


@pytest.fixture(scope="module", autouse=True)
def _kept_programs() -> None:
    """Keep compiled programs, as training does: several tests compile the same."""
    enable_compilation_cache()


def batches(programs: Any, count: int) -> list[Any]:
    source = training_source(programs.task, programs.config)
    return [source.read(step, slice(0, 8)) for step in range(count)]


def losses(programs: Any, steps: int = 5) -> tuple[list[float], Any]:
    state, frozen = programs.init()
    step = programs.train_step.lower().compile()
    found = []
    for batch in batches(programs, steps):
        state, numbers = step(state, frozen, programs.place(batch))
        found.append(float(numbers[0]))
    return found, state


@pytest.mark.parametrize("count", [2, 4, 8] if IS_LONG else [pytest.param(2, marks=pytest.mark.slow), 8])
def test_accumulation_equals_the_whole_batch(tiny, count: int) -> None:
    whole = tiny.programs()
    cut = tiny.programs(f"train.gradient_accumulation={count}")
    state, frozen = whole.init()
    batch = batches(whole, 1)[0]
    assert len(set(batch["weights"])) > 1, "rows of equal weight would not tell a mean of means from a mean of sums"
    loss, gradients = jax.jit(whole.step.loss_and_gradients)(state, frozen, batch)
    loss_cut, gradients_cut = jax.jit(cut.step.loss_and_gradients)(state, frozen, batch)
    np.testing.assert_allclose(loss_cut, loss, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(cut.step.loss)(state, frozen, batch), loss, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradients_cut), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    loss_of = jax.jit(whole.step.loss)
    mean_of_means = np.mean([
        float(loss_of(state, frozen, {k: v[i::count] for k, v in batch.items()}))
        for i in range(count)
        if batch["weights"][i::count].sum() > 0
    ])  # fmt: skip
    assert abs(mean_of_means - float(loss)) > 1e-5, "this batch cannot tell sums from means"


def test_a_batch_without_weight_changes_nothing(tiny) -> None:
    programs = tiny.programs()
    batch = {**batches(programs, 1)[0], "weights": np.zeros(8, np.float32)}
    loss, gradients = jax.jit(programs.step.loss_and_gradients)(*programs.init(), batch)
    assert float(loss) == 0.0
    assert all(float(jnp.abs(g).max()) == 0.0 for g in jax.tree.leaves(gradients))


OTHER_HEADS = {"query": np.s_[:, 1:], "output": np.s_[1:]}
"""All but the first."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_scanned_layers_train_as_unrolled_ones_do(tiny, kind: str) -> None:
    unrolled, state = losses(tiny.programs(f"optimizer.kind={kind}"))
    scanned, stacked = losses(tiny.programs(f"optimizer.kind={kind}", "model.scan_layers=true"))
    np.testing.assert_allclose(scanned, unrolled, rtol=1e-5)
    assert unrolled[-1] < unrolled[0]
    ours, theirs = to_tree(state, stacked=False), to_tree(stacked, stacked=True)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs), "one checkpoint must serve both"
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)


@pytest.mark.slow
def test_a_checkpoint_of_unrolled_layers_fits_scanned_ones(tiny) -> None:
    _, state = losses(tiny.programs("optimizer.kind=muon"))
    scanned = tiny.programs("optimizer.kind=muon", "model.scan_layers=true")
    abstract, _ = scanned.abstract
    taken = from_tree(to_tree(state, stacked=False), abstract, stacked=True)
    assert jax.tree.map(lambda x: x.shape, taken) == jax.tree.map(lambda x: x.shape, abstract)
    np.testing.assert_array_equal(taken.params["layers"]["kernel"][1], state.params["layers"]["1"]["kernel"])


@pytest.mark.slow
def test_muon_orthogonalizes_matrices_alone(tiny) -> None:
    programs = tiny.programs("optimizer.kind=muon", "optimizer.weight_decay=0", "optimizer.learning_rate=1")
    state, _ = programs.init()
    weights = select_weights(state.params, programs.trained_specs)
    gradients = jax.tree.map(lambda w: jax.random.normal(jax.random.key(1), w.shape), weights)
    updates, _ = programs.optimizer.update(gradients, state.opt_state, weights)
    singular = np.linalg.svd(np.asarray(updates["layers"]["0"]["kernel"]), compute_uv=False)
    assert 0.4 < singular.min() < singular.max() < 1.4, "Newton-Schulz leaves singular values near 1"
    adam = np.abs(np.asarray(updates["layers"]["0"]["scale"]))
    assert adam == pytest.approx(adam[0], rel=1e-3), "Adam's first update has the gradient's sign and one size"


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 5])
def test_two_steps_of_newton_schulz_reach_as_far_as_five(steps: int) -> None:
    specs = {"kernel": ArraySpec((96, 192), ("embed", "mlp"), ones, matrix=((0,), (1,)))}
    section = OptimizerSection(kind="muon", learning_rate=1, weight_decay=0, ns_steps=steps)
    optimizer = make_optimizer(section, specs)
    gradients = {"kernel": jax.random.normal(jax.random.key(1), (96, 192))}
    update = optimizer.update(gradients, optimizer.init(gradients), gradients)[0]["kernel"]
    singular = np.linalg.svd(update, compute_uv=False)
    assert singular.min() > 0.5 * singular.max(), "0.3 of it by two steps from the scaling by the Frobenius norm"


@pytest.mark.representative("an optimizer")
def test_muon_orthogonalizes_each_head_by_itself() -> None:
    """Those of queries, keys and values; the outputs of heads add up, so their projection is one matrix."""
    specs = {
        "query": ArraySpec((12, 3, 4), ("embed", "heads", "head_dim"), ones, matrix=((0,), (1, 2))),
        "key": ArraySpec((12, 1, 4), ("embed", "kv_heads", "head_dim"), ones, matrix=((0,), (1, 2))),
        "output": ArraySpec((3, 4, 12), ("heads", "head_dim", "embed"), ones, matrix=((0, 1), (2,))),
    }
    optimizer = make_optimizer(OptimizerSection(kind="muon", learning_rate=1, weight_decay=0), specs)
    update = jax.jit(lambda gradients: optimizer.update(gradients, optimizer.init(gradients), gradients)[0])
    gradients = {name: jax.random.normal(jax.random.key(1), spec.shape) for name, spec in specs.items()}
    changed = gradients | {name: gradients[name].at[axis].mul(9.0) for name, axis in OTHER_HEADS.items()}
    ours, theirs = update(gradients), update(changed)
    for head in range(3):
        singular = np.linalg.svd(ours["query"][:, head], compute_uv=False)
        assert 0.4 < singular.min() < singular.max() < 1.4
    np.testing.assert_allclose(ours["query"][:, 0], theirs["query"][:, 0], rtol=1e-4)
    assert np.abs(ours["output"][0] - theirs["output"][0]).max() > 0.01


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_falls_on_what_the_specs_say(kind: str, tiny) -> None:
    programs = tiny.programs(
        f"optimizer.kind={kind}", "optimizer.weight_decay=0.5", "optimizer.learning_rate=0.1", "schedule.kind=constant"
    )
    weights = jax.tree.map(
        lambda s: jnp.ones(s.shape), programs.trained_specs, is_leaf=lambda s: isinstance(s, ArraySpec)
    )
    weights = select_weights(weights, programs.trained_specs)
    zero = jax.tree.map(jnp.zeros_like, weights)
    updates, _ = programs.optimizer.update(zero, programs.optimizer.init(weights), weights)
    np.testing.assert_allclose(updates["layers"]["0"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["layers"]["0"]["scale"], 0.0)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def test_frozen_arrays_stay_and_are_no_part_of_the_state(tiny) -> None:
    """They are an argument of the step: no checkpoint holds them, and the optimizer knows nothing of them."""
    programs = tiny.programs()
    assert tiny.config().optimizer.weight_decay > 0
    _, frozen = programs.init()
    np.testing.assert_array_equal(frozen["shift"], init_params(programs.specs, jax.random.key(0))["shift"])
    _, state = losses(programs)
    assert set(state.params) == {"layers", "bias"}
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert not any("shift" in path for path in paths)


@pytest.mark.slow
def test_adam_learns_at_its_own_rate(tiny) -> None:
    settings = ("optimizer.kind=muon", "optimizer.learning_rate=0.5", "optimizer.weight_decay=0")
    programs = tiny.programs(*settings, "optimizer.adam_learning_rate=0.001")
    weights = select_weights(init_params(programs.trained_specs, jax.random.key(0)), programs.trained_specs)
    updates, _ = programs.optimizer.update(weights, programs.optimizer.init(weights), weights)
    assert 0.0005 < np.abs(updates["layers"]["0"]["scale"]).max() < 0.002
    assert np.linalg.svd(updates["layers"]["0"]["kernel"], compute_uv=False).max() > 0.3


def test_clipping_bounds_the_norm() -> None:
    def clipped(gradients: Any, bound: float) -> Any:
        return clip_by_norm(gradients, optax.tree.norm(gradients), bound)

    gradients = {"a": jnp.full((3,), 4.0), "b": jnp.zeros((2,))}
    assert float(optax.tree.norm(clipped(gradients, 1.0))) == pytest.approx(1.0)
    small = clipped({"a": jnp.full((3,), 0.1)}, 1.0)
    np.testing.assert_array_equal(small["a"], jnp.full((3,), 0.1))
    np.testing.assert_array_equal(clipped(gradients, 0.0)["a"], gradients["a"])
    assert np.isfinite(clipped({"a": jnp.zeros(3)}, 1.0)["a"]).all()


def test_the_record_has_the_norm_before_clipping(tiny) -> None:
    programs = tiny.programs("optimizer.clip_norm=1e-3")
    _, numbers = programs.train_step(*programs.init(), batches(programs, 1)[0])
    assert float(numbers[1]) > 1e-2


@pytest.mark.representative("a type of parameters")
def test_bfloat16_computes_and_keeps_float32_parameters(tiny) -> None:
    wide, _ = losses(tiny.programs("data.noise=0"))
    narrow, state = losses(tiny.programs("data.noise=0", "train.precision=bfloat16"))
    assert narrow != wide
    np.testing.assert_allclose(narrow, wide, rtol=0.05)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert compute_dtype("auto", "cpu") == jnp.float32
    assert compute_dtype("auto", "gpu") == compute_dtype("auto", "tpu") == jnp.bfloat16


def test_the_state_is_donated(tiny) -> None:
    programs = tiny.programs()
    state, frozen = programs.init()
    batch = batches(programs, 1)[0]
    following, _ = programs.train_step.lower().compile()(state, frozen, programs.place(batch))
    assert not frozen["shift"].is_deleted()
    assert state.params["bias"].is_deleted()
    assert not following.params["bias"].is_deleted()


def test_optimizer_needs_no_values(tiny) -> None:
    programs = tiny.programs("optimizer.kind=muon")
    optimizer = make_optimizer(tiny.config().optimizer, programs.trained_specs)
    assert jax.tree.leaves(abstract_state(programs.specs, optimizer, programs.layout))
