"""What one device's share of a run needs, counted from the traced programs: no compiler, no device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Var
from jax.sharding import AbstractDevice

from aifx.config import Config
from aifx.config.sections import KernelsSection, MeshSection
from aifx.kernels.choice import winners_path
from aifx.optim import merge_weights, select_weights
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import Layout, abstract_layout
from aifx.parallel.mesh import make_abstract_mesh
from aifx.planning.network import Collective
from aifx.planning.operations import count_operations, group_along
from aifx.programs.build import Programs, build
from aifx.programs.program import Program
from aifx.programs.train_step import row_ids
from aifx.specs import LAYERS, ArraySpec, is_spec, is_stacked, merge_frozen, wide_dtype
from aifx.tasks.base import Task
from jax_kernels.dispatch import Choices
from jax_kernels.implementations import current_device
from jax_kernels.tuning import TuningCache


@dataclass(frozen=True)
class Counted:
    """Of a run, and of one step on one device. Sizes are in bytes.

    Attributes:
        mesh: devices along each of its axes.
        units_per_step: tokens, images or examples of the global batch.
        model_flops: forward and backward pass of the model over the global batch; recomputation doesn't count.
        product_flops: of one device by dtype; recomputation counts.
        attention_flops: of these, attention's (`aifx.planning.operations.Operations`).
        transcendentals: elements of exponentials and the like, of one device.
        checkpoint: parameters and optimizer state of all devices together, each once.
        micro_batches: of a step.
        activations: what the backward pass reads of the forward pass, of one micro-batch.
        touched: activations that a micro-batch writes and reads, also those that are computed again.
        copies: of weights, in the type of the computation, and gradients that the forward pass forms.
        head: outputs of the model (tokens of its vocabulary, or classes), and the width of what they are made from.
        logits: the largest array with an axis of the model's outputs.
        gathered: weights of a layer and of the head that are gathered for use, with their gradients.
        collectives: between devices.
        uncounted: loops and kernels that count too little, by name.
    """

    mesh: dict[str, int]
    unit: str
    units_per_step: int
    dtype: str
    num_parameters: int
    model_flops: int
    product_flops: dict[str, int]
    attention_flops: int
    transcendentals: int
    checkpoint: int
    parameters: int
    frozen: int
    optimizer: int
    gradients: int
    batch: int
    micro_batches: int
    activations: int
    touched: int
    copies: int
    head: tuple[int, int]
    logits: int
    gathered: int
    collectives: list[Collective]
    uncounted: dict[str, int]

    @property
    def state(self) -> int:
        """Parameters and optimizer state of one device."""
        return self.parameters + self.optimizer


def count(config: Config, task: Task, layout: Layout, asked: Mapping[str, str]) -> Counted:
    """Of a run on devices that need not be here.

    Activations are those of one device with its rows, as if the rest of the mesh divided them evenly.

    Args:
        layout: of `described_layout`.
        asked: implementations by op, instead of those of `[kernels]`.
    """
    rows = config.train.global_batch_size
    with tracing_for(layout.single):
        one = _programs_of_one(config, task, layout, asked)
        head = _head_shape(one)
        operations = count_operations(one.train_step.jaxpr(), *head)
        activations, copies = _residuals(one)
    programs = build(config, task, layout)
    shared = layout.num_devices // layout.count("batch")
    held = held_by_one(programs)
    examples = math.prod(task.data.fields["targets"].shape) if "targets" in task.data.fields else 1
    counted = Counted(
        mesh=asdict(layout.degrees),
        unit=task.objective.unit,
        units_per_step=rows * examples,
        dtype=programs.dtype_name,
        num_parameters=programs.num_parameters,
        model_flops=task.model.flops(rows),
        product_flops=dict(operations.product_flops),
        attention_flops=operations.attention_flops,
        transcendentals=operations.transcendentals // shared,
        checkpoint=sum(programs.state_bytes()[part] for part in ("parameters", "optimizer")),
        micro_batches=config.train.gradient_accumulation,
        activations=activations // shared,
        touched=activations // shared,
        copies=copies * held["gradients"] // max(programs.state_bytes()["gradients"], 1),
        head=head,
        logits=operations.largest // shared,
        gathered=gathered_bytes(programs),
        collectives=[],
        uncounted=dict(operations.uncounted),
        **held,
    )
    return counted if layout.num_devices == 1 else with_traced_step(counted, config, task, layout, asked)


def with_traced_step(counted: Counted, config: Config, task: Task, layout: Layout, asked: Mapping[str, str]) -> Counted:
    """With the operations and the collectives of the step on the mesh."""
    outputs, embed = counted.head
    with tracing_for(layout):
        programs = build(config, task, layout, kernels=choices(config.kernels, asked))
        parts = outputs_divided(programs, outputs)
        found = count_operations(programs.train_step.jaxpr(), outputs // parts, embed)
    return replace(
        counted,
        product_flops={dtype: flops // layout.num_devices for dtype, flops in found.product_flops.items()},
        attention_flops=found.attention_flops // layout.num_devices,
        logits=counted.logits if parts == 1 else found.largest,
        collectives=found.collectives,
    )


def count_activations(config: Config, task: Task, layout: Layout, asked: Mapping[str, str]) -> int:
    """`Counted.activations` alone."""
    with tracing_for(layout.single):
        activations, _ = _residuals(_programs_of_one(config, task, layout, asked))
    return activations * layout.count("batch") // layout.num_devices


def _programs_of_one(config: Config, task: Task, layout: Layout, asked: Mapping[str, str]) -> Programs:
    """Of one device, with its rows of the batch."""
    rows = config.train.global_batch_size // layout.count("batch")
    own = replace(config, train=config.train.model_copy(update={"global_batch_size": rows}))
    return build(own, task, layout.single, kernels=choices(config.kernels, asked))


def outputs_divided(programs: Programs, outputs: int) -> int:
    """Among how many devices the outputs of a token are divided."""
    return programs.layout.size(programs.layout.dividing("vocab", outputs))


def held_by_one(programs: Programs) -> dict[str, int]:
    """Bytes of "parameters", "frozen", "optimizer", "gradients" and "batch" on one device."""
    state, frozen = programs.abstract
    batch = programs.batch(programs.config.train.global_batch_size)
    parts = {
        "parameters": state.params,
        "frozen": frozen,
        "optimizer": (state.opt_state, state.ema),
        "gradients": programs.gradients,
        "batch": batch,
    }
    return {name: _held_bytes(tree) for name, tree in parts.items()}


@dataclass(frozen=True)
class _Gathered:
    """A weight that a device gathers for use: its axes of the mesh, and bytes of one layer's array of it, and of the
    gradient as it is added up."""

    spec: ArraySpec
    is_layer: bool
    axes: tuple[str, ...]
    size: int
    gradient: int


def _gathered(programs: Programs) -> list[_Gathered]:
    layout, widths = (
        programs.layout,
        [dtype.itemsize for dtype in (jnp.dtype(programs.dtype), wide_dtype(programs.dtype))],
    )
    found = []
    for path, spec in jax.tree_util.tree_leaves_with_path(programs.specs, is_leaf=is_spec):
        stored, used = layout.stored(spec), layout.stored(spec, layout.computation)
        missing = tuple(axis for axes, kept in zip(stored, used, strict=True) for axis in axes if axis not in kept)
        if missing:
            parts = math.prod(layout.mesh.shape[axis] for axes in used for axis in axes)
            stack = spec.shape[0] if spec.axes[:1] == (LAYERS,) else 1
            sizes = (spec.size * width // parts // stack for width in widths)
            found.append(_Gathered(spec, path[0].key == LAYERS, missing, *sizes))
    return found


def gathered_bytes(programs: Programs) -> int:
    """Of weights in use and their gradients: those of a layer, and the largest other one.

    Gradients are of the type of the computation, and float32 while they are added up, one at a time.
    """
    found, layers = _gathered(programs), programs.specs.get(LAYERS, {})
    unrolled = len(layers) if layers and not is_stacked(layers) else 1
    of_layer = sum(one.size for one in found if one.is_layer) // unrolled
    largest = max((one.size for one in found if not one.is_layer), default=0)
    return int(2 * (of_layer + largest) + max((one.gradient for one in found), default=0))


def weight_collectives(programs: Programs, micro_batches: int) -> list[Collective]:
    """Those that gather weights and add up gradients, from the specs alone: of layers in each micro-batch on the way
    forward and back, of other weights once each way."""
    mesh, found = programs.layout.mesh.shape, list[Collective]()
    for one in _gathered(programs):
        turns = one.spec.shape[0] if one.spec.axes[:1] == (LAYERS,) else 1
        in_loop = turns > 1 or micro_batches > 1
        group = group_along(mesh, one.axes)
        for _ in range(2 if one.is_layer else 1):
            found.append(Collective("all-gather", one.size, group, turns * micro_batches, in_loop))
        found.append(Collective("reduce-scatter", one.gradient, group, turns * micro_batches, in_loop))
    for spec in jax.tree.leaves(programs.trained_specs, is_leaf=is_spec):
        divided = {axis for axes in programs.layout.stored(spec) for axis in axes}
        rest = [axis for axis, size in mesh.items() if size > 1 and axis not in divided]
        if rest:
            held = spec.size // math.prod(mesh[axis] for axis in divided) * wide_dtype(spec.dtype).itemsize
            found.append(Collective("all-reduce", held, group_along(mesh, rest)))
    return found


def described_layout(mesh: MeshSection, num_devices: int, platform: str, device_kind: str) -> Layout:
    """The layout of a run on devices that are not here. Raises ConfigError if the mesh has another size."""
    layout = abstract_layout(num_devices, platform, device_kind, mesh)
    return replace(layout, mesh=make_abstract_mesh(layout.degrees, _device(layout)))


@contextmanager
def tracing_for(layout: Layout) -> Iterator[None]:
    """Inside, programs are traced for such devices: jax_kernels chooses the implementations that they would run."""
    if layout.platform == "cpu":
        yield
        return
    with jax.sharding.use_abstract_mesh(make_abstract_mesh(layout.degrees, _device(layout))):
        yield


def _device(layout: Layout) -> AbstractDevice | None:
    if layout.platform == "cpu":
        return None
    return AbstractDevice(device_kind=layout.device_kind, num_cores=1, platform=layout.platform)


def _held_bytes(tree: Any) -> int:
    """What one device holds of a tree."""

    def size(leaf: Any) -> int:
        return int(math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize)

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


def choices(kernels: KernelsSection, asked: Mapping[str, str]) -> Choices:
    """The implementations that a new run would choose for the device that is traced for.

    Args:
        asked: implementations by op, instead of those of `[kernels]`.
    """
    return Choices(
        asked={**kernels.model_dump(), **asked},
        measured=TuningCache(winners_path(), current_device()),
    )


def _head_shape(programs: Programs) -> tuple[int, int]:
    """Outputs of the model, and the width of what it makes them from."""

    def weight(params: Any, frozen: Any) -> jax.Array:
        ctx = ForwardContext(programs.layout.single, training=True)
        return programs.model.head(merge_frozen(params, frozen), ctx).weight

    state, frozen = programs.abstract
    embed, outputs = jax.eval_shape(weight, state.params, frozen).shape
    return outputs, embed


def _residuals(programs: Programs) -> tuple[int, int]:
    """Bytes that the forward pass of a micro-batch leaves for the backward pass: activations, and what has the shape
    of a weight, such as its copy in another type."""
    step, (state, frozen) = programs.step, programs.abstract
    rows = programs.config.train.global_batch_size // programs.config.train.gradient_accumulation

    def forward(state: Any, frozen: Any, batch: Any) -> Any:
        def total(weights: Any) -> jax.Array:
            params = merge_frozen(merge_weights(weights, state.params, step.trained), frozen)
            return step.loss_sums(params, batch, jax.random.key(0), row_ids(batch))[0]

        return jax.vjp(total, select_weights(state.params, step.trained))

    program = Program("residuals", forward, (state, frozen, programs.batch(rows)), kernels=programs.kernels)
    jaxpr: Any = program.jaxpr().jaxpr
    given = set(jaxpr.invars)
    kept: set[Any] = {v for v in jaxpr.outvars[1:] if isinstance(v, Var) and v not in given}
    shapes: set[tuple[int, ...]] = {leaf.shape for leaf in jax.tree.leaves(state.params)}
    copies = sum(_bytes(v.aval) for v in kept if v.aval.shape in shapes or v.aval.shape[::-1] in shapes)
    return sum(_bytes(v.aval) for v in kept) - copies, copies


def _bytes(array: Any) -> int:
    return int(array.size) * int(getattr(array.dtype, "itemsize", 4))
