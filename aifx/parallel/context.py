"""The context of a forward pass: the last argument of models and objectives."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from aifx.parallel.layout import Layout


@dataclass(frozen=True)
class ForwardContext:
    """The last argument of every model and objective. A new field here changes none of their signatures.

    Attributes:
        layout: the mesh on which the program runs, with its collectives.
        training: whether this is the forward pass of a training step, with dropout.
        key: a function of the seed and the step; None outside of training.
        row_ids: number of each row within the global batch, int32 `[rows]`. What is random of a row depends on it
            alone, so that micro-batches and devices draw what one device would draw.
    """

    layout: Layout
    training: bool = False
    key: jax.Array | None = None
    row_ids: jax.Array | None = None
