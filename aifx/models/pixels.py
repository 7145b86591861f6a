"""Pixels as numbers that a network computes with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from aifx.models.image_section import ImageModelSection
from aifx.nn import layers

LARGEST = 255
"""A pixel's largest value."""


def normalized(images: jax.Array, section: ImageModelSection, dtype: DTypeLike) -> jax.Array:
    """Images `[rows, height, width, channels]` with pixels from 0 to 255 as numbers of `dtype`.

    They are normalized by the section's mean and deviation of each channel, otherwise each image by its own.
    """
    if not section.pixel_mean:
        return layers.centred(images, dtype)
    mean, std = np.array(section.pixel_mean), np.array(section.pixel_std)
    x = images.astype(jnp.float32) * np.float32(1 / (LARGEST * std)) - np.float32(mean / std)
    return x.astype(dtype)
