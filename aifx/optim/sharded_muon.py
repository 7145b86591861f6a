"""Muon on a mesh: each device orthogonalizes whole matrices, and no device more than its share.

Matrices of one shape are stacked. An all-to-all along each mesh axis turns parts of all matrices into whole ones of
some, and another one turns the updates back. The bytes that a device sends are those of its parts, not of the matrices.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from optax.contrib import MuonDimensionNumbers, MuonState, scale_by_muon

from aifx.config.sections import OptimizerSection
from aifx.parallel.layout import Layout
from aifx.specs import ArraySpec, Specs, is_spec

_HEADS = ("heads", "kv_heads")


# Muon replaces the momentum of a matrix, U S V^T by its singular value decomposition, by U V^T: all directions get
# steps of one size, also those with small gradients. No decomposition is computed. The Newton-Schulz iteration
# X <- a X + b (X X^T) X + c (X X^T)^2 X only multiplies matrices, and changes each singular value alone, by the
# polynomial a s + b s^3 + c s^5. With (a, b, c) = (3.4445, -4.7750, 2.0315), five of them bring all values from 0 to 1
# close to 1, which is precise enough (Keller Jordan, https://kellerjordan.github.io/posts/muon/).
#
# The iteration needs whole matrices, which a mesh has divided. To gather each on all devices would repeat the work on
# each of them. So the devices exchange parts: before an all-to-all, each has a part of every matrix of a shape; after
# it, each has its share of the matrices, whole.
def newton_schulz(section: OptimizerSection) -> dict[str, Any]:
    """Arguments of optax's muon: how it orthogonalizes.

    Scaled by the Frobenius norm, most singular values begin far below 1, and need all 5 steps. AOL scales by a sharper
    bound at no cost, from the product that the first step needs anyway (Boissin et al., arXiv:2512.04632).
    """
    return {"ns_steps": section.ns_steps, "preconditioning": "aol" if section.ns_steps < 5 else "frobenius"}


def scale_by_sharded_muon(specs: Specs, layout: Layout, section: OptimizerSection) -> optax.GradientTransformation:
    """The part of `optax.contrib.muon` before decay and learning rate, with the same state, on a mesh."""
    beta, moment_dtype = section.momentum, section.moment_dtype
    own = scale_by_muon(beta=beta, mu_dtype=moment_dtype, weight_dimension_numbers=lambda _: None)
    matrices = [spec for spec in jax.tree.leaves(specs, is_leaf=is_spec) if spec.kind == "weight" and spec.matrix]
    parts = [layout.partition(spec) for spec in matrices]
    program = functools.partial(_orthogonalized, matrices, layout, section)
    orthogonalized = layout.per_device(program, (parts,), parts)

    def update(updates: Any, state: MuonState, params: Any = None) -> tuple[Any, MuonState]:
        # As in optax: Nesterov's momentum with its biases corrected.
        mu = optax.tree.update_moment(updates, state.mu, beta, 1)
        count = optax.safe_increment(state.count)
        ahead = optax.tree.bias_correction(mu, beta, optax.safe_increment(count))
        now = optax.tree.bias_correction(updates, beta, count)
        momentum = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, ahead, now)
        leaves, structure = jax.tree.flatten(momentum)
        scaled = [x * _scale(spec) for x, spec in zip(orthogonalized(leaves), matrices, strict=True)]
        return jax.tree.unflatten(structure, scaled), MuonState(
            count, optax.tree.cast(mu, moment_dtype), state.ns_coeffs
        )

    return optax.GradientTransformation(own.init, update)


def muon_dimensions(spec: ArraySpec) -> MuonDimensionNumbers | None:
    """The dimensions of an array that Muon reduces and produces; those in neither count its matrices.

    Each head of a query, key or value is a matrix of its own: heads do not share outputs, and Newton-Schulz iterations
    of narrow matrices cost a fraction of those of one wide matrix. Outputs of heads add up, so they share a matrix.
    """
    if spec.matrix is None:
        return None
    reduced, produced = spec.matrix
    return MuonDimensionNumbers(reduced, tuple(axis for axis in produced if spec.axes[axis] not in _HEADS))


def _scale(spec: ArraySpec) -> float:
    """The factor of a matrix's update, by its width (https://github.com/KellerJordan/Muon)."""
    fan_in, fan_out = (math.prod(spec.shape[d] for d in dimensions) for dimensions in _rows_and_columns(spec))
    return math.sqrt(max(1.0, fan_out / fan_in))


def _rows_and_columns(spec: ArraySpec) -> tuple[tuple[int, ...], tuple[int, ...]]:
    found: Any = muon_dimensions(spec)
    return tuple(found.reduction_axis), tuple(found.output_axis)


@dataclass(frozen=True)
class Matrix:
    """An array as a batch of matrices, of which this device has parts.

    Attributes:
        order: the array's dimensions as batch, rows and columns.
        sizes: of the batch, the rows and the columns of this device's part.
        axes: the mesh axes that divide the batch, the rows and the columns.
    """

    order: tuple[int, ...]
    sizes: tuple[int, int, int]
    axes: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]

    @classmethod
    def of(cls, spec: ArraySpec, layout: Layout) -> Matrix:
        stored, matrix = layout.stored(spec), _rows_and_columns(spec)

        def axes(dimensions: tuple[int, ...]) -> tuple[str, ...]:
            return tuple(axis for d in dimensions for axis in stored[d])

        def size(dimensions: tuple[int, ...]) -> int:
            return math.prod(spec.shape[d] for d in dimensions)

        # Optax transposes tall matrices. A square one stays as it is, whatever divides it: AOL scales the rows, so the
        # transpose would have another update.
        rows, columns = sorted(matrix, key=size)
        batch = tuple(d for d in range(len(spec.shape)) if d not in (*rows, *columns))
        parts = batch, rows, columns
        b, r, c = (size(dimensions) // layout.size(axes(dimensions)) for dimensions in parts)
        return cls((*batch, *rows, *columns), (b, r, c), (axes(batch), axes(rows), axes(columns)))

    def take(self, array: jax.Array) -> jax.Array:
        """`[batch, rows, columns]`."""
        return array.transpose(self.order).reshape(self.sizes)

    def put(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The array of this shape from `[batch, rows, columns]`."""
        back = tuple(self.order.index(d) for d in range(len(shape)))
        return matrices.reshape([shape[d] for d in self.order]).transpose(back)


def _orthogonalized(
    specs: Sequence[ArraySpec], layout: Layout, section: OptimizerSection, arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    """This device's parts of the orthogonalized matrices, from its parts of the matrices."""
    matrices = [Matrix.of(spec, layout) for spec in specs]
    found: list[Any] = list(arrays)
    for kind in dict.fromkeys((matrix.sizes[1:], matrix.axes) for matrix in matrices):
        members = [i for i, matrix in enumerate(matrices) if (matrix.sizes[1:], matrix.axes) == kind]
        stack = jnp.concatenate([matrices[i].take(arrays[i]) for i in members])
        stack = _on_whole(functools.partial(_orthogonal, section), stack, kind[1], layout)
        for i in members:
            found[i] = matrices[i].put(stack[: matrices[i].sizes[0]], arrays[i].shape)
            stack = stack[matrices[i].sizes[0] :]
    return found


def _on_whole(
    fn: Callable[[jax.Array], jax.Array],
    stack: jax.Array,
    axes: Sequence[tuple[str, ...]],
    layout: Layout,
) -> jax.Array:
    """`fn` of whole matrices, each on one device, from a stack of this device's parts `[matrices, rows, columns]`."""
    count = stack.shape[0]
    stack = jnp.pad(stack, ((0, -count % layout.num_devices), (0, 0), (0, 0)))
    taken = {axis for names in axes for axis in names}
    shared = tuple(axis for axis, size in layout.mesh.shape.items() if size > 1 and axis not in taken)
    if shared:
        size = stack.shape[0] // layout.size(shared)
        stack = lax.dynamic_slice_in_dim(stack, layout.index(shared) * size, size)
    sharded = [(names, dimension) for dimension, names in enumerate(axes) if dimension and names]
    # XLA would push the split of an exchange into what computed the parts, whose layouts then differ, and refuse them.
    for names, dimension in sharded:
        stack = lax.all_to_all(lax.optimization_barrier(stack), names, 0, dimension, tiled=True)
    stack = fn(stack)
    for names, dimension in reversed(sharded):
        stack = lax.all_to_all(lax.optimization_barrier(stack), names, dimension, 0, tiled=True)
    return (lax.all_gather(stack, shared, tiled=True) if shared else stack)[:count]


def _orthogonal(section: OptimizerSection, stack: jax.Array) -> jax.Array:
    """Each matrix of a stack orthogonalized, by optax: Muon without momentum does nothing else."""
    alone = scale_by_muon(
        beta=0.0,
        eps=section.epsilon,
        nesterov=False,
        weight_dimension_numbers=MuonDimensionNumbers((1,), (2,)),
        **newton_schulz(section),
    )
    return alone.update(stack, alone.init(stack))[0]  # type: ignore[no-any-return]
