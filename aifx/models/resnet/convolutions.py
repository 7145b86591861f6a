"""Convolutions of images `[rows, height, width, channels]`, and the arrays that they need."""

from __future__ import annotations

import math

import jax

from aifx.nn import initializers
from aifx.specs import ArraySpec, Initializer, Specs

NORM_EPSILON = 1e-5


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """x convolved with a kernel `[size, size, inputs, outputs]` of an odd size, every `stride` pixels.

    Pads by size // 2 on each side, as PyTorch's networks do: an image of any size stays one.
    """
    padding = [(size // 2, size // 2) for size in kernel.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def conv_spec(size: int, inputs: int, outputs: int, gain: float = 1.0) -> ArraySpec:
    """A kernel `[size, size, inputs, outputs]`, first values as He et al. (arXiv 1502.01852) for rectified inputs."""
    init: Initializer = initializers.normal(gain * math.sqrt(2.0 / (size**2 * inputs)))
    shape, axes = (size, size, inputs, outputs), (None, None, None, "embed")
    return ArraySpec(shape, axes, init, matrix=((0, 1, 2), (3,)), decay=True)


def norm_specs(width: int, scale: Initializer = initializers.ones) -> Specs:
    return {
        "scale": ArraySpec((width,), ("embed",), scale),
        "bias": ArraySpec((width,), ("embed",), initializers.zeros),
    }


def frozen_norm_specs(width: int) -> Specs:
    """A norm by stored statistics, none of whose arrays is trained."""
    firsts = {
        "scale": initializers.ones,
        "bias": initializers.zeros,
        "mean": initializers.zeros,
        "variance": initializers.ones,
    }
    return {name: ArraySpec((width,), ("embed",), init, kind="buffer", is_exact=True) for name, init in firsts.items()}


def output_specs(inputs: int, num_outputs: int) -> Specs:
    """The head."""
    return {
        "weight": ArraySpec((inputs, num_outputs), ("embed", None), initializers.normal(0.02), decay=True),
        "bias": ArraySpec((num_outputs,), (None,), initializers.zeros),
    }
