"""A model's outputs in one call, as tests ask for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import abstract_layout

CONTEXT = ForwardContext(abstract_layout(1, "cpu", "cpu"))


def outputs_of(model: Any, ctx: ForwardContext = CONTEXT) -> Callable[..., jax.Array]:
    """(params, inputs, other fields) -> what the head makes of them, `[rows, outputs]` or `[batch, seq, outputs]`."""

    def outputs(params: Any, inputs: Any, **fields: Any) -> jax.Array:
        hidden = model.hidden(params, {"inputs": inputs, **fields}, ctx)
        shape = inputs.shape[: 2 if inputs.ndim == 2 else 1]
        return model.head(params, ctx)(hidden).reshape(*shape, -1)

    return outputs
