"""What one device's share of a run needs, counted from the traced programs: no compiler, no device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.extend.core import Var
from jax.sharding import AbstractDevice

from aifx.config import Config
from aifx.kernels.choice import winners_path
from aifx.optim import merge_weights, select_weights
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import abstract_layout
from aifx.parallel.mesh import Degrees, make_abstract_mesh
from aifx.planning.operations import Operations, count_operations
from aifx.programs.build import Programs, build, tree_bytes
from aifx.programs.device_parts import row_ids
from aifx.programs.program import Program
from aifx.specs import merge_frozen
from aifx.tasks.base import Task
from jax_kernels.dispatch import Choices
from jax_kernels.implementations import current_device
from jax_kernels.tuning import TuningCache


@dataclass(frozen=True)
class Counted:
    """Of a run, and of one step on one device. Sizes are in bytes.

    Attributes:
        units_per_step: tokens, images or examples of the global batch.
        model_flops: forward and backward pass of the model over the global batch; recomputation doesn't count.
        product_flops: of one device by dtype; recomputation counts.
        transcendentals: elements of exponentials and the like, of one device.
        activations: what the backward pass reads of the forward pass, of one micro-batch.
        copies: of weights, in the type of the computation, and gradients that the forward pass forms.
        logits: the largest array with an axis of the model's outputs.
    """

    unit: str
    units_per_step: int
    dtype: str
    num_parameters: int
    model_flops: int
    product_flops: dict[str, int]
    transcendentals: int
    parameters: int
    frozen: int
    optimizer: int
    gradients: int
    batch: int
    activations: int
    copies: int
    logits: int

    @property
    def state(self) -> int:
        """What a checkpoint holds."""
        return self.parameters + self.optimizer


def count(
    config: Config, task: Task, platform: str, device_kind: str, num_devices: int, asked: Mapping[str, str]
) -> Counted:
    """Of a run on devices that need not be here.

    Args:
        asked: implementations by op, instead of those of `[kernels]`.
    """
    train = config.train
    own = train.model_copy(update={"global_batch_size": train.global_batch_size // num_devices})
    layout = abstract_layout(1, platform, device_kind)
    with tracing_for(platform, device_kind):
        programs = build(replace(config, train=own), task, layout, kernels=choices(config, asked))
        operations = _operations(programs)
        activations, copies = _residuals(programs)
    state, rows = programs.state_bytes(), train.global_batch_size
    examples = math.prod(task.data.fields["targets"].shape) if "targets" in task.data.fields else 1
    return Counted(
        unit=task.objective.unit,
        units_per_step=rows * examples,
        dtype=programs.dtype_name,
        num_parameters=programs.num_parameters,
        model_flops=task.model.flops(rows),
        product_flops=dict(operations.product_flops),
        transcendentals=operations.transcendentals,
        batch=tree_bytes(programs.batch(own.global_batch_size)),
        activations=activations,
        copies=copies,
        logits=operations.largest,
        **state,
    )


@contextmanager
def tracing_for(platform: str, device_kind: str) -> Iterator[None]:
    """Inside, programs are traced for such a device: jax_kernels chooses the implementations that it would run."""
    if platform == "cpu":
        yield
        return
    device = AbstractDevice(device_kind=device_kind, num_cores=1, platform=platform)
    mesh = make_abstract_mesh(Degrees(), device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def choices(config: Config, asked: Mapping[str, str]) -> Choices:
    """The implementations that a new run would choose for the device that is traced for.

    Args:
        asked: implementations by op, instead of those of `[kernels]`.
    """
    return Choices(
        asked={**config.kernels.model_dump(), **asked},
        measured=TuningCache(winners_path(), current_device()),
    )


def _operations(programs: Programs) -> Operations:
    outputs, embed = _head_shape(programs)
    return count_operations(programs.train_step.jaxpr(), outputs, embed)


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
            params = merge_frozen(merge_weights(weights, state.params, step.specs), frozen)
            return step.loss_sums(params, batch, jax.random.key(0), row_ids(batch))[0]

        return jax.vjp(total, select_weights(state.params, step.specs))

    program = Program("residuals", forward, (state, frozen, programs.batch(rows)), kernels=programs.kernels)
    jaxpr: Any = program.jaxpr().jaxpr
    given = set(jaxpr.invars)
    kept: set[Any] = {v for v in jaxpr.outvars[1:] if isinstance(v, Var) and v not in given}
    shapes: set[tuple[int, ...]] = {leaf.shape for leaf in jax.tree.leaves(state.params)}
    copies = sum(_bytes(v.aval) for v in kept if v.aval.shape in shapes or v.aval.shape[::-1] in shapes)
    return sum(_bytes(v.aval) for v in kept) - copies, copies


def _bytes(array: Any) -> int:
    return int(array.size) * int(getattr(array.dtype, "itemsize", 4))
