"""What a decoder does if devices divide its layers or its sequences."""

from __future__ import annotations

from typing import Any

import jax

from aifx.core.errors import ConfigError
from aifx.models.decoder.section import DecoderSection
from aifx.nn import layers
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.specs import Params


def check_layout(section: DecoderSection, ctx: ForwardContext, *, is_packed: bool) -> None:
    """Raise ConfigError for what cannot be computed if devices divide sequences or layers."""
    layout = ctx.layout
    if ctx.training and section.dropout and (layout.axes("tokens") or layout.axes("seq")):
        raise ConfigError(
            f"model.dropout = {section.dropout} on the mesh {layout.degrees}",
            "dropout is drawn for whole rows, and devices along tensor and context have parts of them",
            "--set model.dropout=0, or --set mesh.tensor=1 --set mesh.context=1",
        )
    if is_packed and layout.axes("seq"):
        raise ConfigError(
            f"the data packs documents into sequences, and mesh.context = {layout.count('seq')} divides these",
            "attention within documents needs whole sequences on a device",
            "--set mesh.context=1",
        )


def with_own_kv_head(params: Params, layout: Layout, num_kv_heads: int) -> Params:
    """The params of attention with the one head of keys and values that this device's queries read."""
    axes = layout.axes("kv_heads")
    head = layout.index(axes) * num_kv_heads // layout.size(axes)
    own = {name: params[name] for name in params if name.startswith(("key", "value")) and "norm" not in name}
    return params | {n: jax.lax.dynamic_slice_in_dim(w, head, 1, w.ndim - 2) for n, w in own.items()}


def joined(x: jax.Array, weight: Any, bias: jax.Array | None, layout: Layout) -> jax.Array:
    """The product that ends a half of a layer: the sum over devices along `tensor`, for each its own tokens."""
    if not layout.axes("tokens"):
        return layers.linear(x, weight, bias)
    y = layout.scatter_tokens(layers.linear(x, weight))
    return y if bias is None else y + bias
