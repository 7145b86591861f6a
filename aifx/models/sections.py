"""Keys of `[model]` that several families share: those of stacked layers, which plans may change, and of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field

from aifx.config import Config
from aifx.config.sections import Conflict, ModelSection, Remat
from aifx.core.errors import ConfigError


@runtime_checkable
class LayeredSection(Protocol):
    """A `[model]` of layers that are alike.

    Attributes:
        scan_layers: compile one layer and loop over it.
        remat: what the backward pass of a layer computes again.
    """

    @property
    def scan_layers(self) -> bool: ...

    @property
    def remat(self) -> Remat: ...


class ImageModelSection(ModelSection):
    """A model of images."""

    pixel_mean: tuple[Annotated[float, Field(ge=-1000.0, le=1000.0)], ...] = Field(
        (),
        description="Mean of each channel, of pixels from 0 to 1, by which and by pixel_std images are normalized. "
        "When empty: each image by its own.",
    )
    pixel_std: tuple[Annotated[float, Field(gt=0.0, le=1000.0)], ...] = Field(
        (), description="Standard deviation of each channel, likewise."
    )

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        if len(self.pixel_mean) != len(self.pixel_std):
            yield Conflict(
                ("model.pixel_mean", "model.pixel_std"),
                f"model.pixel_mean has {len(self.pixel_mean)} numbers and model.pixel_std {len(self.pixel_std)}",
                "each has one for each channel",
            )

    def check_channels(self, channels: int) -> None:
        """Raise ConfigError if images of so many channels cannot be normalized."""
        if len(self.pixel_mean) not in (0, channels):
            what = f"model.pixel_mean has {len(self.pixel_mean)} numbers, and images have {channels} channels"
            raise ConfigError(what, "each channel has a mean", f"data.channels = {len(self.pixel_mean)}")
