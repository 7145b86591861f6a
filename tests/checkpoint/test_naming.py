from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aifx.checkpoint.naming import flat_names, from_named, to_named


def params() -> dict[str, Any]:
    return {"embedding": jnp.ones((5, 3)), "layers": {"0": {"query": jnp.zeros((3, 3)), "bias": jnp.ones(3)}}}


def matrices(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim > 1, tree)


def test_names_of_a_masked_optimizer() -> None:
    state = optax.chain(optax.clip_by_global_norm(1.0), optax.masked(optax.adam(1e-3), matrices)).init(params())
    names = flat_names({"opt_state": state})
    assert "opt_state/1/inner_state/0/mu/layers/0/query" in names
    assert "opt_state/1/inner_state/0/count" in names
    assert not any("bias" in name for name in names)  # MaskedNode holds nothing


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adamw(1e-3),
        optax.sgd(1e-3),
        optax.contrib.muon(1e-3),
        optax.chain(optax.clip(1.0), optax.masked(optax.adamw(optax.cosine_decay_schedule(1.0, 10)), matrices)),
        optax.inject_hyperparams(optax.adam)(learning_rate=1e-3),
        optax.MultiSteps(optax.adam(1e-3), 2),
    ],
)
def test_optimizer_states_come_back(optimizer: Any) -> None:
    state = optimizer.init(params())
    numbered = jax.tree.unflatten(jax.tree.structure(state), [jnp.int32(i) for i in range(len(jax.tree.leaves(state)))])
    named = to_named(numbered)
    assert all(isinstance(k, str) for k in flat_names(named))
    back = from_named(named, jax.eval_shape(optimizer.init, params()))
    assert jax.tree.structure(back) == jax.tree.structure(numbered)
    assert jax.tree.leaves(back) == jax.tree.leaves(numbered)


class Pair(NamedTuple):
    first: Any
    second: Any


def test_every_kind_of_node() -> None:
    tree = {"a": Pair(np.ones(2), None), "b": [np.zeros(1), (np.zeros(3), optax.EmptyState())], "c": {3: np.ones(1)}}
    assert list(flat_names(tree)) == ["a/first", "b/0", "b/1/0", "c/3"]
    assert jax.tree.structure(from_named(to_named(tree), tree)) == jax.tree.structure(tree)


def test_names_survive_being_named_again() -> None:
    once = to_named({"a": Pair(np.ones(2), (np.zeros(1),))})
    assert list(flat_names(to_named(once))) == list(flat_names(once))


@pytest.mark.parametrize("tree", [{"a/b": np.ones(1)}, {"": np.ones(1)}, {1: np.ones(1), "1": np.ones(1)}])
def test_names_that_could_be_mistaken_are_refused(tree: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        flat_names(tree)


def test_an_absent_array_is_named() -> None:
    with pytest.raises(KeyError, match="b/c"):
        from_named({"a": np.ones(1)}, {"b": {"c": np.ones(1)}})
