"""The sections of `aifx.toml`: one frozen model each, unknown keys refused.

The description of each field is its documentation: `aifx config schema` and the editors that read it show it.
A field marked RESUME_SAFE may change between a run and its resumption, because it changes no number that the run
computes. One marked ROUNDING may change too; it changes at most the rounding, and `aifx train` reports that. If any
other field differs, `aifx train` refuses (see `aifx.config.compare`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from aifx.core.errors import AifxError
from aifx.core.project import Project
from aifx.core.sanitize import escape_controls

RESUME_SAFE: dict[str, Any] = {"aifx_resume_safe": True}
ROUNDING: dict[str, Any] = {**RESUME_SAFE, "aifx_rounding": True}
INT_MAX = 2**31 - 1  # steps and sizes are int32 on the device

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1, le=INT_MAX)]
NonNegativeInt = Annotated[int, Field(ge=0, le=INT_MAX)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A section of `aifx.toml`. Frozen; a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def conflicts(self, config: Any) -> Iterator[Conflict]:
        """Settings of this section that cannot be used together, or with other sections of `config`."""
        return iter(())


@dataclass(frozen=True)
class Conflict:
    """Settings that cannot be used together. The first key is blamed if they come from the same place."""

    keys: tuple[str, ...]
    problem: str
    reason: str


class ProjectSection(Section):
    """What this project is called."""

    name: str = Field("project", description="Name of the project, shown in reports.", json_schema_extra=RESUME_SAFE)
    description: str = Field(
        "", description="One line for the person who finds this project.", json_schema_extra=RESUME_SAFE
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if escape_controls(name) != name:
            raise ValueError("it holds control characters, which a terminal would obey")
        return name


class TaskSection(Section):
    """What is trained. A kind means a model family, an objective and a kind of data."""

    kind: str = Field("language", description="`language`, `vision`, or `module:Class` in the project's folder.")


class ModelSection(Section):
    """Base of the `[model]` of each family."""

    family: str | None = Field(
        None, description="Model family, or `module:FAMILY` in the project's folder; that of task.kind if not set."
    )
    preset: str | None = Field(None, description="Named model whose values apply where you set none: docs/models.md.")


class ObjectiveSection(Section):
    """Base of the `[objective]` of each objective."""

    kind: str | None = Field(
        None, description="Objective, or `module:OBJECTIVE` in the project's folder; that of task.kind if not set."
    )


class DataSection(Section):
    """Base of the `[data]` of each kind of data."""

    kind: str | None = Field(
        None, description="Kind of data, or `module:DATA` in the project's folder; that of task.kind if not set."
    )

    def check_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        """Keys of this section that name a missing or unusable file, each with its error. Reads no file."""
        return iter(())

    def read_beginnings(self, project: Project) -> int | None:
        """Read the beginning of each file, and count them; None if only the task knows its files.

        Raises AifxError, OSError, ValueError for a file that cannot be used.
        """
        return None


class MeshSection(Section):
    """How `train.devices` are arranged."""

    data: PositiveInt | Literal[-1] = Field(
        -1, description="Devices that divide the rows of a batch; -1 takes all of train.devices."
    )


class TrainSection(Section):
    """How long, how much at a time, and from which seed."""

    num_steps: PositiveInt = Field(1000, description="Optimizer steps of the whole run.")
    global_batch_size: PositiveInt = Field(
        16, description="Sequences or images in one optimizer step, over all devices."
    )
    gradient_accumulation: PositiveInt = Field(
        1, description="Micro-batches that a step is split into, to need less memory."
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = Field(
        0, description="Seed of initialization and of the order of the data."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Type of the computation; parameters stay float32. auto: float32 on CPU, bfloat16 on accelerators.",
    )
    devices: PositiveInt | Literal["all"] = Field("all", description="Local devices to train on, data-parallel.")
    validate_every: NonNegativeInt = Field(200, description="Steps between validations; 0 never validates.")
    validation_batches: NonNegativeInt = Field(0, description="Batches of one validation; 0 takes the whole split.")
    early_stopping: NonNegativeInt = Field(
        0, description="Stop after this many validations without improvement of checkpoint.best_by; 0 never."
    )


class OptimizerSection(Section):
    """The update rule."""

    kind: Literal["adamw", "muon"] = Field("adamw", description="adamw, or muon for matrices with adamw for the rest.")
    learning_rate: PositiveFloat = Field(1e-3, description="Peak learning rate (of the matrices, with muon).")
    adam_learning_rate: PositiveFloat | None = Field(
        None, description="With muon: peak learning rate of embeddings, norms and biases; learning_rate when not set."
    )
    weight_decay: NonNegativeFloat = Field(
        0.1, description="Decoupled weight decay of matrices; vectors and norms never decay."
    )
    beta1: Fraction = Field(0.9, description="AdamW: decay of the first moment.")
    beta2: Fraction = Field(0.95, description="AdamW: decay of the second moment.")
    epsilon: PositiveFloat = Field(1e-8, description="AdamW: added to the root of the second moment.")
    momentum: Fraction = Field(0.95, description="Muon: decay of the momentum.")
    clip_norm: NonNegativeFloat = Field(1.0, description="Bound on the global norm of the gradient; 0 never clips.")


class ScheduleSection(Section):
    """The learning rate over the run, as a share of its peak."""

    kind: Literal["cosine", "wsd", "constant"] = Field(
        "cosine", description="After warm-up: cosine, stable-then-decay, or constant."
    )
    warmup_steps: NonNegativeInt = Field(0, description="Steps of linear warm-up from 0.")
    final_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.1, description="Learning rate at the end, as a share of the peak."
    )
    decay_fraction: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        0.2, description="wsd: share of the run that decays."
    )


class CheckpointSection(Section):
    """What is kept on disk, and how often."""

    every: NonNegativeInt = Field(
        200,
        description="Steps between checkpoints; 0 saves only at the end and when stopped.",
        json_schema_extra=RESUME_SAFE,
    )
    keep_last: PositiveInt = Field(2, description="Newest checkpoints that are kept.", json_schema_extra=RESUME_SAFE)
    keep_best: NonNegativeInt = Field(
        1, description="Best checkpoints that are also kept, by `best_by`.", json_schema_extra=RESUME_SAFE
    )
    best_by: str = Field(
        "auto",
        description='What makes a checkpoint the best: "max" or "min" and a validation metric, such as "max accuracy". '
        "auto: the metric of the first gate, otherwise the loss; fixed when the run starts.",
    )
    asynchronous: bool = Field(True, description="Write while training goes on.", json_schema_extra=RESUME_SAFE)
    stop_timeout_s: PositiveFloat = Field(
        30.0, description="Bound on saving after a signal; then the process exits.", json_schema_extra=RESUME_SAFE
    )


Quantization = Literal["none", "int8", "float8_e4m3fn"]


class EvalSection(Section):
    """What a checkpoint must reach."""

    gates: tuple[str, ...] = Field(
        (),
        description='Conditions such as "bits_per_byte <= 2.2"; a failed one makes `aifx eval` exit 1.',
        json_schema_extra=RESUME_SAFE,
    )
    split: Literal["test", "validation", "train"] = Field(
        "test", description="Split that `aifx eval` reports.", json_schema_extra=RESUME_SAFE
    )
    checkpoint: Literal["best", "last"] = Field(
        "best", description="Checkpoint that `aifx eval`, `predict` and `generate` take.", json_schema_extra=RESUME_SAFE
    )
    batch_size: NonNegativeInt = Field(0, description="Rows of an evaluation batch; 0 takes train.global_batch_size.")
    quantize: Quantization = Field(
        "none",
        description="Measure a language model with its matrices quantized to this type.",
        json_schema_extra=RESUME_SAFE,
    )


OpImplementation = Literal["auto", "reference", "xla", "pallas_triton", "pallas_tpu"]
AttentionImplementation = Literal[
    "auto", "reference", "xla", "pallas_triton", "pallas_mosaic_gpu", "pallas_tpu", "cudnn", "cudnn_masked"
]


class KernelsSection(Section):
    """Implementation of each op of `jax_kernels`. If it does not support a call, another runs. `aifx kernels explain`
    shows what "auto" chooses, and why."""

    attention: AttentionImplementation = Field("auto", description="Implementation of attention over whole sequences.")
    linear_cross_entropy: OpImplementation = Field(
        "auto", description="Implementation of the projection to the vocabulary with the loss."
    )
    rms_norm: OpImplementation = Field("auto", description="Implementation of RMS normalization.")
    layer_norm: OpImplementation = Field("auto", description="Implementation of layer normalization.")
    decode_attention: OpImplementation = Field(
        "auto", description="Implementation of a generated token's attention over the cache."
    )
    swiglu: OpImplementation = Field("auto", description="Implementation of the gated MLP's first half.")
    rotary: OpImplementation = Field("auto", description="Implementation of rotary positions.")
    quantized_matmul: OpImplementation = Field("auto", description="Implementation of products of quantized numbers.")


class LogSection(Section):
    """Where the numbers go."""

    every: PositiveInt = Field(1, description="Steps between records in metrics.jsonl.", json_schema_extra=RESUME_SAFE)
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        (),
        description="Trackers that also get each record; each needs its package.",
        json_schema_extra=RESUME_SAFE,
    )


class GenerateSection(Section):
    """Defaults of `aifx generate`."""

    prompt: str = Field("", description="Text to continue.", json_schema_extra=RESUME_SAFE)
    max_tokens: PositiveInt = Field(200, description="Tokens to write.", json_schema_extra=RESUME_SAFE)
    temperature: NonNegativeFloat = Field(
        0.8, description="0 takes the likeliest token each time.", json_schema_extra=RESUME_SAFE
    )
    top_k: NonNegativeInt = Field(
        0, description="Sample among this many likeliest tokens; 0 among all.", json_schema_extra=RESUME_SAFE
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.95, description="Sample among the likeliest tokens of this total probability.", json_schema_extra=RESUME_SAFE
    )
    quantize: Quantization = Field(
        "none", description="Write with the model's matrices quantized to this type.", json_schema_extra=RESUME_SAFE
    )
