"""The arrays of a decoder."""

from __future__ import annotations

import math

from aifx.models.decoder.section import DecoderSection, attention_biases, head_dim, num_kv_heads
from aifx.nn import initializers
from aifx.nn.rotary import Rotary
from aifx.specs import LAYERS, ArraySpec, Initializer, Specs, stack_layer_specs

GATED = ("swiglu", "geglu_tanh")
INIT_STDDEV = 0.02  # GPT-2, openai/gpt-2 `src/model.py`


def decoder_specs(section: DecoderSection, vocab_size: int, max_seq_len: int) -> Specs:
    """Arrays by name: those of layer i are under `layers/<i>`, or one stacked set for all with `scan_layers`."""
    table = initializers.normal(INIT_STDDEV)
    embed_dim = section.embed_dim
    product = ((1,), (0,)) if section.tie_embeddings else None
    token = ArraySpec((vocab_size, embed_dim), ("vocab", "embed"), table, product=product, decay=True)
    specs: Specs = {"embedding": {"token": token}}
    if section.positions == "learned":
        specs["embedding"]["position"] = ArraySpec((max_seq_len, embed_dim), (None, "embed"), table, decay=True)
    layer = {"attention": _attention(section), "mlp": _mlp(section)}
    for half in ("attention", "mlp"):
        if section.norm_placement != "after":
            layer[f"{half}_norm"] = _norm(section)
        if section.norm_placement != "before":
            layer[f"{half}_out_norm"] = _norm(section)
    specs[LAYERS] = repeat_layer(layer, section)
    specs["final_norm"] = _norm(section)
    if not section.tie_embeddings:
        shape, axes, product = (embed_dim, vocab_size), ("embed", "vocab"), ((0,), (1,))
        specs["output"] = ArraySpec(shape, axes, table, product=product, decay=True)
    return specs


def repeat_layer(layer: Specs, section: DecoderSection) -> Specs:
    """The specs of all layers, which are alike."""
    if section.scan_layers:
        return stack_layer_specs(layer, section.num_layers)
    return {str(i): layer for i in range(section.num_layers)}


def window_rotary_of(section: DecoderSection) -> Rotary | None:
    """The rotary positions of layers with a window; None if they are those of the other layers."""
    if section.rope_window_theta is None:
        return None
    return Rotary(int(head_dim(section) * section.rope_fraction), section.rope_window_theta)


def rotary_of(section: DecoderSection) -> Rotary:
    return Rotary(
        int(head_dim(section) * section.rope_fraction),
        section.rope_theta,
        section.rope_scaling,
        section.rope_factor,
        section.rope_original_len or 0,
        section.rope_low_freq_factor,
        section.rope_high_freq_factor,
        section.rope_beta_slow,
        section.rope_beta_fast,
        section.rope_attention_factor,
    )


def _first_scale(section: DecoderSection) -> Initializer:
    return initializers.zeros if section.norm_offset else initializers.ones


def _norm(section: DecoderSection) -> Specs:
    shape, axes = (section.embed_dim,), ("embed",)
    scale = {"scale": ArraySpec(shape, axes, _first_scale(section))}
    return {**scale, "bias": ArraySpec(shape, axes, initializers.zeros)} if section.bias else scale


def _attention(section: DecoderSection) -> Specs:
    d, h, kv, width = section.embed_dim, section.num_heads, num_kv_heads(section), head_dim(section)
    inner = initializers.normal(INIT_STDDEV)

    def projection(heads: int, axis: str) -> ArraySpec:
        return ArraySpec((d, heads, width), ("embed", axis, "head_dim"), inner, matrix=((0,), (1, 2)), decay=True)

    specs: Specs = {
        "query": projection(h, "heads"),
        "key": projection(kv, "kv_heads"),
        "value": projection(kv, "kv_heads"),
        "output": ArraySpec(
            (h, width, d), ("heads", "head_dim", "embed"), _residual(section), matrix=((0, 1), (2,)), decay=True
        ),
    }
    if section.qk_norm:
        for name, heads, axis in (("query", h, "heads"), ("key", kv, "kv_heads")):
            is_joint = section.qk_norm_over == "heads"
            shape, axes = ((heads, width), (axis, "head_dim")) if is_joint else ((width,), ("head_dim",))
            specs[f"{name}_norm"] = ArraySpec(shape, axes, _first_scale(section))
    has_qkv, has_output = attention_biases(section)
    if has_qkv:
        specs["query_bias"] = ArraySpec((h, width), ("heads", "head_dim"), initializers.zeros)
        specs["key_bias"] = ArraySpec((kv, width), ("kv_heads", "head_dim"), initializers.zeros)
        specs["value_bias"] = ArraySpec((kv, width), ("kv_heads", "head_dim"), initializers.zeros)
    if has_output:
        specs["output_bias"] = ArraySpec((d,), ("embed",), initializers.zeros)
    return specs


def _mlp(section: DecoderSection) -> Specs:
    d, hidden = section.embed_dim, section.mlp_dim or 4 * section.embed_dim
    inner = ArraySpec((d, hidden), ("embed", "mlp"), initializers.normal(INIT_STDDEV), matrix=((0,), (1,)), decay=True)
    inner_bias = ArraySpec((hidden,), ("mlp",), initializers.zeros)
    down = ArraySpec((hidden, d), ("mlp", "embed"), _residual(section), matrix=((0,), (1,)), decay=True)
    specs: Specs = {"up": inner, "down": down}
    has_gate = section.activation in GATED
    if has_gate:
        specs["gate"] = inner
    if section.bias:
        specs["up_bias"] = inner_bias
        specs["down_bias"] = ArraySpec((d,), ("embed",), initializers.zeros)
        if has_gate:
            specs["gate_bias"] = inner_bias
    return specs


def _residual(section: DecoderSection) -> Initializer:
    """GPT-2's: what is added to the residual stream starts smaller the more layers add to it."""
    return initializers.normal(INIT_STDDEV / math.sqrt(2 * section.num_layers))
