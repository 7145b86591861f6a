"""Operations of a traced program, counted from its jaxpr: what the program asks for, before any compiler.

Loops count as often as they turn, and recomputation counts. XLA's own `flops` counts the body of a loop once. A kernel
counts as what it declares (`pallas_call(cost_estimate=)`): the bounds of its loops may be known on the device only.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from aifx.planning.network import Collective
from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.cost import FORWARD, OF_KEYS, OF_QUERIES

TRANSCENDENTAL = {
    "exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erfc", "erf_inv", "sin", "cos", "pow",
}  # fmt: skip


COLLECTIVES = {
    "all_gather": "all-gather", "reduce_scatter": "reduce-scatter", "all_to_all": "all-to-all",
    "ppermute": "collective-permute", "psum": "all-reduce", "psum_invariant": "all-reduce", "pmax": "all-reduce",
    "pmin": "all-reduce",
}  # fmt: skip
"""Primitives of the program of one device of a mesh, by the kind of their collective."""

OPAQUE = {"core_map", "mpmd_map"}
"""Kernels whose instructions are not JAX's (Mosaic GPU)."""


@dataclass
class Operations:
    """What one run of a program computes, over all devices.

    Attributes:
        product_flops: multiplications and additions of matrix products and convolutions, by dtype of the operands.
        attention_flops: of these, those of kernels that declare them and of products of batches of matrices.
        transcendentals: elements of exponentials, logarithms and the like.
        largest: bytes of the largest array that has an axis of `axis_size`, weights and their like left out.
        collectives: that the program asks for, of one device; the compiler adds those of what is outside `shard_map`.
        uncounted: loops with products that turn an unknown number of times and count once, and kernels that declare
            nothing and count as nothing, by name.
    """

    product_flops: Counter[str] = field(default_factory=Counter)
    attention_flops: int = 0
    transcendentals: int = 0
    largest: int = 0
    collectives: list[Collective] = field(default_factory=list)
    uncounted: Counter[str] = field(default_factory=Counter)

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
    _count(_open(jaxpr), _Place(), found, outputs, embed)
    return found


@dataclass(frozen=True)
class _Place:
    """Where an equation is.

    Attributes:
        turns: how often a device runs it.
        mesh: sizes of the mesh's axes in the program of one device; empty outside.
    """

    turns: int = 1
    in_loop: bool = False
    mesh: Mapping[str, int] = field(default_factory=dict)

    @property
    def times(self) -> int:
        """How often all devices run it."""
        return self.turns * math.prod(self.mesh.values())


def _count(jaxpr: Any, place: _Place, found: Operations, outputs: int, embed: int) -> None:
    for equation in jaxpr.eqns:
        name, times = equation.primitive.name, place.times
        result: Any = equation.outvars[0].aval if equation.outvars else None
        if (declared := _declared(equation)) is not None:
            flops, transcendentals = declared
            found.product_flops[str(result.dtype)] += times * flops
            found.attention_flops += times * flops
            found.transcendentals += times * transcendentals
            continue
        if name == "dot_general":
            (contracted, _), (batch, _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval
            flops = times * 2 * result.size * math.prod(left.shape[axis] for axis in contracted)
            found.product_flops[str(left.dtype)] += flops
            found.attention_flops += flops if batch else 0
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval
            features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            found.product_flops[str(kernel.dtype)] += times * 2 * result.size * (kernel.size // features)
        elif name in TRANSCENDENTAL:
            found.transcendentals += times * result.size
        elif name in COLLECTIVES and place.mesh:
            found.collectives.append(_collective(equation, place))
        elif name in OPAQUE:
            found.uncounted[name] += 1
            continue
        elif name == "while" and count_operations(equation.params["body_jaxpr"]).flops:
            found.uncounted[name] += 1
        for variable in equation.outvars if outputs else ():
            shape = getattr(variable.aval, "shape", ())
            if outputs in shape and embed not in shape and len(shape) > 1:
                found.largest = max(found.largest, variable.aval.size * variable.aval.dtype.itemsize)
        for inner, where in _inner(equation, place):
            _count(inner, where, found, outputs, embed)


def _declared(equation: Any) -> tuple[int, int] | None:
    """FLOPs of products and transcendentals of a kernel that says what it does; None of another equation."""
    name, params = equation.primitive.name, equation.params
    if (cost := params.get("cost_estimate")) is not None:
        return cost.flops, cost.transcendentals
    if name.startswith("dot_product_attention"):  # cuDNN's
        products = FORWARD + (OF_QUERIES + OF_KEYS - FORWARD) * ("bwd" in name)
        flops = products * _cudnn_call(equation).product_flops()
        return flops, 0
    return None


def _cudnn_call(equation: Any) -> Call:
    """The call of attention that became cuDNN's, in jax.nn's layout `[batch, len, heads, head_dim]`."""
    q, k = (variable.aval for variable in equation.invars[:2])
    window = equation.params["sliding_window_length"]
    return Call(
        batch=q.shape[0],
        q_len=q.shape[1],
        kv_len=k.shape[1],
        num_heads=q.shape[2],
        num_kv_heads=k.shape[2],
        head_dim=q.shape[3],
        dtype=str(q.dtype),
        causal="CAUSAL" in str(equation.params["mask_type"]),
        window=window or None,
        q_offset=0,
        has_segments=False,
        scale=equation.params["scale"],
        logit_softcap=None,
    )


def _collective(equation: Any, place: _Place) -> Collective:
    names = equation.params.get("axes", equation.params.get("axis_name", ()))
    axes = (names,) if isinstance(names, str) else tuple(names)
    kind = COLLECTIVES[equation.primitive.name]
    given = sum(one.aval.size * one.aval.dtype.itemsize for one in equation.invars)
    if kind == "all-gather":
        given *= math.prod(place.mesh[axis] for axis in axes)
    return Collective(kind, given, group_along(place.mesh, axes), place.turns, place.in_loop)


def group_along(mesh: Mapping[str, int], axes: Collection[str]) -> tuple[int, ...]:
    """Positions in the mesh of the first device's group along these axes."""
    strides, stride = dict[str, int](), 1
    for axis in reversed(list(mesh)):
        strides[axis] = stride
        stride *= mesh[axis]
    offsets = [[index * strides[axis] for index in range(mesh[axis])] for axis in mesh if axis in axes]
    return tuple(sum(parts) for parts in itertools.product(*offsets))


def _inner(equation: Any, place: _Place) -> Iterator[tuple[Any, _Place]]:
    """The jaxprs inside an equation, and where they run."""
    params, name = equation.params, equation.primitive.name
    if name == "scan":
        turns = int(params["length"])
        yield _open(params["jaxpr"]), replace(place, turns=place.turns * turns, in_loop=True)
        return
    if name == "pallas_call":
        turns = math.prod(int(size) for size in params["grid_mapping"].grid)
        yield _open(params["jaxpr"]), replace(place, turns=place.turns * turns)
        return
    if name == "cond":
        yield max((_open(branch) for branch in params["branches"]), key=lambda jaxpr: len(jaxpr.eqns)), place
        return
    if name == "shard_map":  # its body is one device's
        place = replace(place, mesh=dict(params["mesh"].shape))
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(one, "eqns") or hasattr(one, "jaxpr"):
                yield _open(one), place


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)
