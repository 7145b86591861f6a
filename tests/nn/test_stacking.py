"""Scanned and unrolled trees are one another's image."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from optax.contrib import MuonDimensionNumbers, muon

from aifx.nn.stacking import stack_layers, unstack_layers
from aifx.specs import ArraySpec, init_params, is_stacked, map_specs, stack_layer_specs


def normal(key, shape, dtype):
    return jax.random.normal(key, shape, dtype)


LAYER = {
    "w": ArraySpec((4, 2, 3), ("embed", "heads", "head_dim"), normal, matrix=((0,), (1, 2)), decay=True),
    "norm": {"scale": ArraySpec((4,), ("embed",), normal)},
}
ENDS = {"table": ArraySpec((5, 4), ("vocab", "embed"), normal)}
SCANNED = {**ENDS, "layers": stack_layer_specs(LAYER, 11)}
UNROLLED = {**ENDS, "layers": {str(i): LAYER for i in range(11)}}


@functools.cache
def params_of(kind, seed=3):
    """First values, made as training makes them."""
    specs = {"scanned": SCANNED, "unrolled": UNROLLED}[kind]
    return jax.jit(lambda: init_params(specs, jax.random.key(seed)))()


def assert_trees_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_the_same_key_gives_the_same_values():
    scanned, unrolled = (params_of(kind) for kind in ("scanned", "unrolled"))
    assert is_stacked(scanned["layers"])
    assert not is_stacked(unrolled["layers"])
    assert_trees_equal(unstack_layers(scanned), unrolled)
    assert_trees_equal(stack_layers(unrolled), scanned)


@pytest.mark.slow
def test_twice_is_once():
    scanned, unrolled = (params_of(kind) for kind in ("scanned", "unrolled"))
    assert_trees_equal(unstack_layers(unrolled), unrolled)
    assert_trees_equal(stack_layers(scanned), scanned)


def optimizer(specs):
    def dims(spec):
        return None if spec.matrix is None else MuonDimensionNumbers(*spec.matrix)

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(optax.add_decayed_weights(0.1), map_specs(lambda s: s.decay, specs)),
        muon(1e-2, muon_weight_dimension_numbers=map_specs(dims, specs)),
    )


@pytest.mark.slow
def test_optimizer_states_turn_as_the_params_do():
    """NamedTuples, masked nodes and all: after an update both ways hold the same numbers."""
    states = []
    for kind, specs in (("scanned", SCANNED), ("unrolled", UNROLLED)):
        update = optimizer(specs)
        step = jax.jit(lambda grads, params, update=update: update.update(grads, update.init(params), params)[1])
        states.append(step(params_of(kind, 1), params_of(kind)))
    scanned, unrolled = states
    assert jax.tree.structure(unstack_layers(scanned)) == jax.tree.structure(unrolled)
    for a, b in zip(jax.tree.leaves(unstack_layers(scanned)), jax.tree.leaves(unrolled), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert_trees_equal(stack_layers(unstack_layers(scanned)), scanned)


def test_inside_jit_and_on_numpy():
    scanned = params_of("scanned")
    assert_trees_equal(jax.jit(lambda tree: stack_layers(unstack_layers(tree)))(scanned), scanned)
    host = jax.tree.map(np.asarray, scanned)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(stack_layers(unstack_layers(host))))
    assert_trees_equal(stack_layers(unstack_layers(host)), host)


def test_abstract_trees_keep_their_sharding():
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    sharded = NamedSharding(mesh, PartitionSpec(None, "data"))
    tree = {"layers": {"w": jax.ShapeDtypeStruct((3, 4, 5), jnp.bfloat16, sharding=sharded)}}
    unstacked = unstack_layers(tree)
    leaf = unstacked["layers"]["2"]["w"]
    assert (leaf.shape, leaf.dtype, leaf.sharding.spec) == ((4, 5), jnp.bfloat16, PartitionSpec("data"))
    assert stack_layers(unstacked) == tree


def test_depths_that_differ_are_refused():
    with pytest.raises(ValueError, match="depth"):
        unstack_layers({"layers": {"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}})


def test_a_tree_without_layers_is_left_alone():
    tree = {"step": np.int32(1), "opt": (optax.EmptyState(), [np.zeros(2)])}
    assert_trees_equal(unstack_layers(tree), tree)
    assert_trees_equal(stack_layers(tree), tree)
