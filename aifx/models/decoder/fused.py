"""Matrices that read the same vectors, joined: for a token at a time, few large products cost less than many small."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from aifx.models.decoder.section import DecoderSection
from aifx.nn import layers
from aifx.nn.lora import join_outputs
from aifx.specs import LAYERS, Params, is_stacked
from jax_kernels.products import is_bfloat16_on_cpu

QUERY_KEY_VALUE, GATE_UP = "query_key_value", "gate_up"


def fuse_projections(params: Params, section: DecoderSection) -> Params:
    """The params with one matrix for queries, keys and values, and one for gate and up, if a layer has a gate.

    A table that is also the last projection gets a transposed copy if it is bfloat16 on a CPU: a product with the table
    itself takes ten times as long there.
    """
    every = params[LAYERS]
    found = {**params, LAYERS: _layer(every) if is_stacked(every) else {k: _layer(v) for k, v in every.items()}}
    table = params["embedding"]["token"]
    if section.tie_embeddings and isinstance(table, jax.Array) and is_bfloat16_on_cpu(table):
        found["output"] = jnp.asarray(table.T)
    return found


def _layer(params: Params) -> Params:
    attention, mlp = params["attention"], params["mlp"]
    found = {**params, "attention": _join(attention, ("query", "key", "value"), QUERY_KEY_VALUE, num_outputs=2)}
    if "gate" in mlp:
        found["mlp"] = _join(mlp, ("gate", "up"), GATE_UP, num_outputs=1)
    return found


def _join(params: Params, names: tuple[str, ...], joint: str, num_outputs: int) -> Params:
    """`params` with the arrays of these names, and their biases, as one. An array's last axes are its outputs."""

    def flat(array: Any) -> Any:
        return array.reshape(*array.shape[:-2], -1) if num_outputs == 2 and isinstance(array, jax.Array) else array

    found = {name: array for name, array in params.items() if name not in names}
    found[joint] = join_outputs(*(flat(params[name]) for name in names))
    biases = [found.pop(f"{name}_bias", None) for name in names]
    if biases[0] is not None:
        found[f"{joint}_bias"] = join_outputs(*map(flat, biases))
    return found


def query_key_value(params: Params, x: jax.Array, num_heads: int, num_kv_heads: int) -> tuple[jax.Array, ...]:
    """Queries, keys and values of x `[tokens, embed]`, each `[tokens, heads * head_dim]`, of all heads or of some."""
    if QUERY_KEY_VALUE in params:
        y = layers.linear(x, params[QUERY_KEY_VALUE], params.get(f"{QUERY_KEY_VALUE}_bias"))
        width = y.shape[1] // (num_heads + 2 * num_kv_heads)
        return tuple(jnp.split(y, (num_heads * width, (num_heads + num_kv_heads) * width), axis=1))

    def project(name: str) -> jax.Array:
        bias = params.get(f"{name}_bias")
        return layers.linear(x, layers.as_matrix(params[name], x.shape[1]), None if bias is None else bias.reshape(-1))

    return project("query"), project("key"), project("value")
