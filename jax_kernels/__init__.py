"""Ops for JAX with several implementations each, chosen per call and device.

`import jax_kernels` loads nothing else: an op is imported when it is first used. docs/api.md documents them; everything
else is private.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_kernels._ops.attention import attention, attention_with_lse
    from jax_kernels._ops.decode_attention import decode_attention
    from jax_kernels._ops.linear_cross_entropy import linear_cross_entropy
    from jax_kernels._ops.norms import layer_norm, rms_norm
    from jax_kernels._ops.quantized_matmul import quantized_matmul
    from jax_kernels._ops.rotary import rotary
    from jax_kernels._ops.swiglu import swiglu

__all__ = [
    "attention",
    "attention_with_lse",
    "decode_attention",
    "layer_norm",
    "linear_cross_entropy",
    "quantized_matmul",
    "rms_norm",
    "rotary",
    "swiglu",
]

_PACKAGES = {"attention_with_lse": "attention", "layer_norm": "norms", "rms_norm": "norms"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}._ops.{_PACKAGES.get(name, name)}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
