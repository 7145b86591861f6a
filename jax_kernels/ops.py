"""Every op of the package, by name."""

from __future__ import annotations

import json
from typing import Any

from jax_kernels.attention import ATTENTION
from jax_kernels.choosing import Op
from jax_kernels.linear_cross_entropy import LINEAR_CROSS_ENTROPY

OPS = {op.name: op for op in (ATTENTION, LINEAR_CROSS_ENTROPY)}


def read_key(key: str) -> tuple[Op, Any]:
    """The op and the call that `choosing.call_key` wrote. Raises KeyError, TypeError, ValueError for what is none."""
    fields = json.loads(key)
    op = OPS[fields.pop("op")]
    return op, op.call(**fields)
