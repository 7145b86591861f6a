"""ResNet-18, -34, -50 and networks between them (He et al., arXiv 1512.03385), with group norm or frozen batch norm.

Group norm (Wu and He, arXiv 1803.08494) instead of batch norm: an image's answer does not depend on its neighbours, and
sums over micro-batches and devices stay sums. So do the stored statistics of frozen batch norm, which a network that
was trained elsewhere brings. The stride of a bottleneck is at its 3 x 3 convolution, as in PyTorch,
unless the section says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aifx.models.base import Head, Model
from aifx.models.resnet.features import (
    NORM_EPSILON,
    conv,
    conv_spec,
    frozen_norm_specs,
    max_pool,
    norm_specs,
    normalized,
    output_specs,
    pooled,
)
from aifx.models.resnet.section import ResnetSection
from aifx.nn import initializers, layers
from aifx.parallel.context import ForwardContext
from aifx.specs import Initializer, Params, Specs

BOTTLENECK = 4
"""Outputs of a bottleneck over its inner width."""

SHORTCUT = "shortcut"


class Convolution(NamedTuple):
    name: str
    size: int
    inputs: int
    outputs: int
    stride: int = 1


@dataclass(frozen=True)
class Block:
    """A residual block. If its shortcut is a convolution, that is the last one."""

    stage: str
    name: str
    convolutions: tuple[Convolution, ...]

    @property
    def outputs(self) -> int:
        return self.convolutions[-1].outputs

    @property
    def stride(self) -> int:
        return max(convolution.stride for convolution in self.convolutions)


class DeepResnet(Model):
    """A network from images `[rows, height, width, channels]` of any size and scale to `num_outputs` numbers each."""

    def __init__(self, section: ResnetSection, *, image_shape: tuple[int, int, int], num_outputs: int) -> None:
        self.section = section
        self.image_shape = image_shape
        self.num_outputs = num_outputs

    def specs(self) -> Specs:
        """Arrays by name: `stem/kernel`, `stages/<i>/blocks/<j>/first`, `first_norm`, ..., `shortcut`, `output`."""
        stem = self.section.channels[0]
        stages: Specs = {str(i): {"blocks": {}} for i in range(len(self.section.channels))}
        outputs = stem
        for block in self.blocks():
            arrays: Specs = {}
            last = [c.name for c in block.convolutions if c.name != SHORTCUT][-1]
            for convolution in block.convolutions:
                name, size, inputs, outputs, _ = convolution
                arrays[name] = conv_spec(size, inputs, outputs)
                # A block starts as its shortcut (Goyal et al., arXiv 1706.02677).
                scale = initializers.zeros if name == last else initializers.ones
                arrays[f"{name}_norm"] = self.norm_specs(outputs, scale)
            stages[block.stage]["blocks"][block.name] = arrays
        kernel = conv_spec(self.stem_size, self.section.num_planes(self.image_shape[2]), stem)
        return {
            "stem": {"kernel": kernel, "norm": self.norm_specs(stem)},
            "stages": stages,
            "output": output_specs(outputs, self.num_outputs),
        }

    def norm_specs(self, width: int, scale: Initializer = initializers.ones) -> Specs:
        return norm_specs(width, scale) if self.section.norm == "group" else frozen_norm_specs(width)

    def blocks(self) -> Iterator[Block]:
        """The blocks in order."""
        is_basic, inputs = self.section.block == "basic", self.section.channels[0]
        is_early = self.section.bottleneck_stride == "1x1"
        for i, (width, count) in enumerate(zip(self.section.channels, self.section.num_blocks, strict=True)):
            outputs = width if is_basic else BOTTLENECK * width
            for j in range(count):
                stride = 2 if i and not j else 1
                if is_basic:
                    inner = [Convolution("first", 3, inputs, width, stride), Convolution("second", 3, width, width)]
                else:
                    inner = [
                        Convolution("first", 1, inputs, width, stride if is_early else 1),
                        Convolution("second", 3, width, width, 1 if is_early else stride),
                        Convolution("third", 1, width, outputs),
                    ]
                if stride > 1 or inputs != outputs:
                    inner.append(Convolution(SHORTCUT, 1, inputs, outputs, stride))
                yield Block(str(i), str(j), tuple(inner))
                inputs = outputs

    @property
    def stem_size(self) -> int:
        """Side of the stem's kernel."""
        return 7 if self.section.stem == "7x7" else 3

    def flops(self, rows: int) -> int:
        """Forward and backward: 6 for each weight at each place where it is applied."""
        height, width, channels = self.image_shape
        outputs = self.section.channels[0]
        is_large = self.section.stem == "7x7"
        if is_large:
            height, width = _halved(height), _halved(width)
        total = height * width * self.stem_size**2 * self.section.num_planes(channels) * outputs
        if is_large:
            height, width = _halved(height), _halved(width)
        for block in self.blocks():
            before = height * width
            if block.stride > 1:
                height, width = _halved(height), _halved(width)
            for name, size, inputs, outputs, stride in block.convolutions:
                places = before if name == "first" and stride == 1 else height * width
                total += places * size**2 * inputs * outputs
        return 6 * rows * (total + outputs * self.num_outputs)

    def hidden(self, params: Params, batch: Mapping[str, jax.Array], ctx: ForwardContext) -> jax.Array:
        """Features `[rows, channels]` of `inputs` `[rows, height, width, channels]`."""
        x = normalized(batch["inputs"], self.section, params["output"]["weight"].dtype)
        is_large = self.section.stem == "7x7"
        x = conv(x, params["stem"]["kernel"], 2 if is_large else 1)
        x = jax.nn.relu(self.norm(params["stem"]["norm"], x))
        if is_large:
            x = max_pool(x, (3, 3), stride=2, padding=1)
        for block in self.blocks():
            x = self.block(params["stages"][block.stage]["blocks"][block.name], x, block)
        return layers.dropout(pooled(x, self.section), self.section.dropout, ctx)

    def block(self, params: Params, x: jax.Array, block: Block) -> jax.Array:
        """A residual block over x `[rows, height, width, channels]`."""
        shortcut, y = x, x
        for number, (name, *_, stride) in enumerate(block.convolutions):
            source = x if name == SHORTCUT or not number else jax.nn.relu(y)
            found = self.norm(params[f"{name}_norm"], conv(source, params[name], stride))
            shortcut, y = (found, y) if name == SHORTCUT else (shortcut, found)
        return jax.nn.relu(y + shortcut)

    def norm(self, params: Params, x: jax.Array) -> jax.Array:
        """Mean 0 and variance 1 over each group of channels of an image, or by stored ones of each channel, then scale
        and bias by channel."""
        if self.section.norm == "frozen_batch":
            factor = params["scale"] * jax.lax.rsqrt(layers.at_least_float32(params["variance"]) + NORM_EPSILON)
            moved: jax.Array = (layers.at_least_float32(x) - params["mean"]) * factor + params["bias"]
            return moved.astype(x.dtype)
        rows, height, width, channels = x.shape
        groups = math.gcd(self.section.norm_groups, channels)
        wide = layers.at_least_float32(x).reshape(rows, height, width, groups, channels // groups)
        mean = jnp.mean(wide, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(wide - mean), axis=(1, 2, 4), keepdims=True)
        y = ((wide - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)).reshape(x.shape)
        scaled: jax.Array = y * params["scale"] + params["bias"]
        return scaled.astype(x.dtype)

    def head(self, params: Params, ctx: ForwardContext) -> Head:
        return Head(params["output"]["weight"], params["output"]["bias"])


def _halved(size: int) -> int:
    """The side of an image after a stride of 2."""
    return (size + 1) // 2
