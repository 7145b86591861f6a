"""What a decoder does if devices divide its layers or its sequences."""

from __future__ import annotations

from typing import Any

import jax

from aifx.core.errors import ConfigError
from aifx.models.decoder.section import DecoderSection
from aifx.nn import layers
from aifx.nn.lora import map_outputs
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout
from aifx.specs import Params


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
            shown = list(value) if key == "windows" else value
            raise ConfigError(f"{ring} and model.{key} = {shown}", "a ring does not have it yet", f"--set {gather}")
    if is_packed:
        raise ConfigError(
            f"{ring}, and the data packs documents into sequences",
            "the ring's attention is over whole sequences, not within documents",
            f"--set {gather}",
        )


def with_own_kv_head(params: Params, layout: Layout, num_kv_heads: int) -> Params:
    """The params of attention with the one head of keys and values that this device's queries read."""
    axes = layout.axes("kv_heads")
    head = layout.index(axes) * num_kv_heads // layout.size(axes)
    own = {name: params[name] for name in params if name.startswith(("key", "value")) and "norm" not in name}

    def of_head(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, head, 1, x.ndim - 2)

    return params | {name: map_outputs(of_head, weight) for name, weight in own.items()}


def joined(x: jax.Array, weight: Any, bias: jax.Array | None, layout: Layout) -> jax.Array:
    """The product that ends a half of a layer: the sum over devices along `tensor`, for each its own tokens."""
    if not layout.axes("tokens"):
        return layers.linear(x, weight, bias)
    y = layout.scatter_tokens(layers.linear(x, weight))
    return y if bias is None else y + bias
