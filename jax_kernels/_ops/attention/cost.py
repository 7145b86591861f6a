"""The cost that each kernel of attention declares: a loop whose bounds the mask decides can't be counted otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jax.experimental import pallas as pl

from jax_kernels._ops.attention.call import Call

# Matrix products over the pairs that see each other, in the kernels of one pass: together those of `work`. A backward
# pass in two kernels forms the scores twice, which is part of how well it does, not of what it was asked for.
FORWARD, OF_QUERIES, OF_KEYS = 2, 2, 3


def cost(call: Call, products: int, arrays: Iterable[Any]) -> pl.CostEstimate:
    """The cost of a kernel that reads and writes `arrays`, each once; None among them are left out."""
    flops = products * call.product_flops()
    moved = sum(x.size * x.dtype.itemsize for x in arrays if x is not None)
    return pl.CostEstimate(flops=flops, transcendentals=flops // (2 * call.head_dim * products), bytes_accessed=moved)
