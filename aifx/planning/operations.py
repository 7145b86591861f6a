"""Operations of a traced program, counted from its jaxpr: what the program asks for, before any compiler.

Loops count as often as they turn, and recomputation counts. XLA's own `flops` counts the body of a loop once.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TRANSCENDENTAL = {
    "exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erfc", "erf_inv", "sin", "cos", "pow",
}  # fmt: skip


@dataclass
class Operations:
    """What one run of a program computes, over all devices.

    Attributes:
        product_flops: multiplications and additions of matrix products and convolutions, by dtype of the operands.
        transcendentals: elements of exponentials, logarithms and the like.
        largest: bytes of the largest array that has an axis of `axis_size`, weights and their like left out.
    """

    product_flops: Counter[str] = field(default_factory=Counter)
    transcendentals: int = 0
    largest: int = 0

    @property
    def flops(self) -> int:
        return sum(self.product_flops.values())


def count_operations(jaxpr: Any, outputs: int = 0, embed: int = 0) -> Operations:
    """Of a (closed) jaxpr.

    Args:
        outputs: size of the model's outputs, such as the vocabulary: an array with such an axis is logits.
        embed: size of the axis that makes such an array a weight or its gradient.
    """
    found = Operations()
    _count(getattr(jaxpr, "jaxpr", jaxpr), 1, found, outputs, embed)
    return found


def _count(jaxpr: Any, times: int, found: Operations, outputs: int, embed: int) -> None:
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        result: Any = equation.outvars[0].aval if equation.outvars else None
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval
            depth = math.prod(left.shape[axis] for axis in contracted)
            found.product_flops[str(left.dtype)] += times * 2 * result.size * depth
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            found.product_flops[str(kernel.dtype)] += times * 2 * result.size * (kernel.size // features)
        elif name in TRANSCENDENTAL:
            found.transcendentals += times * result.size
        for variable in equation.outvars if outputs else ():
            shape = getattr(variable.aval, "shape", ())
            if outputs in shape and embed not in shape and len(shape) > 1:
                found.largest = max(found.largest, variable.aval.size * variable.aval.dtype.itemsize)
        for inner, turns in _inner(equation):
            _count(inner, times * turns, found, outputs, embed)


def _inner(equation: Any) -> Iterator[tuple[Any, int]]:
    """The jaxprs inside an equation, and how often each runs."""
    params = equation.params
    if equation.primitive.name == "scan":
        yield _open(params["jaxpr"]), int(params["length"])
        return
    if equation.primitive.name == "pallas_call":
        yield _open(params["jaxpr"]), math.prod(int(size) for size in params["grid_mapping"].grid)
        return
    if equation.primitive.name == "cond":
        yield max((_open(branch) for branch in params["branches"]), key=lambda jaxpr: len(jaxpr.eqns)), 1
        return
    devices = params["mesh"].size if equation.primitive.name == "shard_map" else 1  # its body is one device's
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(one, "eqns") or hasattr(one, "jaxpr"):
                yield _open(one), devices


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)
