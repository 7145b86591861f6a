"""The argument of models and objectives beside parameters and a batch."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from aifx.parallel.layout import Layout


@dataclass(frozen=True)
class ForwardContext:
    """Given to every model and objective, so that other meshes will not change their signatures.

    Attributes:
        layout: where the program runs.
        training: whether gradients are formed: dropout is on.
        key: of the seed and the step; None if nothing is random.
        row_ids: number of each row within the global batch, int32 `[rows]`. What is random of a row depends on it
            alone, so that micro-batches and devices draw what one device would draw.
    """

    layout: Layout
    training: bool = False
    key: jax.Array | None = None
    row_ids: jax.Array | None = None
