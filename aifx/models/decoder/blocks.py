"""The parts of a decoder's layer: projections, the MLP, norms, and their products on several devices."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from aifx.core.errors import ConfigError
from aifx.models.decoder.section import DecoderSection
from aifx.models.decoder.specs import GATED
from aifx.nn import layers
from aifx.nn.lora import join_outputs, map_outputs
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.specs import LAYERS, Params, is_stacked
from jax_kernels._ops.norms import layer_norm, rms_norm
from jax_kernels._ops.swiglu import swiglu
from jax_kernels.products import is_bfloat16_on_cpu

QUERY_KEY_VALUE, GATE_UP = "query_key_value", "gate_up"


def fuse_projections(params: Params, section: DecoderSection) -> Params:
    """The params with one matrix for queries, keys and values, and one for gate and up, if a layer has a gate.

    These matrices read the same vectors. For a token at a time, few large products cost less than many small ones.
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


def mlp(section: DecoderSection, params: Params, x: jax.Array, layout: Layout) -> jax.Array:
    """The MLP's output for x `[tokens, embed]`; on a mesh, x and the output are of this device's own tokens."""
    x = layout.gather_tokens(x)
    is_gated = section.activation in GATED
    if section.activation == "swiglu" and not section.bias and isinstance(params.get("up"), jax.Array):
        return output_product(swiglu(x, params["gate"], params["up"]), params["down"], None, layout)
    if GATE_UP in params:
        gate, hidden = jnp.split(layers.linear(x, params[GATE_UP], params.get(f"{GATE_UP}_bias")), 2, axis=1)
    else:
        hidden = layers.linear(x, params["up"], params.get("up_bias"))
        gate = layers.linear(x, params["gate"], params.get("gate_bias")) if is_gated else hidden
    if is_gated:
        hidden *= (jax.nn.silu if section.activation == "swiglu" else layers.gelu_tanh)(gate)
    else:
        hidden = layers.gelu(hidden) if section.activation == "gelu" else layers.gelu_tanh(hidden)
    return output_product(hidden, params["down"], params.get("down_bias"), layout)


def norm(section: DecoderSection, params: Params | None, x: jax.Array) -> jax.Array:
    """x `[tokens, embed]` normalized, or unchanged if the layer has no norm."""
    if params is None:
        return x
    scale = _scale(section, params["scale"])
    if section.norm == "layer_norm":
        return layer_norm(x, scale, params.get("bias"), epsilon=section.norm_epsilon)
    y = rms_norm(x, scale, epsilon=section.norm_epsilon)
    return y + params["bias"] if section.bias else y


def norm_of_sum(
    section: DecoderSection, params: Params | None, x: jax.Array, residual: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The norm of x + residual, and the sum: one pass over memory for both."""
    if params is None:
        return x + residual, x + residual
    epsilon, scale = section.norm_epsilon, _scale(section, params["scale"])
    if section.norm == "layer_norm":
        return layer_norm(x, scale, params.get("bias"), residual=residual, epsilon=epsilon)
    y, total = rms_norm(x, scale, residual=residual, epsilon=epsilon)
    return (y + params["bias"] if section.bias else y), total


def norm_of_heads(section: DecoderSection, scale: jax.Array, x: jax.Array) -> jax.Array:
    """Queries or keys `[batch, seq, heads, head_dim]` normed, each head alone or all together."""
    scale = _scale(section, scale)
    if scale.ndim == 1:
        return rms_norm(x, scale, epsilon=section.norm_epsilon)
    joint = x.reshape(*x.shape[:2], -1)
    return rms_norm(joint, scale.reshape(-1), epsilon=section.norm_epsilon).reshape(x.shape)


def _scale(section: DecoderSection, scale: jax.Array) -> jax.Array:
    return scale + 1 if section.norm_offset else scale


def check_layout(section: DecoderSection, ctx: ForwardContext, *, is_packed: bool) -> None:
    """Raise ConfigError for what attention in a ring cannot compute."""
    layout = ctx.layout
    if section.qk_norm and section.qk_norm_over == "heads" and layout.axes("heads"):
        raise ConfigError(
            f'model.qk_norm_over = "heads" and mesh.tensor = {layout.count("heads")}',
            "a norm over all heads needs them on one device",
            "--set mesh.tensor=1",
        )
    if not layout.is_ring or not layout.axes("seq"):
        return
    ring, gather = (
        f'mesh.context_method = "ring" with mesh.context = {layout.count("seq")}',
        "mesh.context_method=gather",
    )
    if ctx.training and section.dropout:
        raise ConfigError(
            f"{ring} and model.dropout = {section.dropout}",
            "dropout of attention's weights needs them all, and a ring never holds them",
            f"--set {gather}, or --set model.dropout=0",
        )
    for key in ("windows", "attention_scale", "attention_softcap"):
        if value := getattr(section, key):
            setting = list(value) if key == "windows" else value
            raise ConfigError(f"{ring} and model.{key} = {setting}", "a ring does not have it yet", f"--set {gather}")
    if is_packed:
        raise ConfigError(
            f"{ring}, and the data packs documents into sequences",
            "the ring's attention is over whole sequences, not within documents",
            f"--set {gather}",
        )


def with_own_kv_head(params: Params, layout: Layout, num_kv_heads: int) -> Params:
    """The params of attention with the one head of keys and values that this device's queries read.

    For meshes with more devices along `tensor` than such heads: several devices then compute the same head.
    """
    axes = layout.axes("kv_heads")
    head = layout.index(axes) * num_kv_heads // layout.size(axes)
    own = {name: params[name] for name in params if name.startswith(("key", "value")) and "norm" not in name}

    def of_head(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, head, 1, x.ndim - 2)

    return params | {name: map_outputs(of_head, weight) for name, weight in own.items()}


def output_product(x: jax.Array, weight: Any, bias: jax.Array | None, layout: Layout) -> jax.Array:
    """The product that ends attention or the MLP: the sum over devices along `tensor`, for each its own tokens."""
    if not layout.axes("tokens"):
        return layers.linear(x, weight, bias)
    y = layout.scatter_tokens(layers.linear(x, weight))
    return y if bias is None else y + bias
