"""`[model]` of residual networks, and named ones (presets), whose values apply where the project sets none.

Source of the presets: He et al., "Deep Residual Learning for Image Recognition" (arXiv 1512.03385), table 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from aifx.config import Config
from aifx.config.sections import Conflict, Fraction, NonNegativeInt, PositiveInt
from aifx.models.sections import ImageModelSection


class ResnetSection(ImageModelSection):
    """A residual convolutional network."""

    block: Literal["small", "basic", "bottleneck"] = Field(
        "small",
        description="small: halves the image by maxima, for small images. basic and bottleneck: the blocks of "
        "ResNet-18 and ResNet-50.",
    )
    channels: tuple[PositiveInt, ...] = Field(
        (32, 64), description="Width of each stage. Each stage of small halves the image, and each but the first of "
        "the others.", min_length=1
    )  # fmt: skip
    blocks_per_stage: PositiveInt | tuple[PositiveInt, ...] = Field(
        1, description="Residual blocks of a stage: one number for all stages, or one for each."
    )
    stem: Literal["7x7", "3x3"] = Field(
        "7x7",
        description="First convolution of basic and bottleneck. 7x7: also makes the image four times smaller. "
        "3x3: keeps its size, for images of less than about 64 pixels.",
    )
    bottleneck_stride: Literal["3x3", "1x1"] = Field(
        "3x3", description="Convolution of a bottleneck that halves the image. 1x1: the first, as He et al. had it."
    )
    norm: Literal["group", "frozen_batch"] = Field(
        "group",
        description="Norms of basic and bottleneck. frozen_batch: by stored statistics that no training changes, "
        "for imported models.",
    )
    norm_groups: PositiveInt = Field(
        32,
        description="Groups of channels that norm = group normalizes together: "
        "their greatest common divisor with the width.",
    )
    local_contrast: NonNegativeInt = Field(
        0,
        description="Pixels around each one whose mean and deviation normalize it, so that uneven light does not "
        "matter; 0 normalizes by those of the whole image. With pixel_mean, the network reads each pixel both ways.",
    )
    pooling: Literal["mean", "max"] = Field(
        "mean",
        description="What the output reads of each feature. mean: its mean over the image. max: its maximum, which "
        "does not fade if what shows it is small.",
    )
    dropout: Fraction = Field(0.0, description="Share of features dropped before the output, in training.")

    def num_planes(self, channels: int) -> int:
        """Numbers per pixel that the first convolution reads."""
        return 2 * channels if self.local_contrast and self.pixel_mean else channels

    @property
    def num_blocks(self) -> tuple[int, ...]:
        """Residual blocks of each stage."""
        blocks = self.blocks_per_stage
        return (blocks,) * len(self.channels) if isinstance(blocks, int) else blocks

    def computation(self) -> dict[str, Any]:
        """As `ModelSection.computation`, with the blocks of each stage."""
        return super().computation() | {"blocks_per_stage": self.num_blocks}

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from super().conflicts(config)
        if len(self.num_blocks) != len(self.channels):
            yield Conflict(
                ("model.blocks_per_stage", "model.channels"),
                f"model.blocks_per_stage has {len(self.num_blocks)} numbers and model.channels {len(self.channels)}",
                "each stage has a width and a number of blocks",
            )


_DEEP: dict[str, Any] = {"channels": [64, 128, 256, 512], "stem": "7x7", "norm_groups": 32}

PRESETS: dict[str, dict[str, Any]] = {
    "resnet-18": {**_DEEP, "block": "basic", "blocks_per_stage": [2, 2, 2, 2]},
    "resnet-34": {**_DEEP, "block": "basic", "blocks_per_stage": [3, 4, 6, 3]},
    "resnet-50": {**_DEEP, "block": "bottleneck", "blocks_per_stage": [3, 4, 6, 3]},
}
