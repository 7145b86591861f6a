"""A decoder and AdamW in plain JAX, written from the papers: no code shared with what is tested.

Matrices are by name, `[inputs, outputs]`. Layers: RMS norm, rotary positions (arXiv 2104.09864), SwiGLU, tied output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MATRICES = ("attention/query", "attention/key", "attention/value", "attention/output", "mlp/gate", "mlp/up", "mlp/down")


def log_probabilities(weights: Mapping[str, Any], tokens: Any, num_layers: int, num_heads: int) -> jax.Array:
    """The logits of each next token, `[batch, seq, vocab]`."""
    x = jnp.asarray(weights["embedding/token"])[tokens]
    width = x.shape[-1] // num_heads
    for i in range(num_layers):
        w = {name: weights[f"layers/{i}/{name}"] for name in (*MATRICES, "attention_norm/scale", "mlp_norm/scale")}
        y = normed(x, w["attention_norm/scale"])
        q, k, v = (jnp.reshape(y @ w[f"attention/{n}"], (*y.shape[:2], -1, width)) for n in ("query", "key", "value"))
        q, k = turned(q), turned(k)
        k, v = (jnp.repeat(one, num_heads // one.shape[2], axis=2) for one in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width)
        seen = np.tril(np.ones(scores.shape[-2:], bool))
        shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        x = x + jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(x.shape) @ w["attention/output"]
        y = normed(x, w["mlp_norm/scale"])
        gate = y @ w["mlp/gate"]
        x = x + (gate * jax.nn.sigmoid(gate) * (y @ w["mlp/up"])) @ w["mlp/down"]
    return jax.nn.log_softmax(normed(x, weights["final_norm/scale"]) @ weights["embedding/token"].T)


def normed(x: jax.Array, scale: Any) -> jax.Array:
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * scale


def turned(x: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def with_adapters(base: Mapping[str, Any], adapters: Mapping[str, tuple[Any, Any]], scale: float) -> dict[str, Any]:
    """W + scale * A B, equation 3 of arXiv 2106.09685."""
    return {**base, **{name: base[name] + scale * a @ b for name, (a, b) in adapters.items()}}


class PlainAdamW:
    """Algorithm 2 of arXiv 1711.05101, with the gradient clipped to a norm of 1 and a constant rate."""

    def __init__(self, rate: float, decay: float) -> None:
        self.rate, self.decay, self.step = rate, decay, 0
        self.means: Any = None

    def __call__(self, weights: Any, gradients: Any) -> Any:
        self.step += 1
        norm = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradients)))
        gradients = jax.tree.map(lambda g: np.asarray(g, np.float64) / max(norm, 1.0), gradients)
        if self.means is None:
            self.means = (jax.tree.map(np.zeros_like, gradients),) * 2
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, self.means[0], gradients)
        second = jax.tree.map(lambda m, g: 0.95 * m + 0.05 * g**2, self.means[1], gradients)
        self.means = first, second

        def updated(w: Any, m: Any, v: Any) -> Any:
            ratio = m / (1 - 0.9**self.step) / (np.sqrt(v / (1 - 0.95**self.step)) + 1e-8)
            return np.asarray(w - self.rate * (ratio + self.decay * w), np.float32)

        return jax.tree.map(updated, weights, first, second)
