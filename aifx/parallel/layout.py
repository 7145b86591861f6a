"""On which devices a program runs, how arrays are divided among them, and what one device says to the others.

A program is that of one device (`Layout.per_device`): it sees its own part of each array, and each collective is a call
of a method here. On one device each of them returns what it was given. A Layout can describe devices that are absent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import linear_call
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from aifx.config.sections import MeshSection
from aifx.core.errors import ConfigError
from aifx.data.base import Batch
from aifx.parallel.mesh import (
    COMPUTATION,
    PARAMETERS,
    YIELDS,
    Degrees,
    Rules,
    axes_of,
    degrees_of,
    make_abstract_mesh,
    make_mesh,
    parse_rules,
    zigzag,
)
from aifx.specs import ArraySpec, Specs, is_spec, map_specs, widened


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WeightPart:
    """A device's part of a weight that `Layout.gather` makes whole.

    Attributes:
        missing: the mesh axes to gather over, by dimension of the whole array; a layer of a stack is without the first.
        dtype: of the whole array, if it is another one.
    """

    array: jax.Array
    missing: tuple[tuple[str, ...], ...] = field(metadata={"static": True})
    dtype: DTypeLike | None = field(default=None, metadata={"static": True})


def cast(x: Any, dtype: DTypeLike | None) -> Any:
    """A floating-point array as `dtype`; others, and with None, as they are."""
    return x.astype(dtype) if dtype is not None and jnp.issubdtype(x.dtype, jnp.floating) else x


def gathered_weight(x: jax.Array, missing: Sequence[tuple[str, ...]], dtype: DTypeLike | None) -> jax.Array:
    """A whole array as `dtype`, of the parts of devices. Its gradient is added up in float32.

    So does torchtitan. In bfloat16, the sum over many devices would lose what each of them adds.
    """

    def gather(_: tuple[()], x: jax.Array) -> jax.Array:
        x = cast(x, dtype)
        for dimension, axes in enumerate(missing):
            x = lax.all_gather(x, axes, axis=dimension, tiled=True) if axes else x
        return x

    def scatter(_: tuple[()], gradient: jax.Array) -> jax.Array:
        gradient = widened(gradient)
        for dimension, axes in enumerate(missing):
            gradient = lax.psum_scatter(gradient, axes, scatter_dimension=dimension, tiled=True) if axes else gradient
        return gradient.astype(x.dtype)

    return linear_call(gather, scatter, (), x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Layout:
    """A mesh, and the rules by which arrays are divided over it.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        device_kind: of every device, as JAX names it.
        parameters: rules for parameters and optimizer state.
        computation: rules for batches, activations and weights that are in use.
        is_ring: devices along `context` have pieces of a sequence in zigzag order, for attention in a ring.
    """

    mesh: Mesh | AbstractMesh
    platform: str
    device_kind: str
    parameters: Rules = field(default_factory=lambda: PARAMETERS)
    computation: Rules = field(default_factory=lambda: COMPUTATION)
    is_ring: bool = False

    @property
    def num_devices(self) -> int:
        return int(self.mesh.size)

    @property
    def degrees(self) -> Degrees:
        return degrees_of(self.mesh)

    @property
    def devices(self) -> list[jax.Device]:
        """The devices, in the order of the mesh. Raises ValueError for a layout without devices."""
        if isinstance(self.mesh, AbstractMesh):
            raise ValueError("this layout describes devices that are not here")
        return list(self.mesh.devices.flat)

    @property
    def single(self) -> Layout:
        """One such device, described: for what is traced outside of `per_device`."""
        # JAX 0.10 traces nothing with two meshes of which one knows its devices.
        device = self.mesh.abstract_device if isinstance(self.mesh, AbstractMesh) else None
        return replace(self, mesh=make_abstract_mesh(Degrees(), device))

    @property
    def whole(self) -> Layout:
        """The same devices, each of which computes everything."""
        return replace(self, computation={})

    @property
    def one_copy(self) -> Layout:
        """The fewest of the devices that together hold the parameters once; of several processes, all of them."""
        if self.num_devices == 1 or isinstance(self.mesh, AbstractMesh) or jax.process_count() > 1:
            return self
        first = tuple(slice(None) if axis in ("fsdp", "tensor") else slice(1) for axis in self.mesh.axis_names)
        return replace(self, mesh=Mesh(self.mesh.devices[first], self.mesh.axis_names))

    def computing(self, sharded: Iterable[str]) -> Layout:
        """The layout for a model that can divide these logical axes, in addition to the rows of a batch."""
        kept = {"batch", *sharded}
        return replace(self, computation={name: axes for name, axes in self.computation.items() if name in kept})

    # Where arrays live.

    def axes(self, name: str | None, rules: Rules | None = None) -> tuple[str, ...]:
        """The mesh axes of several devices over which the computation (or `rules`) divides a logical axis."""
        named = axes_of(name, self.computation if rules is None else rules)
        return tuple(axis for axis in named if self.mesh.shape.get(axis, 1) > 1)

    def size(self, axes: Iterable[str]) -> int:
        """Devices along these mesh axes together."""
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def count(self, name: str) -> int:
        """Into how many parts the computation divides a logical axis."""
        return self.size(self.axes(name))

    def stored(self, spec: ArraySpec, rules: Rules | None = None) -> tuple[tuple[str, ...], ...]:
        """The mesh axes over which an array is divided, by dimension.

        A dimension takes the most axes of its rule that divide it, from the last on: 50,257 tokens are not divided.
        """
        rules = self.parameters if rules is None else rules
        found: dict[int, tuple[str, ...]] = {}
        for dimension, name in sorted(enumerate(spec.axes), key=lambda item: item[1] in YIELDS):
            taken = {axis for axes in found.values() for axis in axes}
            free = tuple(axis for axis in self.axes(name, rules) if axis not in taken)
            found[dimension] = self._dividing(spec.shape[dimension], free)
        return tuple(found[dimension] for dimension in range(len(spec.shape)))

    def _dividing(self, size: int, axes: tuple[str, ...]) -> tuple[str, ...]:
        while axes and size % self.size(axes):
            axes = axes[1:]
        return axes

    def dividing(self, name: str, size: int) -> tuple[str, ...]:
        """The mesh axes over which the computation divides a logical axis of this size."""
        return self._dividing(size, self.axes(name))

    def partition(self, spec: ArraySpec) -> PartitionSpec:
        """The PartitionSpec of a parameter."""
        return PartitionSpec(*(axes or None for axes in self.stored(spec)))

    def partitions(self, specs: Specs) -> Any:
        """A PartitionSpec for each spec, in the specs' tree."""
        return map_specs(self.partition, specs)

    def of_params(self, specs: Specs) -> Any:
        """A sharding for each spec, in the specs' tree."""
        return map_specs(lambda spec: NamedSharding(self.mesh, self.partition(spec)), specs)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def batch_partition(self, axes: Sequence[str | None] = ()) -> PartitionSpec:
        """The PartitionSpec of an array `[rows, ...]` of a batch, whose other dimensions have these logical axes."""
        return PartitionSpec(*(self.axes(axis) or None for axis in ("batch", *axes)))

    def of_batch(self, axes: Sequence[str | None] = ()) -> NamedSharding:
        return NamedSharding(self.mesh, self.batch_partition(axes))

    def of_optimizer(self, opt_state: Any, params: Any) -> Any:
        """Shardings of an optimizer's state: what mirrors a parameter is divided as it is, the rest is replicated.

        Args:
            opt_state: (abstract) state, in which a moment's path ends with its parameter's path.
            params: shardings of the parameters.
        """
        by_path = {_names(path): s for path, s in jax.tree_util.tree_leaves_with_path(params)}

        def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
            names = _names(path)
            for start in range(len(names)):
                found = by_path.get(names[start:])
                if isinstance(found, NamedSharding) and len(found.spec) == leaf.ndim:
                    return found
            return self.replicated

        return jax.tree_util.tree_map_with_path(sharding, opt_state)

    def padded_rows(self, rows: int) -> int:
        """So many rows or the next number that the devices share evenly."""
        return -(-rows // self.count("batch")) * self.count("batch")

    def local_rows(self, rows: int) -> slice:
        """The rows of a batch of so many that this process reads: those of its devices, and any between them."""
        return self.rows_by_process(rows)[jax.process_index()]

    def rows_by_process(self, rows: int) -> dict[int, slice]:
        """The `local_rows` of each process, by its index."""
        found: dict[int, list[tuple[int, int]]] = {}
        parts: Mapping[jax.Device, Any] = self.of_batch().devices_indices_map((self.padded_rows(rows),))
        for device, part in parts.items():
            if part is not None:
                found.setdefault(device.process_index, []).append(part[0].indices(rows)[:2])
        return {index: slice(min(b for b, _ in own), max(e for _, e in own)) for index, own in sorted(found.items())}

    def own_rows(self, rows: int) -> list[slice]:
        """The rows that this process counts, numbered from the first of its `local_rows`. Each row is counted once."""
        first: dict[tuple[int, int], jax.Device] = {}
        for device, part in self.of_batch().devices_indices_map((self.padded_rows(rows),)).items():
            if part is not None:
                first.setdefault(part[0].indices(rows)[:2], device)
        here, begin = jax.process_index(), self.local_rows(rows).start
        own = sorted(bounds for bounds, device in first.items() if device.process_index == here)
        return [slice(start - begin, stop - begin) for start, stop in own if stop > start]

    # The program of one device.

    def per_device(self, program: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        """`program`, run by each device on its part of the arguments: PartitionSpecs say which that is."""
        if self.num_devices == 1:
            return program
        mapped: Callable[..., Any] = jax.shard_map(
            program, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )
        return mapped

    def parts(
        self, params: Any, specs: Specs, gathered_later: Iterable[str] = (), dtype: DTypeLike | None = None
    ) -> Any:
        """A device's part of the params as the model takes them: whole but for what the computation divides.

        Args:
            gathered_later: nodes that stay `WeightPart`s, since the model calls `gather` when it needs them.
            dtype: of floating-point arrays, if it is another one.
        """

        def type_of(spec: ArraySpec) -> DTypeLike | None:
            return None if spec.is_exact else dtype

        if self.num_devices == 1:
            return jax.tree.map(lambda spec, x: cast(x, type_of(spec)), specs, params, is_leaf=is_spec)
        kept = set(gathered_later)

        def part(path: Any, spec: ArraySpec, array: jax.Array) -> Any:
            used = self.stored(spec, self.computation)
            missing = tuple(
                tuple(axis for axis in axes if axis not in kept_axes)
                for axes, kept_axes in zip(self.stored(spec), used, strict=True)
            )
            if not any(missing):
                return cast(array, type_of(spec))
            found = WeightPart(array, missing, type_of(spec))
            return found if path[0].key in kept else self.gather(found)

        return jax.tree_util.tree_map_with_path(part, specs, params, is_leaf=is_spec)

    def gather(self, tree: Any) -> Any:
        """The tree with each `WeightPart` in it whole. The gradient of one is added up in float32 and divided again."""

        def gathered(leaf: Any) -> Any:
            if not isinstance(leaf, WeightPart):
                return leaf
            missing = leaf.missing[len(leaf.missing) - leaf.array.ndim :]
            return gathered_weight(leaf.array, missing, leaf.dtype)

        return jax.tree.map(gathered, tree, is_leaf=lambda leaf: isinstance(leaf, WeightPart))

    def sum(self, tree: Any) -> Any:
        """Added up over all devices."""
        axes = tuple(axis for axis, size in self.mesh.shape.items() if size > 1)
        return lax.psum(tree, axes) if axes else tree

    def sync(self, gradients: Any, specs: Specs) -> Any:
        """Gradients of the params, each added up in float32 over the devices that hold the same part of it."""

        def added(spec: ArraySpec, gradient: Any) -> Any:
            gradient = widened(gradient)
            sharded = {axis for axes in self.stored(spec) for axis in axes}
            rest = tuple(axis for axis, size in self.mesh.shape.items() if size > 1 and axis not in sharded)
            return lax.psum(gradient, rest) if rest and gradient is not None else gradient

        return jax.tree.map(added, specs, gradients, is_leaf=is_spec)

    # Between the products of a layer, a device along `tensor` has a part of its tokens ("own"): norms and residuals are
    # computed once, not on each device. Tokens are gathered before the first product and their partial sums scattered
    # after the last, which moves as many bytes as the sum over all devices that it replaces (Korthikanti et al. 2022,
    # "Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198).

    def own_tokens(self, x: jax.Array) -> jax.Array:
        """This device's own of x `[tokens, ...]`, which all devices along `tensor` have."""
        if (count := self.count("tokens")) == 1:
            return x
        size = x.shape[0] // count
        return lax.dynamic_slice_in_dim(x, self.index(self.axes("tokens")) * size, size)

    def gather_tokens(self, x: jax.Array) -> jax.Array:
        """All tokens `[tokens, ...]` of each device's own."""
        return lax.all_gather(x, axes, tiled=True) if (axes := self.axes("tokens")) else x

    def scatter_tokens(self, x: jax.Array) -> jax.Array:
        """The sum of x `[tokens, ...]` over the devices along `tensor`, each of which gets its own tokens."""
        return lax.psum_scatter(x, axes, tiled=True) if (axes := self.axes("tokens")) else x

    def seq_start(self, length: int) -> jax.Array | int:
        """The position of the first of this device's `length` steps of a sequence."""
        return self.index(axes) * length if (axes := self.axes("seq")) else 0

    def seq_positions(self, length: int) -> jax.Array:
        """The positions of this device's `length` steps of a sequence, int32 `[length]`."""
        steps = jnp.arange(length)
        if not self.is_ring or not (axes := self.axes("seq")):
            return self.seq_start(length) + steps
        half, own = length // 2, self.index(axes)
        last = 2 * self.size(axes) - 1 - own
        return jnp.where(steps < half, own * half + steps, last * half + steps - half)

    def gather_seq(self, x: jax.Array) -> jax.Array:
        """All steps of x `[rows, steps, ...]`."""
        return lax.all_gather(x, axes, axis=1, tiled=True) if (axes := self.axes("seq")) else x

    def sum_seq(self, x: jax.Array) -> jax.Array:
        """The sum of numbers of rows over the devices that share their steps."""
        return lax.psum(x, axes) if (axes := self.axes("seq")) else x

    def sum_row(self, x: jax.Array) -> jax.Array:
        """The sum of numbers of rows over the devices that share their steps or their tokens."""
        return lax.psum(x, axes) if (axes := (*self.axes("seq"), *self.axes("tokens"))) else x

    def index(self, axes: tuple[str, ...]) -> jax.Array:
        """The number of this device along these mesh axes."""
        return lax.axis_index(axes)


class BatchPlacement:
    """Puts batches of so many rows on the devices of a layout. It is made once, since all of them are divided alike.

    Attributes:
        local: the rows of each batch that this process reads.
    """

    def __init__(self, layout: Layout, rows: int, axes: Mapping[str, Sequence[str | None]]) -> None:
        """
        Args:
            axes: the logical axes of each field's dimensions after the rows.
        """
        self.local = layout.local_rows(rows)
        self._rows, self._padded = rows, layout.padded_rows(rows)
        self._shardings = {name: layout.of_batch(of_field) for name, of_field in axes.items()}
        self._of_other = layout.of_batch()
        self._ring_size = layout.count("seq") if layout.is_ring else 1
        self._seq = {name: 1 + list(of_field).index("seq") for name, of_field in axes.items() if "seq" in of_field}

    def __call__(self, batch: Batch) -> dict[str, jax.Array]:
        """The batch on the devices, filled up with rows of zeros (weight 0) if they cannot share it evenly.

        Returns before the copy is done.

        Args:
            batch: the `local` rows of its fields.
        """
        return {name: self._placed(name, values) for name, values in batch.items()}

    def _placed(self, name: str, values: np.ndarray[Any, Any]) -> jax.Array:
        if self._ring_size > 1 and name in self._seq:
            at = self._seq[name]
            values = np.take(values, zigzag(values.shape[at], self._ring_size), axis=at)

        def part(index: Any) -> np.ndarray[Any, Any]:
            start, stop, _ = index[0].indices(self._padded)
            first, rows = self.local.start, self._rows
            own = values[(slice(min(start, rows) - first, min(stop, rows) - first), *index[1:])]
            missing = stop - start - len(own)
            return np.pad(own, ((0, missing), *((0, 0),) * (own.ndim - 1))) if missing else own

        sharding = self._shardings.get(name, self._of_other)
        return jax.make_array_from_callback((self._padded, *values.shape[1:]), sharding, part)


def local_layout(devices: int | Literal["all"] = "all", mesh: MeshSection | None = None) -> Layout:
    """The layout over the first `devices` devices of each process of the job, arranged as `[mesh]` says.

    Raises ConfigError if there are fewer, or if the mesh has another size.
    """
    local = jax.local_devices()
    if devices != "all" and devices > len(local):
        raise ConfigError(
            f"train.devices = {devices}, and this machine has {len(local)}",
            f"JAX finds {', '.join(sorted({d.device_kind for d in local}))}",
            f"aifx train --set train.devices={len(local)}",
        )
    each = len(local) if devices == "all" else devices
    chosen = [device for index in range(jax.process_count()) for device in jax.local_devices(index)[:each]]
    return layout_over(chosen, mesh)


def layout_over(devices: Sequence[jax.Device], mesh: MeshSection | None = None) -> Layout:
    """The layout over these devices, arranged as `[mesh]` says. Raises ConfigError if it has another size."""
    section = mesh or MeshSection()
    arranged = make_mesh(Degrees.of(section, len(devices)), devices)
    return Layout(
        arranged, devices[0].platform, devices[0].device_kind, *_rules(section), section.context_method == "ring"
    )


def abstract_layout(num_devices: int, platform: str, device_kind: str, mesh: MeshSection | None = None) -> Layout:
    """The layout of devices that are not here. Raises ConfigError if the mesh has another size."""
    section = mesh or MeshSection()
    arranged = make_abstract_mesh(Degrees.of(section, num_devices))
    return Layout(arranged, platform, device_kind, *_rules(section), section.context_method == "ring")


def _rules(section: MeshSection) -> tuple[Rules, Rules]:
    return (
        parse_rules(PARAMETERS, section.parameters, "parameters"),
        parse_rules(COMPUTATION, section.computation, "computation"),
    )


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(str(getattr(p, "key", getattr(p, "name", getattr(p, "idx", p)))) for p in path)
