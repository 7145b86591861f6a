"""The programs of a configuration, a task and a layout. Reads no file, needs no data and no device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from aifx.config import Config
from aifx.data.base import Batch
from aifx.models.adapted import AdaptedModel, plain_model
from aifx.models.base import Decodes, Model
from aifx.nn.adapters import merged_arrays
from aifx.nn.precision import cast_floating, compute_dtype
from aifx.nn.stacking import has_stacked_layers
from aifx.objectives.base import DeviceBatch, Objective, Rows, Sums
from aifx.objectives.checks import check_sums
from aifx.optim import make_optimizer, make_schedule, select_weights
from aifx.parallel.checks import check_model
from aifx.parallel.context import ForwardContext
from aifx.parallel.layout import BatchPlacement, Layout
from aifx.programs.decoding import DecodingPrograms
from aifx.programs.program import Program
from aifx.programs.state import TrainState, abstract_state, freeze_backbone, initial_state, typed_specs
from aifx.programs.train_step import TrainStep, batch_partitions, row_ids
from aifx.specs import Params, Specs, count_parameters, merge_frozen, split_frozen, widened
from aifx.tasks.base import Task, sharded_axes
from jax_kernels.dispatch import Choices


def build(config: Config, task: Task, layout: Layout, *, kernels: Choices | None = None) -> Programs:
    """The programs of a project, traced with the implementations `kernels` of jax_kernels, or with the default ones.

    Raises ConfigError if the mesh of the layout cannot divide what the model computes.
    """
    sharded = sharded_axes(task)
    check_model(layout, task.model.specs(), task.data.fields, sharded, type(plain_model(task.model)).__name__)
    return Programs(config, task, layout.computing(sharded), kernels)


@dataclass(frozen=True, eq=False)
class Programs:
    """The programs of a project. Each is traced when it is used, not before."""

    config: Config
    task: Task
    layout: Layout
    kernels: Choices | None = None
    casts: bool = True  # parameters to `dtype`, for evaluation and prediction; False for quantized ones

    @property
    def model(self) -> Model:
        return self.task.model

    @property
    def objective(self) -> Objective:
        return self.task.objective

    @functools.cached_property
    def specs(self) -> Specs:
        """The specs of the whole model. With `finetune.freeze`, only what is trained takes gradients."""
        has_adapters = self.config.finetune.adapter != "none"
        specs = typed_specs(self.model, self.config.train.parameter_dtype, self.dtype, has_adapters=has_adapters)
        if self.config.finetune.freeze == "backbone":
            return freeze_backbone(self.model, specs, ForwardContext(self.layout.single))
        return specs

    @functools.cached_property
    def trained_specs(self) -> Specs:
        """The specs of weights and buffers."""
        return split_frozen(self.specs, self.specs)[0]  # type: ignore[no-any-return]

    @functools.cached_property
    def frozen_specs(self) -> Specs:
        return split_frozen(self.specs, self.specs)[1]  # type: ignore[no-any-return]

    @functools.cached_property
    def is_stacked(self) -> bool:
        """Whether layers are scanned: stacked in memory, each under its own name on disk."""
        return has_stacked_layers(self.specs)

    @functools.cached_property
    def dtype(self) -> DTypeLike:
        """The type of the computation."""
        return compute_dtype(self.config.train.precision, self.layout.platform)

    @property
    def dtype_name(self) -> str:
        return jnp.dtype(self.dtype).name

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        return make_optimizer(self.config.optimizer, self.trained_specs, self.layout)

    @property
    def has_ema(self) -> bool:
        """Whether the state holds averaged weights."""
        return self.config.optimizer.ema_decay > 0

    @functools.cached_property
    def abstract(self) -> tuple[TrainState, Params]:
        """The state and the frozen arrays as shapes, dtypes and shardings."""
        return abstract_state(self.specs, self.optimizer, self.layout, has_ema=self.has_ema)

    @property
    def gradients(self) -> Any:
        """The gradients of the weights, as shapes, dtypes and shardings."""
        return widened(select_weights(self.abstract[0].params, self.trained_specs))

    @functools.cached_property
    def step(self) -> TrainStep:
        """The training step as a function."""
        schedule = make_schedule(self.config.schedule, self.config.train.num_steps)
        return TrainStep(self.config, self.task, self.layout, self.specs, self.optimizer, schedule, self.dtype)

    @functools.cached_property
    def init(self) -> Program:
        """() -> the state before the first update, and the frozen arrays, where they will be."""

        def init() -> tuple[TrainState, Params]:
            return initial_state(self.specs, self.optimizer, self.config.train.seed, has_ema=self.has_ema)

        places = jax.tree.map(lambda x: x.sharding, self.abstract)
        # Run once, so that compiling it is all its cost: LLVM's first optimization level halves that, draws as fast.
        options = {"xla_backend_optimization_level": 1} if self.layout.platform == "cpu" else None
        return Program("init", init, (), out_shardings=places, compiler_options=options)

    @functools.cached_property
    def init_state(self) -> Program:
        """() -> the state before the first update, alone: without memory for frozen arrays."""

        def init_state() -> TrainState:
            trained, seed = self.trained_specs, self.config.train.seed
            return initial_state(trained, self.optimizer, seed, has_ema=self.has_ema)[0]

        return replace(self.init, name="init_state", function=init_state, out_shardings=self.init.out_shardings[0])

    @functools.cached_property
    def init_params(self) -> Program:
        """() -> weights and buffers before the first update: without memory for the optimizer's state."""

        def init_params() -> Params:
            state: TrainState = self.init_state.function()
            return state.params

        places = self.init.out_shardings[0].params
        return replace(self.init, name="init_params", function=init_params, out_shardings=places)

    @functools.cached_property
    def train_step(self) -> Program:
        """(state, frozen, batch) -> the next state, and STEP_METRICS. The state is donated."""
        state, frozen = self.abstract
        places = jax.tree.map(lambda x: x.sharding, state), self.layout.replicated
        arguments = state, frozen, self.batch(self.config.train.global_batch_size)
        return self._program("train_step", self.step, arguments, donate=(0,), out_shardings=places)

    @functools.cached_property
    def eval_step(self) -> Program:
        """(params, frozen, batch) -> the sums of the objective."""

        def sums(model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Sums:
            return check_sums(self.objective, self.objective.sums(model, params, batch, ctx))

        # Each process has all of what the host adds up, also what is known of each row.
        program = self._forward_program("eval_step", sums, lambda found: isinstance(found, Rows))
        return replace(program, out_shardings=self.layout.replicated)

    @functools.cached_property
    def score_step(self) -> Program:
        """(params, frozen, batch) -> the sums of the objective by row."""
        return self._forward_program("score_step", self.objective.row_sums, lambda _: True)

    @functools.cached_property
    def predict_step(self) -> Program:
        """(params, frozen, batch) -> the predictions of the objective. The batch is one of `DataFormat.encode`."""
        return self._forward_program("predict_step", self.objective.predictions, lambda _: True)

    @functools.cached_property
    def hidden_step(self) -> Program:
        """(params, frozen, batch) -> what the head reads of each row: "hidden" float32 `[rows, embed]`."""

        def hidden(model: Model, params: Params, batch: DeviceBatch, ctx: ForwardContext) -> Mapping[str, jax.Array]:
            return {"hidden": model.hidden(params, batch, ctx).astype(jnp.float32)}

        return self._forward_program("hidden_step", hidden, lambda _: True)

    @functools.cached_property
    def reference_step(self) -> Program:
        """(params, frozen, batch) -> the objective's `reference` of each row: values of the model before training."""
        compute: Any = getattr(self.objective, "reference")  # noqa: B009  # of those that need one
        program = self._forward_program("reference_step", compute, lambda _: True)
        return replace(program, out_shardings=self.layout.replicated)  # each process has those of all rows

    @functools.cached_property
    def parts(self) -> Mapping[str, Program]:
        """The step in parts: "forward" and "forward_backward", (state, frozen, batch) -> loss (and gradients), and
        "update", (state, gradients) -> the next state and the norm; the state is donated to the last."""

        def update(state: TrainState, gradients: Any) -> tuple[TrainState, jax.Array]:
            norm = optax.tree.norm(gradients)
            return self.step.update(state, gradients, norm), norm

        state, _ = self.abstract
        places = jax.tree.map(lambda x: x.sharding, state)
        gradients = jax.tree.map(lambda x: x.sharding, self.gradients)
        arguments, scalar = self.train_step.arguments, self.layout.replicated
        programs = (
            self._program("forward", self.step.loss, arguments, out_shardings=scalar),
            self._program(
                "forward_backward", self.step.loss_and_gradients, arguments, out_shardings=(scalar, gradients)
            ),
            self._program("update", update, (state, self.gradients), donate=(0,), out_shardings=(places, scalar)),
        )
        return {program.name: program for program in programs}

    @functools.cached_property
    def decoding(self) -> DecodingPrograms:
        """The programs of a model that writes text (`can_decode`)."""
        model = plain_model(self.model)
        assert isinstance(model, Decodes)
        return DecodingPrograms(model, self.plain.specs, self.layout, self.dtype, self.kernels)

    @functools.cached_property
    def plain(self) -> Programs:
        """The programs of the model without adapters, which take `merged` arrays."""
        return replace(self, task=replace(self.task, model=plain_model(self.model)))

    def merged(self, params: Params, frozen: Params) -> Params:
        """All arrays as `plain` takes them, with adapters merged into the matrices beside them, in `dtype`."""
        params = merge_frozen(params, frozen)
        model = self.model
        if isinstance(model, AdaptedModel):
            places = self.layout.of_params(self.plain.specs)
            merge = jax.jit(
                lambda params: merged_arrays(params, self.specs, self.plain.specs, model.section), out_shardings=places
            )
            params = merge(params)
        return cast_floating(params, self.dtype)

    def one_copy(self, params: Params, frozen: Params) -> tuple[Programs, Params, Params]:
        """The programs on the fewest devices that hold the parameters once, and the arrays there."""
        programs = self._on_one_copy
        if programs.layout.num_devices == self.layout.num_devices:
            return self, params, frozen
        state, of_frozen = programs.abstract
        places = jax.tree.map(lambda x: x.sharding, (state.params, of_frozen))
        return programs, *jax.device_put((params, frozen), places)

    def as_decoding(self, params: Params, frozen: Params) -> tuple[DecodingPrograms, Params]:
        """`decoding` on the fewest devices that hold the parameters once, and the arrays as it takes them."""
        programs, params, frozen = self.one_copy(params, frozen)
        params = programs.merged(params, frozen) if programs.casts else params
        return programs.decoding, programs.decoding.prepare(params)

    @functools.cached_property
    def _on_one_copy(self) -> Programs:
        return replace(self, layout=self.layout.one_copy)

    @property
    def can_decode(self) -> bool:
        return isinstance(plain_model(self.model), Decodes)

    @property
    def eval_rows(self) -> int:
        """Rows of an evaluation batch: as many as `eval.batch_size` or the next number that the devices can share."""
        return self.layout.padded_rows(self.config.eval.batch_size or self.config.train.global_batch_size)

    def batch(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The fields of a batch of so many rows, as `place` puts them on the devices."""
        return {
            name: jax.ShapeDtypeStruct((rows, *field.shape), field.dtype, sharding=self.layout.of_batch(field.axes))
            for name, field in self.task.data.fields.items()
        }

    @functools.cached_property
    def placement(self) -> Callable[[int], BatchPlacement]:
        """rows -> the `BatchPlacement` of batches of so many, made once for each number."""
        axes = {name: field.axes for name, field in self.task.data.fields.items()}
        return functools.cache(lambda rows: BatchPlacement(self.layout, rows, axes))

    def place(self, batch: Batch, rows: int | None = None) -> dict[str, jax.Array]:
        """The batch on the devices: this process's part of `rows` rows, by default all of a batch."""
        return self.placement(len(next(iter(batch.values()))) if rows is None else rows)(batch)

    @property
    def num_parameters(self) -> int:
        return count_parameters(self.model.specs())

    @property
    def flops_per_step(self) -> int:
        """The FLOPs of the model's formulas, forward and backward: not those of the compiled program."""
        flops = self.model.flops(self.config.train.global_batch_size)
        # The backward pass is two thirds, and a frozen backbone has none.
        return flops // 3 if self.config.finetune.freeze == "backbone" else flops

    def state_bytes(self) -> dict[str, int]:
        """Bytes of one copy of "parameters", "frozen", "optimizer" (with averaged weights) and "gradients"."""
        state, frozen = self.abstract
        optimizer = state.opt_state, state.ema
        parts = {"parameters": state.params, "frozen": frozen, "optimizer": optimizer, "gradients": self.gradients}
        return {name: tree_bytes(tree) for name, tree in parts.items()}

    def _program(self, name: str, function: Any, arguments: tuple[Any, ...], **options: Any) -> Program:
        return Program(name, function, arguments, kernels=self.kernels, **options)

    def _forward_program(
        self,
        name: str,
        compute: Callable[[Model, Params, DeviceBatch, ForwardContext], Mapping[str, Any]],
        is_rows: Callable[[Any], bool],
    ) -> Program:
        """The program that returns what `compute` finds of a batch: numbers of each row (`is_rows`), or sums."""
        layout, (trained, of_frozen) = self.layout, split_frozen(self.specs, self.specs)

        def program(params: Params, frozen: Params, batch: DeviceBatch, ids: jax.Array) -> Any:
            dtype = self.dtype if self.casts else None
            merged = layout.parts(merge_frozen(params, frozen), self.specs, self.model.gathers, dtype)
            found = compute(self.model, merged, batch, ForwardContext(layout, row_ids=ids))
            rows = {name: value for name, value in found.items() if is_rows(value)}
            return rows, layout.sum({name: value for name, value in found.items() if name not in rows})

        def forward(params: Params, frozen: Params, batch: DeviceBatch) -> Mapping[str, Any]:
            parts = layout.partitions(trained), layout.partitions(of_frozen)
            rows = layout.batch_partition()
            mapped = layout.per_device(
                program, (*parts, batch_partitions(self.task, layout, batch), rows), (rows, PartitionSpec())
            )
            by_row, sums = mapped(params, frozen, batch, row_ids(batch))
            return {**by_row, **sums}

        state, frozen = self.abstract
        return self._program(name, forward, (state.evaluated, frozen, self.batch(self.eval_rows)))


def tree_bytes(tree: Any) -> int:
    """The bytes of all arrays of a tree."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))
