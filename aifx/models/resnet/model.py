"""A small residual convolutional network for images of a fixed size."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from aifx.core.errors import ConfigError
from aifx.data.spec import DataSpec
from aifx.models.base import Head, Model
from aifx.models.resnet.deep import DeepResnet
from aifx.models.resnet.features import NORM_EPSILON, conv, conv_spec, norm_specs, normalized, output_specs, pooled
from aifx.models.resnet.section import ResnetSection
from aifx.nn import layers
from aifx.parallel.context import ForwardContext
from aifx.specs import Params, Specs
from jax_kernels._ops.norms import layer_norm

KERNEL = 3


class Resnet(Model):
    """A network from images `[rows, height, width, channels]` of any scale to `num_outputs` numbers each.

    A stage widens the channels, halves the image by maxima and refines it in residual blocks. The head reads the mean
    over what is left of the image. Raises ConfigError if the images are too small to be halved that often.
    """

    def __init__(self, section: ResnetSection, *, image_shape: tuple[int, int, int], num_outputs: int) -> None:
        self.section = section
        self.image_shape = image_shape
        self.num_outputs = num_outputs
        stages, height, width = len(section.channels), *image_shape[:2]
        if min(height, width) < 2**stages:
            raise ConfigError(
                f"model.channels has {stages} stages, too many for images of {height} x {width}",
                f"each stage halves the image, so {stages} stages need {2**stages} pixels a side",
                "give model.channels fewer numbers",
            )

    def specs(self) -> Specs:
        """Arrays by name: `stages/<i>/widen`, `stages/<i>/blocks/<j>/first`, ..., `final_norm`, `output`."""
        stages: Specs = {}
        inputs, blocks = self.section.num_planes(self.image_shape[2]), self.section.num_blocks
        for i, width in enumerate(self.section.channels):
            block = {
                "first_norm": norm_specs(width),
                "first": conv_spec(KERNEL, width, width),
                "second_norm": norm_specs(width),
                "second": conv_spec(KERNEL, width, width, gain=1.0 / math.sqrt(sum(blocks))),
            }
            stages[str(i)] = {
                "widen": conv_spec(KERNEL, inputs, width),
                "norm": norm_specs(width),
                "blocks": {str(j): block for j in range(blocks[i])},
            }
            inputs = width
        return {"stages": stages, "final_norm": norm_specs(inputs), "output": output_specs(inputs, self.num_outputs)}

    def flops(self, rows: int) -> int:
        """Forward and backward: 6 for each weight at each place where it is applied."""
        height, width, channels = self.image_shape
        total, inputs = 0, self.section.num_planes(channels)
        for outputs, blocks in zip(self.section.channels, self.section.num_blocks, strict=True):
            total += height * width * KERNEL**2 * inputs * outputs
            height, width, inputs = height // 2, width // 2, outputs
            total += 2 * blocks * height * width * KERNEL**2 * outputs**2
        return 6 * rows * (total + inputs * self.num_outputs)

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        """Features `[rows, channels]` of `inputs` `[rows, height, width, channels]`."""
        x = normalized(batch["inputs"], self.section, params["output"]["weight"].dtype)
        for stage in _in_order(params["stages"]):
            x = jax.nn.relu(_norm(stage["norm"], _halve(conv(x, stage["widen"]))))
            for block in _in_order(stage["blocks"]):
                x = x + _residual(block, x)
        features = layer_norm(pooled(x, self.section), **params["final_norm"], epsilon=NORM_EPSILON)
        return layers.dropout(features, self.section.dropout, ctx)

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        return Head(params["output"]["weight"], params["output"]["bias"])


def make(section: ResnetSection, data: DataSpec) -> Resnet | DeepResnet:
    """The network for images as `data` describes them: one output per class, or one per number to predict."""
    height, width, channels = data.fields["inputs"].shape
    section.check_channels(channels)
    num_outputs = len(data.classes) or data.target_size
    network = Resnet if section.block == "small" else DeepResnet
    return network(section, image_shape=(height, width, channels), num_outputs=num_outputs)


def _in_order(numbered: Params) -> list[Params]:
    return [numbered[str(i)] for i in range(len(numbered))]


def _norm(params: Params, x: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over each image, then scale and bias by channel: no batch statistics, so that an image's
    answer does not depend on its neighbours."""
    wide = layers.at_least_float32(x)
    mean = jnp.mean(wide, axis=(1, 2, 3), keepdims=True)
    variance = jnp.mean(jnp.square(wide - mean), axis=(1, 2, 3), keepdims=True)
    y: jax.Array = (wide - mean) * jax.lax.rsqrt(variance + NORM_EPSILON) * params["scale"] + params["bias"]
    return y.astype(x.dtype)


def _residual(params: Params, x: jax.Array) -> jax.Array:
    y = conv(jax.nn.relu(_norm(params["first_norm"], x)), params["first"])
    return conv(jax.nn.relu(_norm(params["second_norm"], y)), params["second"])


def _halve(x: jax.Array) -> jax.Array:
    """The maximum of each 2 x 2 pixels; an odd last row or column is dropped."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return jnp.max(x.reshape(batch, height // 2, 2, width // 2, 2, channels), axis=(2, 4))
