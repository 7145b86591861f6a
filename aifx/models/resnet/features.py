"""The parts that residual networks share: normalized images, convolutions and their arrays, pooling."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from aifx.models.resnet.section import ResnetSection
from aifx.nn import initializers, layers
from aifx.specs import ArraySpec, Initializer, Specs

NORM_EPSILON = 1e-5

CONTRAST_EPSILON = 1e-3
"""Added to the variance around a pixel. That of the whole image is around 1."""


def normalized(images: jax.Array, section: ResnetSection, dtype: DTypeLike) -> jax.Array:
    """Images `[rows, height, width, channels]` as normalized numbers `[rows, height, width, planes]` of `dtype`.

    Around each pixel: local contrast normalization (Jarrett et al., "What is the Best Multi-Stage Architecture for
    Object Recognition?", 2009), with a box for the Gaussian. At the edges, the surroundings are mirrored. It does not
    say how bright a picture is. With `pixel_mean`, it follows the pixels as further planes.
    """
    if not section.local_contrast:
        return layers.normalized_pixels(images, section.pixel_mean, section.pixel_std, dtype)
    plain = layers.normalized_pixels(images, section.pixel_mean, section.pixel_std, jnp.float32)
    x = plain - _mean_around(plain, section.local_contrast)
    variance = _mean_around(jnp.square(x), section.local_contrast)
    local = x * jax.lax.rsqrt(variance + CONTRAST_EPSILON)
    return (jnp.concatenate([plain, local], axis=-1) if section.pixel_mean else local).astype(dtype)


def _mean_around(x: jax.Array, reach: int) -> jax.Array:
    """The mean over the square that reaches so many pixels from each one, one direction after the other."""
    for axis in (1, 2):
        padding, window = [(0, 0)] * 4, [1] * 4
        padding[axis], window[axis] = (reach, reach), 2 * reach + 1
        padded = jnp.pad(x, padding, mode="symmetric")
        x = jax.lax.reduce_window(padded, 0.0, jax.lax.add, window, (1, 1, 1, 1), "VALID") / (2 * reach + 1)
    return x


def pooled(x: jax.Array, section: ResnetSection) -> jax.Array:
    """One number per row and channel of x `[rows, height, width, channels]`."""
    if section.pooling == "mean":
        return jnp.mean(x, axis=(1, 2))
    return max_pool(x, x.shape[1:3], stride=1, padding=0)[:, 0, 0]


def max_pool(x: jax.Array, window: tuple[int, ...], stride: int, padding: int) -> jax.Array:
    """The maximum of each `window` (height, width) of x, at every `stride` pixels."""
    # The gradient of `jnp.max` divides by the number of elements that equal the maximum. XLA may compute these again in
    # another fusion and round otherwise, so that none does: 0 / 0. That of a window's maximum selects one element.
    lowest = np.array(-np.inf, x.dtype)  # no tracer, by which JAX knows the maximum's gradient
    edge = (padding, padding)
    found: jax.Array = jax.lax.reduce_window(
        x, lowest, jax.lax.max, (1, *window, 1), (1, stride, stride, 1), ((0, 0), edge, edge, (0, 0))
    )
    return found


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
