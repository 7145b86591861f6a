"""`[model]` of vision transformers, and named ones (presets), whose values apply where the project sets none.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929), table 1, for ViT-B; Touvron et al.,
"Training data-efficient image transformers" (arXiv 2012.12877), table 1, for the width of ViT-S.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from aifx.config import Config
from aifx.config.sections import ROUNDING, Conflict, Fraction, PositiveFloat, PositiveInt, Remat, setting
from aifx.models.sections import ImageModelSection


class VitSection(ImageModelSection):
    """A vision transformer."""

    patch_size: PositiveInt = Field(4, description="Side of a patch in pixels; it divides the image's sides.")
    num_layers: PositiveInt = Field(6, description="Transformer blocks.")
    embed_dim: PositiveInt = Field(128, description="Width of the residual stream.")
    num_heads: PositiveInt = Field(4, description="Attention heads.")
    mlp_dim: PositiveInt | None = Field(None, description="Hidden width of the MLP; 4 x embed_dim when not set.")
    norm_epsilon: PositiveFloat = Field(1e-6, description="Added to the variance.")
    dropout: Fraction = Field(
        0.0, description="Share of features dropped after the embedding and at the end of each block half, in training."
    )
    scan_layers: bool = Field(
        False,
        description="Compile one layer and loop over it: compiles faster, same checkpoint.",
        json_schema_extra=ROUNDING,
    )
    remat: Remat = setting(
        "none",
        "Recompute on the way back, for less memory and more time: full is everything, dots all but matrix products.",
        ROUNDING,
    )

    def computation(self) -> dict[str, Any]:
        """As `ModelSection.computation`, with the width of the MLP that applies if none is set."""
        return super().computation() | {"mlp_dim": self.mlp_dim or 4 * self.embed_dim}

    def conflicts(self, config: Config) -> Iterator[Conflict]:
        yield from super().conflicts(config)
        if self.embed_dim % self.num_heads:
            yield Conflict(
                ("model.num_heads", "model.embed_dim"),
                f"model.embed_dim = {self.embed_dim} does not divide by model.num_heads = {self.num_heads}",
                "each head has an equal part of it",
            )


_SMALL: dict[str, Any] = {"num_layers": 12, "embed_dim": 384, "num_heads": 6, "mlp_dim": 1536}
_BASE: dict[str, Any] = {"num_layers": 12, "embed_dim": 768, "num_heads": 12, "mlp_dim": 3072}

PRESETS: dict[str, dict[str, Any]] = {
    "vit-s-16": {**_SMALL, "patch_size": 16},
    "vit-s-32": {**_SMALL, "patch_size": 32},
    "vit-b-16": {**_BASE, "patch_size": 16},
    "vit-b-32": {**_BASE, "patch_size": 32},
}
