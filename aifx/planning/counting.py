"""The needs of one device's share of a run, counted from the traced programs: no compiler, no device.

Operations are counted from a program's jaxpr: all that it asks for, recomputation included. Loops count as often as
they turn, where XLA's own `flops` counts the body of a loop once. A kernel counts as it declares
(`pallas_call(cost_estimate=)`): the bounds of its loops may be known on the device only.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
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
from aifx.programs.build import Programs, build
from aifx.programs.program import Program
from aifx.programs.train_step import row_ids
from aifx.specs import LAYERS, ArraySpec, is_spec, is_stacked, merge_frozen, wide_dtype
from aifx.tasks.base import Task
from jax_kernels._ops.attention.call import Call
from jax_kernels._ops.attention.cost import FORWARD, OF_KEYS, OF_QUERIES
from jax_kernels.dispatch import Choices
from jax_kernels.implementations import current_device
from jax_kernels.tuning import TuningCache


@dataclass(frozen=True)
class Counted:
    """The counts of a run, and of one step on one device. Sizes are in bytes.

    Attributes:
        mesh: devices along each of its axes.
        units_per_step: tokens, images or examples of the global batch.
        model_flops: forward and backward pass of the model over the global batch; recomputation doesn't count.
        product_flops: of one device by dtype; recomputation counts.
        attention_flops: of these, attention's (`aifx.planning.counting.Operations`).
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
    """The counts of a run on devices that need not be here.

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
        parts = num_output_shards(programs, outputs)
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
    """The programs of one device, with its rows of the batch."""
    rows = config.train.global_batch_size // layout.count("batch")
    own = replace(config, train=config.train.model_copy(update={"global_batch_size": rows}))
    return build(own, task, layout.single, kernels=choices(config.kernels, asked))


def num_output_shards(programs: Programs, outputs: int) -> int:
    """The number of devices among which the outputs of a token are sharded."""
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
    """Bytes of gathered weights in use and their gradients: those of a layer, and the largest other one.

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
        sharded = {axis for axes in programs.layout.stored(spec) for axis in axes}
        rest = [axis for axis, size in mesh.items() if size > 1 and axis not in sharded]
        if rest:
            held = spec.size // math.prod(mesh[axis] for axis in sharded) * wide_dtype(spec.dtype).itemsize
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
    """Bytes of a tree on one device."""

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
    """The operations of one run of a program, over all devices.

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
    """The operations of a (closed) jaxpr.

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
        """The number of its runs on all devices."""
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
