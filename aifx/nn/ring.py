"""Causal attention over a sequence that devices share, without any device ever holding all keys and values.

Devices have pieces of a sequence in zigzag order (`aifx.parallel.mesh.zigzag`). Keys and values go round the devices,
and partial results combine by their log-sum-exp (Liu et al. 2023, "Ring Attention", arXiv 2310.01889). The way back
sends them round again with their gradients, so that nothing is kept of them.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_kernels._ops.attention import attention_with_lse

Partial: TypeAlias = tuple[Array, Array]
"""A result `[batch, len, heads, head_dim]`, and the log-sum-exp of its scores `[batch, heads, len]`."""


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def ring_attention(q: Array, k: Array, v: Array, axes: tuple[str, ...]) -> Array:
    """Causal attention of this device's queries over the keys of all devices along `axes`, as q.

    q `[batch, len, heads, head_dim]`, k and v `[batch, len, kv_heads, head_dim]`: the steps of a device.
    """
    return _forward(q, k, v, axes)[0]


def _forward(q: Array, k: Array, v: Array, axes: tuple[str, ...]) -> tuple[Array, Any]:
    own, count = lax.axis_index(axes), lax.axis_size(axes)
    total = attention_with_lse(q, k, v, causal=True)
    total = total[0].astype(jnp.float32), total[1]
    kv = k, v
    for turn in range(1, count):
        kv = _passed_on(*kv, axes=axes)
        is_before = own >= turn  # these keys come from a device whose first piece is earlier
        total = _combined(total, lax.cond(is_before, _of_early_keys, _of_late_queries, q, *kv))
    out = total[0].astype(q.dtype)
    return out, (q, k, v, out, total[1])


def _backward(axes: tuple[str, ...], residuals: Any, d_out: Array) -> tuple[Array, Array, Array]:
    q, k, v, out, lse = residuals
    own, count = lax.axis_index(axes), lax.axis_size(axes)
    lean = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)  # [batch, len, heads]

    def gradients(compute: Any, *operands: Array) -> tuple[Array, ...]:
        (part, part_lse), pull = jax.vjp(compute, *operands)
        share = jnp.exp(part_lse - lse).swapaxes(1, 2)  # of this part in the result; 0 where it saw nothing
        d_part = share[..., None] * d_out
        d_lse = share * (jnp.sum(d_out.astype(jnp.float32) * part.astype(jnp.float32), axis=-1) - lean)
        found = pull((d_part.astype(part.dtype), d_lse.swapaxes(1, 2).astype(part_lse.dtype)))
        return tuple(x.astype(jnp.float32) for x in found)

    d_q, *d_kv = gradients(partial(attention_with_lse, causal=True), q, k, v)
    kv = k, v
    for turn in range(1, count):
        kv, d_kv = _passed_on(*kv, axes=axes), list(_passed_on(*d_kv, axes=axes))
        both = partial(gradients, _of_early_keys), partial(gradients, _of_late_queries)
        more_q, *more_kv = lax.cond(own >= turn, *both, q, *kv)
        d_q, d_kv = d_q + more_q, [x + more for x, more in zip(d_kv, more_kv, strict=True)]
    d_k, d_v = _passed_on(*d_kv, axes=axes)  # home again
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype)


ring_attention.defvjp(_forward, _backward)


def _of_early_keys(q: Array, k: Array, v: Array) -> Partial:
    """All queries see the first piece of the keys, and none of the last."""
    half = k.shape[1] // 2
    return attention_with_lse(q, k[:, :half], v[:, :half])


def _of_late_queries(q: Array, k: Array, v: Array) -> Partial:
    """The last piece of the queries sees all keys, and the first piece none."""
    half = q.shape[1] // 2
    out, lse = attention_with_lse(q[:, half:], k, v)
    return jnp.pad(out, ((0, 0), (half, 0), (0, 0), (0, 0))), jnp.pad(
        lse, ((0, 0), (0, 0), (half, 0)), constant_values=-jnp.inf
    )


def _combined(one: Partial, other: Partial) -> Partial:
    lse = jnp.logaddexp(one[1], other[1])
    shares = (jnp.exp(part[1] - lse).swapaxes(1, 2)[..., None] for part in (one, other))
    return sum(share * part[0] for share, part in zip(shares, (one, other), strict=True)), lse  # type: ignore[return-value]


def _passed_on(k: Array, v: Array, *, axes: tuple[str, ...]) -> tuple[Array, Array]:
    """What the device before had of keys and values, or of their gradients."""
    count = lax.axis_size(axes)
    following = [(i, (i + 1) % count) for i in range(count)]
    return lax.ppermute(k, axes, following), lax.ppermute(v, axes, following)
