"""Rounding updated weights to the type in which they are kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from aifx.specs import ArraySpec, Specs, array_keys, is_spec, wide_dtype


def round_weights(weights: Any, specs: Specs, key: jax.Array) -> Any:
    """A tree of updated weights as the types of their specs.

    A float32 becomes one of the two nearest bfloat16s, the likelier the nearer it is, so that it stays the same on
    average. Rounded to the nearest, a bfloat16 would lose each update that is less than about 1/512 of it (Zamirai et
    al. 2020, "Revisiting BFloat16 Training", arXiv 2010.06192). Each element draws from the key, the name of its
    layer's array and its place there, so that meshes and stacks of layers round alike.
    """
    keys = jax.tree.unflatten(jax.tree.structure(specs, is_leaf=is_spec), array_keys(specs, key))

    def rounded(spec: ArraySpec, weight: Any, key: jax.Array) -> Any:
        if weight is None or weight.dtype == spec.dtype:
            return weight
        if spec.dtype != jnp.bfloat16:
            return weight.astype(spec.dtype)
        if key.ndim == 0:
            return round_stochastically(weight, jax.random.bits(key, weight.shape, jnp.uint16))
        bits = jax.vmap(lambda one: jax.random.bits(one, weight.shape[1:], jnp.uint16))(key)
        return round_stochastically(weight, bits)

    if all(spec.dtype == wide_dtype(spec.dtype) for spec in jax.tree.leaves(specs, is_leaf=is_spec)):
        return weights
    return jax.tree.map(rounded, specs, weights, keys, is_leaf=is_spec)


def round_stochastically(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Float32 as bfloat16: up if the sum of the bits that it loses and 16 random `bits` carries."""
    carried = jax.lax.bitcast_convert_type(x, jnp.uint32) + bits.astype(jnp.uint32)
    kept = jax.lax.bitcast_convert_type((carried >> 16).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), kept, x.astype(jnp.bfloat16))
