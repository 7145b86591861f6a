"""NVIDIA's own attention, through `jax.nn.dot_product_attention`: what every kernel for a GPU is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.mask import SegmentIds
from jax_kernels.implementations import Config, Device, is_interpreting


def attention(
    call: Call,
    config: Config,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    q_offset: jax.Array | None,
    segment_ids: SegmentIds | None,
) -> tuple[jax.Array, None]:
    """As `xla.attention`, without the log-sum-exp: cuDNN's has the precision of q and no gradient, so that
    `unsupported_reason` sends calls that return it elsewhere.

    Segments become a mask `[batch, 1, q_len, kv_len]`. cuDNN's packed layout takes offsets instead, which cannot say
    everything that `segment_ids` can: a segment may be in several pieces, and there may be any number of them.
    """
    mask, window = None, None if call.window is None else (call.window - 1, 0)
    if segment_ids is not None:
        mask, window = call.mask(None, segment_ids).block(0, call.q_len, 0, call.kv_len), None
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        mask=mask,
        scale=call.scale,
        is_causal=call.causal,
        local_window_size=window,
        implementation="cudnn",
    )
    return out, None


def unsupported_reason(call: Call, device: Device) -> str | None:
    """The reason that cuDNN does not support this call without a mask; None if it does."""
    return _first_reason(call, device, {"segment ids": call.has_segments})


def unsupported_reason_masked(call: Call, device: Device) -> str | None:
    """The reason that cuDNN does not support this call with a mask; None if it does."""
    checks = {
        "no segment ids": not call.has_segments,
        # JAX lowers the scores that a mask hides, by 2**41 in bfloat16.
        "float16, whose hidden scores are lowered by 32,768 alone": call.dtype == "float16",
        "an odd length": call.q_len % 2 or call.kv_len % 2,
    }
    return _first_reason(call, device, checks)


def _first_reason(call: Call, device: Device, further: Mapping[str, Any]) -> str | None:
    """The first of the reasons that JAX states in `check_is_flash_attention`, of our meaning, or of `further`."""
    if device.platform != "gpu" or device.compute_capability is None:
        return "it is for NVIDIA GPUs"
    if is_interpreting():
        return "it has no interpreter"
    if device.compute_capability < (8, 0):
        return "it needs compute capability 8.0"
    widest = 256 if device.compute_capability >= (9, 0) else 128
    checks = {
        f"{call.dtype} is neither float16 nor bfloat16": call.dtype not in ("float16", "bfloat16"),
        f"head_dim {call.head_dim} is no multiple of 8 up to {widest}": call.head_dim % 8 or call.head_dim > widest,
        "an empty array": call.is_empty,
        "its log-sum-exp has no gradient": call.return_lse,
        **further,
        "logit_softcap": call.logit_softcap is not None,
        "scale is not positive": call.scale <= 0.0,  # nothing says that the maximum is taken after scaling
        "q_offset": call.q_offset != 0,
        "a window without a causal mask": call.window is not None and not call.causal,
        "a causal mask over lengths that differ": call.causal and call.q_len != call.kv_len,
    }
    return next((reason for reason, holds in checks.items() if holds), None)
