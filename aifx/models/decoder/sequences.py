"""What the layers of a decoder know of the tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import jax

from aifx.models.decoder.section import DecoderSection, window_of
from aifx.nn.rotary import Angles


@dataclass(frozen=True)
class Cached:
    """Where the cache holds each sequence."""

    page_table: jax.Array  # the pages of each sequence
    held: jax.Array  # how many tokens each holds already, [batch]
    new: Literal["one", "many"]  # tokens of each sequence, which attend to what it holds


@dataclass(frozen=True)
class Sequences:
    """What the layers know of the tokens in addition to their vectors.

    Row r of a layer's input `[batch * seq, embed]` is token r % seq of sequence r // seq.
    """

    shape: tuple[int, ...]  # (batch, seq)
    positions: jax.Array | None = None  # [batch, seq]; they count from 0 if None
    angles: Angles | None = None  # rotary angles of the positions, unless they are learned
    window_angles: Angles | None = None  # of layers with a window, if they have angles of their own
    window: int | None = None  # how far back attention reaches, itself included
    segment_ids: jax.Array | None = None  # [batch, seq], the document of each token; attention stays within it
    cached: Cached | None = None  # None in training, which has no cache

    def of_layer(self, section: DecoderSection, index: int) -> Sequences:
        """What the layer of this index, from 0, knows of the tokens."""
        window = window_of(section, index)
        angles = self.angles if window is None or self.window_angles is None else self.window_angles
        if not section.rope_layers[index % len(section.rope_layers)]:
            angles = None
        return replace(self, window=window, angles=angles)
