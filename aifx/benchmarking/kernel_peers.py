"""Peers of each op from other libraries, which take the same operands as the op's implementations.

Each function here gives, for a call, those that can say the same, by name; tokamax only where it is installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_kernels._ops.decode_attention import gather_pages


def has_tokamax() -> bool:
    return importlib.util.find_spec("tokamax") is not None


def attention_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """jax.nn's and tokamax's attention, where they can say the same."""

    def peer(attention: Any, **options: Any) -> Callable[..., Any]:
        def run(call: Any, config: Any, q: Any, k: Any, v: Any, offset: Any, ids: Any) -> Any:
            mask = None if ids is None else (ids[:, None, :, None] == ids[:, None, None, :])
            return attention(q, k, v, mask=mask, scale=call.scale, is_causal=call.causal, **options), None

        return run

    if call.logit_softcap is not None or call.q_offset != 0:
        return {}
    window = None if call.window is None else (call.window - 1, 0 if call.causal else call.kv_len)
    peers = {"jax.nn": peer(jax.nn.dot_product_attention, local_window_size=window)}
    if has_tokamax() and call.window is None:
        peers["tokamax"] = peer(importlib.import_module("tokamax").dot_product_attention)
    return peers


def decode_attention_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """jax.nn's attention over rows that are put together first, where it can say the same."""

    def jax_nn(call: Any, config: Any, q: Any, k_pages: Any, v_pages: Any, page_table: Any, lengths: Any) -> Any:
        k, v = gather_pages(k_pages, page_table), gather_pages(v_pages, page_table)
        out = jax.nn.dot_product_attention(q[:, None], k, v, scale=call.scale, key_value_seq_lengths=lengths)
        return out[:, 0], None

    return {"jax.nn": jax_nn} if call.logit_softcap is None and call.window is None else {}


def norm_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """RMS norm as one writes it with jax.nn, which has none, and tokamax's."""

    def added(x: Any, residual: Any) -> tuple[Any, Any]:
        return (x, None) if residual is None else (x + residual, x + residual)

    def jax_nn(call: Any, config: Any, x: Any, scale: Any, bias: Any, residual: Any) -> Any:
        kept, total = added(x, residual)
        out = jax.nn.standardize(kept.astype("float32"), epsilon=call.epsilon) * scale
        return (out if bias is None else out + bias).astype(x.dtype), total

    def tokamax_norm(call: Any, config: Any, x: Any, scale: Any, bias: Any, residual: Any) -> Any:
        tokamax: Any = importlib.import_module("tokamax")
        kept, total = added(x, residual)
        out = tokamax.layer_norm(kept, scale, bias, epsilon=call.epsilon, subtract_mean=call.kind == "layer_norm")
        return out, total

    peers = {"jax.nn": jax_nn} if call.kind == "layer_norm" else {}
    return peers | {"tokamax": tokamax_norm} if has_tokamax() else peers


def quantized_matmul_peers(call: Any) -> dict[str, Callable[..., Any]]:
    """jax.nn's, which takes scales along k alone: those of the weight are repeated for each column."""

    def jax_nn(call: Any, config: Any, x: Any, weight: Any, x_scale: Any, weight_scale: Any) -> Any:
        columns = weight_scale.repeat(call.n // call.column_blocks, axis=1).T
        batch = (y[None] for y in (x, weight.T, x_scale, columns))
        scaled_matmul: Any = jax.nn.scaled_matmul
        return scaled_matmul(*batch, preferred_element_type=jax.numpy.dtype(call.out_dtype))[0]

    return {"jax.nn": jax_nn}


def three_products(call: Any) -> Callable[..., Any]:
    """The products that a loss and its gradients need: the logits, the gradients of x and of the weight.

    The vocabulary is rounded up to a multiple of 128, since rows of an odd length are multiplied slowly.
    """

    def program(primals: tuple[Any, Any], constants: Any, cotangents: Any) -> tuple[Any, Any]:
        x, weight = primals
        weight = jnp.pad(weight, ((0, 0), (0, -call.vocab % 128)))
        logits = x @ weight
        return logits @ weight.T, x.T @ logits

    return program


BOUNDS: dict[str, dict[str, Callable[[Any], Callable[..., Any]]]] = {
    "linear_cross_entropy": {"products": three_products}
}
"""Programs by op and name that take the arguments of the op's workload and do the part of it that nothing can avoid."""

PEERS: dict[str, Callable[[Any], dict[str, Callable[..., Any]]]] = {
    "attention": attention_peers,
    "decode_attention": decode_attention_peers,
    "linear_cross_entropy": lambda call: {},
    "rms_norm": norm_peers,
    "layer_norm": norm_peers,
    "quantized_matmul": quantized_matmul_peers,
    "swiglu": lambda call: {"jax.nn": lambda call, config, x, gate, up: jax.nn.silu(x @ gate) * (x @ up)},
    "rotary": lambda call: {},
}
