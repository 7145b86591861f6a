"""The MLP of a decoder's layer, and its norms."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from aifx.models.decoder.divided import joined
from aifx.models.decoder.fused import GATE_UP
from aifx.models.decoder.section import DecoderSection
from aifx.models.decoder.specs import GATED
from aifx.nn import layers
from aifx.parallel.layout import Layout
from aifx.specs import Params
from jax_kernels._ops.norms import layer_norm, rms_norm
from jax_kernels._ops.swiglu import swiglu


def mlp(section: DecoderSection, params: Params, x: jax.Array, layout: Layout) -> jax.Array:
    """Of x `[tokens, embed]`; on a mesh of own tokens."""
    x = layout.gather_tokens(x)
    is_gated = section.activation in GATED
    if section.activation == "swiglu" and not section.bias and isinstance(params.get("up"), jax.Array):
        return joined(swiglu(x, params["gate"], params["up"]), params["down"], None, layout)
    if GATE_UP in params:
        gate, hidden = jnp.split(layers.linear(x, params[GATE_UP], params.get(f"{GATE_UP}_bias")), 2, axis=1)
    else:
        hidden = layers.linear(x, params["up"], params.get("up_bias"))
        gate = layers.linear(x, params["gate"], params.get("gate_bias")) if is_gated else hidden
    if is_gated:
        hidden *= (jax.nn.silu if section.activation == "swiglu" else layers.gelu_tanh)(gate)
    else:
        hidden = layers.gelu(hidden) if section.activation == "gelu" else layers.gelu_tanh(hidden)
    return joined(hidden, params["down"], params.get("down_bias"), layout)


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
