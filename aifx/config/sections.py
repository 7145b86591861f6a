"""The sections of `aifx.toml`: one frozen model each, unknown keys refused.

The description of each field is its documentation: `aifx config schema` and the editors that read it show it.
A field marked RESUME_SAFE may change between a run and its resumption, because it changes no number that the run
computes. One marked ROUNDING may change too; it changes at most the rounding, and `aifx train` reports that. If any
other field differs, `aifx train` refuses (see `aifx.config.compare`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from aifx.core.errors import AifxError
from aifx.core.project import Project
from aifx.core.sanitize import escape_controls

Remat = Literal["none", "dots", "full"]
"""The part that the backward pass computes again: nothing; all but matrix products; everything."""

RESUME_SAFE: dict[str, Any] = {"aifx_resume_safe": True}
ROUNDING: dict[str, Any] = {**RESUME_SAFE, "aifx_rounding": True}
INT_MAX = 2**31 - 1  # steps and sizes are int32 on the device

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PositiveInt = Annotated[int, Field(ge=1, le=INT_MAX)]
NonNegativeInt = Annotated[int, Field(ge=0, le=INT_MAX)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

_BASE = re.compile(r"[^\s/@:]+(:(best|[0-9]{1,10})|@[^\s/@:]+)?")

T = TypeVar("T")


def setting(default: T, description: str, marks: dict[str, Any] | None = None) -> T:
    """A key of a section. `marks`: RESUME_SAFE, ROUNDING, or neither."""
    return Field(default, description=description, json_schema_extra=marks)


def is_marked(extra: Any, mark: Mapping[str, Any]) -> bool:
    """Whether a field's `json_schema_extra` bears a mark: RESUME_SAFE, or ROUNDING, which is RESUME_SAFE as well."""
    return isinstance(extra, Mapping) and mark.items() <= extra.items()


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
    """The project's name and description."""

    name: str = setting("project", "Name of the project, shown in reports.", RESUME_SAFE)
    description: str = setting("", "One line for the person who finds this project.", RESUME_SAFE)

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if escape_controls(name) != name:
            raise ValueError("it holds control characters, which a terminal would obey")
        return name


class TaskSection(Section):
    """The task that is trained. A kind means a model family, an objective and a kind of data."""

    kind: str = setting(
        "language",
        "`language`, `chat`, `preference`, `vision`, `series`, `tabular`, or `module:Class` in the project's folder.",
    )


class ModelSection(Section):
    """Base of the `[model]` of each family."""

    family: str | None = setting(
        None, "Model family, or `module:FAMILY` in the project's folder; that of task.kind if not set."
    )
    preset: str | None = setting(None, "Named model whose values apply where you set none: docs/models.md.")

    def computation(self) -> dict[str, Any]:
        """The values that decide what a trained model computes, by key. Those of training alone are left out."""
        fields = type(self).model_fields.items()
        free = {key for key, info in fields if is_marked(info.json_schema_extra, RESUME_SAFE)}
        return self.model_dump(exclude={"family", "preset", "dropout", *free})

    def differences(self, other: ModelSection) -> list[str]:
        """The keys by which the models of two sections compute different things."""
        ours, theirs = self.computation(), other.computation()
        return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


class ObjectiveSection(Section):
    """Base of the `[objective]` of each objective."""

    kind: str | None = setting(
        None, "Objective, or `module:OBJECTIVE` in the project's folder; that of task.kind if not set."
    )


class DataSection(Section):
    """Base of the `[data]` of each kind of data."""

    can_train_on_validation: ClassVar[bool] = False
    """Whether `train.folds` and `aifx train --refit`, by `validation_fraction = 0`, can train on validation rows."""

    kind: str | None = setting(
        None, "Kind of data, or `module:DATA` in the project's folder; that of task.kind if not set."
    )

    def check_files(self, project: Project) -> Iterator[tuple[str, AifxError]]:
        """Keys of this section that name a missing or unusable file, each with its error. Reads no file."""
        return iter(())

    def named_files(self, project: Project) -> Mapping[str, Sequence[Any]]:
        """The files (`SourceFile`) by the key that names them, such as "data.train"; none if only the task knows them.

        Raises DataError.
        """
        return {}

    def read_beginnings(self, project: Project) -> int | None:
        """Read the beginning of each file, and count them; None if only the task knows its files.

        Raises AifxError, OSError, ValueError for a file that cannot be used.
        """
        return None


class AugmentSection(Section):
    """Random changes of training images, new ones each time they are read."""

    flip: Literal["none", "horizontal", "vertical", "both"] = setting("none", "Mirror half of the images.")
    rotate: Annotated[float, Field(ge=0.0, le=180.0)] = setting(0.0, "Turn images by up to so many degrees.")
    crop: Annotated[float, Field(gt=0.0, le=1.0)] = setting(
        1.0, "Take a part of this share of each image's area or more, and make it as large as the whole."
    )
    shift: NonNegativeInt = setting(0, "Shift images by up to so many pixels.")
    brightness: Share = setting(0.0, "Make images brighter or darker by up to this share of the full range.")
    contrast: Share = setting(0.0, "Raise or lower the contrast by up to this share.")
    erase: Share = setting(0.0, "Cover a rectangle of each image with noise, of up to this share of its area.")
    mixup: NonNegativeFloat = setting(
        0.0, "Mix each image with another, in shares of the distribution Beta(mixup, mixup); 0 mixes none."
    )

    @property
    def is_active(self) -> bool:
        return self != type(self)()


MeshSize = PositiveInt | Literal[-1]


class MeshSection(Section):
    """The arrangement of `train.devices`: the sizes make up their number, and one of them may be -1."""

    auto: bool = setting(
        False,
        "A new run takes the mesh, accumulation and remat that `aifx plan --fit` finds for its devices.",
        ROUNDING,
    )
    data: MeshSize = setting(
        -1, "Devices that divide the rows of a batch. -1: those that the other sizes leave.", ROUNDING
    )
    fsdp: MeshSize = setting(1, "Devices that divide rows, and also parameters and optimizer state.", ROUNDING)
    tensor: MeshSize = setting(1, "Devices that divide heads, MLP and vocabulary of each layer.", ROUNDING)
    context: MeshSize = setting(1, "Devices that divide the steps of each sequence.", ROUNDING)
    context_method: Literal["gather", "ring"] = setting(
        "gather", "ring: no device holds the keys and values of a whole sequence.", ROUNDING
    )
    expert: Literal[1] = setting(1, "Reserved for experts.", ROUNDING)
    parameters: tuple[str, ...] = setting(
        (), 'Other rules for parameters and optimizer state, such as "embed =": docs/mesh.md.', ROUNDING
    )
    computation: tuple[str, ...] = setting((), "Other rules for the computation.", ROUNDING)


class ProcessesSection(Section):
    """Times that the processes of a job wait for each other."""

    connect_timeout_s: PositiveFloat = setting(300.0, "Until all processes have started.", RESUME_SAFE)
    silent_timeout_s: PositiveFloat = setting(
        30.0, "For a sign of life of a process that is stopped, or whose machine is gone.", RESUME_SAFE
    )
    stuck_timeout_s: PositiveFloat = setting(
        1800.0, "For a process that others wait for and that reports no progress, as in a compilation.", RESUME_SAFE
    )


class TrainSection(Section):
    """The length of a training, its batches and its seed."""

    num_steps: PositiveInt = setting(1000, "Optimizer steps of the whole run.")
    global_batch_size: PositiveInt = setting(16, "Sequences or images in one optimizer step, over all devices.")
    gradient_accumulation: PositiveInt = setting(
        1, "Micro-batches that a step is split into, to need less memory.", ROUNDING
    )
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = setting(0, "Seed of initialization and of the order of the data.")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto", "Type of the computation. auto: float32 on CPU, bfloat16 on accelerators."
    )
    parameter_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "Type in which weights are kept. bfloat16: half the memory, updates are rounded stochastically."
    )
    devices: PositiveInt | Literal["all"] = setting("all", "Local devices to train on, arranged by [mesh].", ROUNDING)
    validate_every: NonNegativeInt = setting(200, "Steps between validations; 0 never validates.")
    validation_batches: NonNegativeInt = setting(0, "Batches of one validation; 0 takes the whole split.")
    early_stopping: NonNegativeInt = setting(
        0, "Stop after this many validations without improvement of checkpoint.best_by; 0 never."
    )
    folds: PositiveInt = setting(
        1, "Members of an ensemble for a table. Each is trained without one fold of the rows, and validated on it."
    )
    hooks: tuple[str, ...] = setting(
        (), "Code of the project that runs around the steps, each as `module:Hook`: docs/hooks.md.", RESUME_SAFE
    )


class OptimizerSection(Section):
    """The update rule."""

    kind: Literal["adamw", "muon"] = setting("adamw", "adamw, or muon for matrices with adamw for the rest.")
    learning_rate: PositiveFloat = setting(1e-3, "Peak learning rate (of the matrices, with muon).")
    adam_learning_rate: PositiveFloat | None = setting(
        None, "With muon: peak learning rate of embeddings, norms and biases; learning_rate when not set."
    )
    weight_decay: NonNegativeFloat = setting(0.1, "Decoupled weight decay of matrices; vectors and norms never decay.")
    beta1: Fraction = setting(0.9, "AdamW: decay of the first moment.")
    beta2: Fraction = setting(0.95, "AdamW: decay of the second moment.")
    epsilon: PositiveFloat = setting(1e-8, "AdamW: added to the root of the second moment.")
    momentum: Fraction = setting(0.95, "Muon: decay of the momentum.")
    ns_steps: PositiveInt = setting(
        5,
        "Muon: Newton-Schulz steps that orthogonalize an update. Fewer than 5 take less time, are less exact, and "
        "start from Turbo-Muon's scaling.",
    )
    moment_dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "Type of AdamW's first moment and Muon's momentum: bfloat16 takes half the memory."
    )
    clip_norm: NonNegativeFloat = setting(1.0, "Bound on the global norm of the gradient; 0 never clips.")
    ema_decay: Fraction = setting(
        0.0, "Decay of a moving average of the weights, which evaluation and generation then use; 0 keeps none."
    )


class ScheduleSection(Section):
    """The learning rate over the run, as a share of its peak."""

    kind: Literal["cosine", "wsd", "constant"] = setting(
        "cosine", "After warm-up: cosine, stable-then-decay, or constant."
    )
    num_steps: NonNegativeInt = setting(0, "Steps that the schedule spans; 0: those of the run.")
    warmup_steps: NonNegativeInt = setting(0, "Steps of linear warm-up from 0; at most half of the schedule.")
    final_fraction: Share = setting(0.1, "Learning rate at the end, as a share of the peak.")
    decay_fraction: Share = setting(0.2, "wsd: share of the schedule that decays.")

    def steps_of(self, run_steps: int) -> int:
        """Steps that the schedule spans in a run of `run_steps`."""
        return self.num_steps or run_steps

    def warmup_of(self, run_steps: int) -> int:
        """Steps of warm-up in a run of `run_steps`: at most half of the schedule, and none that decay by "wsd"."""
        num_steps = self.steps_of(run_steps)
        return min(self.warmup_steps, num_steps // 2, num_steps - self.decay_of(run_steps))

    def decay_of(self, run_steps: int) -> int:
        """Steps that decay by "wsd" in a run of `run_steps`."""
        return round(self.decay_fraction * self.steps_of(run_steps)) if self.kind == "wsd" else 0


class FinetuneSection(Section):
    """The weights of an earlier run, or of a model version, that a new run begins with."""

    base: str | None = setting(
        None,
        'Weights that a new run begins with: "RUN" (its best checkpoint) or "RUN:STEP" of this project, '
        'or a version of the registry such as "fraud@v3". The head may differ.',
    )
    freeze: Literal["none", "backbone"] = setting("none", "backbone: train the head alone, on the weights of base.")
    adapter: Literal["none", "lora"] = setting(
        "none", "lora: the weights of base stay as they are, and small matrices beside them are trained."
    )
    base_quantize: Literal["none", "int8"] = setting(
        "none", "int8: with an adapter, hold the matrices of base as 8-bit numbers with a scale per output."
    )

    @field_validator("base")
    @classmethod
    def _names_a_base(cls, base: str | None) -> str | None:
        if base is not None and not _BASE.fullmatch(base):
            raise ValueError(f"{base!r} is no base: it is RUN, RUN:STEP, NAME@v3 or NAME@ALIAS")
        return base

    @property
    def base_version(self) -> str | None:
        """The reference of a model version; None if `base` is no version."""
        return self.base if self.base is not None and "@" in self.base else None

    @property
    def base_run(self) -> str | None:
        """The name of a run; None if `base` is no run."""
        return None if self.base is None or "@" in self.base else self.base.partition(":")[0]

    @property
    def base_step(self) -> int | Literal["best"]:
        """The step of the run's checkpoint."""
        step = (self.base or "").partition(":")[2]
        return int(step) if step.isdecimal() else "best"

    def conflicts(self, config: Any) -> Iterator[Conflict]:
        if self.base is None:
            reasons = {
                "freeze": "without it, the backbone would stay at its random first values",
                "adapter": "without it, there are no weights for adapters to change",
            }
            for key, reason in reasons.items():
                if (value := getattr(self, key)) != "none":
                    problem = f"finetune.{key} = {value!r} needs finetune.base"
                    yield Conflict((f"finetune.{key}", "finetune.base"), problem, reason)
        if self.adapter == "none" and self.base_quantize != "none":
            yield Conflict(
                ("finetune.base_quantize", "finetune.adapter"),
                f'finetune.base_quantize = {self.base_quantize!r} needs finetune.adapter = "lora"',
                "weights that are trained cannot be quantized",
            )
        if self.adapter != "none" and self.freeze != "none":
            yield Conflict(
                ("finetune.freeze", "finetune.adapter"),
                f"finetune.freeze = {self.freeze!r}, and finetune.adapter = {self.adapter!r} freezes all weights",
                "an adapter is all that such a run trains",
            )


class LoraSection(Section):
    """Low-rank adapters, with `finetune.adapter = "lora"` (arXiv 2106.09685)."""

    rank: PositiveInt = setting(16, "Columns of an adapter's first matrix, and rows of its second.")
    alpha: PositiveFloat = setting(32.0, "An adapter's output is multiplied by alpha / rank.")
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = setting(
        ("attention", "mlp"), 'Matrices that get adapters: groups, or single ones such as "query".'
    )
    dropout: Fraction = setting(0.0, "Share of an adapter's inputs dropped in training.")


Quantization = Literal["none", "int8", "float8_e4m3fn"]


class EvalSection(Section):
    """The evaluation of checkpoints, and the gates that they must pass."""

    gates: tuple[str, ...] = setting(
        (), 'Conditions such as "bits_per_byte <= 2.2"; a failed one makes `aifx eval` exit 1.', RESUME_SAFE
    )
    split: Literal["test", "validation", "train"] = setting("test", "Split that `aifx eval` reports.", RESUME_SAFE)
    checkpoint: Literal["best", "last"] = setting(
        "best", "Checkpoint that `aifx eval`, `predict` and `generate` take.", RESUME_SAFE
    )
    slices: tuple[str, ...] = setting(
        (), "Columns of the data by whose values the metrics are also reported.", RESUME_SAFE
    )
    group: str = setting(
        "",
        "Column whose values make rows alike, for intervals. By default the document or the series of a row; "
        '"_row" takes each row for itself.',
        RESUME_SAFE,
    )
    margin: NonNegativeFloat | None = setting(
        None, "Loss of the metric up to which `aifx eval --against` takes a model as not worse.", RESUME_SAFE
    )
    batch_size: NonNegativeInt = setting(0, "Rows of an evaluation batch; 0 takes train.global_batch_size.")
    quantize: Quantization = setting(
        "none", "Measure a language model with its matrices quantized to this type.", RESUME_SAFE
    )


OpImplementation = Literal["auto", "reference", "xla", "pallas_triton", "pallas_tpu"]
AttentionImplementation = Literal[
    "auto", "reference", "xla", "pallas_triton", "pallas_mosaic_gpu", "pallas_tpu", "cudnn", "cudnn_masked"
]


class KernelsSection(Section):
    """Implementation of each op of `jax_kernels`. If it does not support a call, another runs. `aifx kernels explain`
    shows what "auto" chooses, and why."""

    attention: AttentionImplementation = setting("auto", "Implementation of attention over whole sequences.")
    linear_cross_entropy: OpImplementation = setting(
        "auto", "Implementation of the projection to the vocabulary with the loss."
    )
    rms_norm: OpImplementation = setting("auto", "Implementation of RMS normalization.")
    layer_norm: OpImplementation = setting("auto", "Implementation of layer normalization.")
    decode_attention: OpImplementation = setting(
        "auto", "Implementation of a generated token's attention over the cache."
    )
    swiglu: OpImplementation = setting("auto", "Implementation of the gated MLP's first half.")
    rotary: OpImplementation = setting("auto", "Implementation of rotary positions.")
    quantized_matmul: OpImplementation = setting("auto", "Implementation of products of quantized numbers.")


class LogSection(Section):
    """The files and trackers that get a run's numbers."""

    every: PositiveInt = setting(1, "Steps between records in metrics.jsonl.", RESUME_SAFE)
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = setting(
        (), "Trackers that also get each record; each needs its package.", RESUME_SAFE
    )
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = setting(
        None, "Port on which Prometheus finds step, loss and throughput; 0 takes a free one.", RESUME_SAFE
    )
    metrics_host: str = setting("127.0.0.1", "Address on which that port is open.", RESUME_SAFE)
    sample: str | None = setting(
        None,
        "Prompt that a language model continues, or answers in a chat, at each validation; none if not set.",
        RESUME_SAFE,
    )
    sample_tokens: PositiveInt = setting(64, "Tokens that it writes then, sampled as in [generate].", RESUME_SAFE)


class GenerateSection(Section):
    """Defaults of `aifx generate`."""

    prompt: str = setting("", "Text to continue.", RESUME_SAFE)
    max_tokens: PositiveInt = setting(200, "Tokens to write.", RESUME_SAFE)
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] = setting(
        0.8, "0 takes the likeliest token each time.", RESUME_SAFE
    )
    top_k: NonNegativeInt = setting(0, "Sample among this many likeliest tokens; 0 among all.", RESUME_SAFE)
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = setting(
        0.95, "Sample among the likeliest tokens of this total probability.", RESUME_SAFE
    )
    quantize: Quantization = setting("none", "Write with the model's matrices quantized to this type.", RESUME_SAFE)


class GuardsSection(Section):
    """The reactions of a run to steps that went wrong: docs/guards.md."""

    non_finite: Literal["skip", "roll_back", "stop"] = setting(
        "skip",
        "Steps whose loss or gradient is not finite. skip: their updates are not applied; roll_back: and after "
        "max_in_a_row of them the run goes back and leaves out their batches; stop: the first ends the run.",
        RESUME_SAFE,
    )
    max_in_a_row: PositiveInt = setting(3, "So many skipped steps in a row end the run, or roll it back.", RESUME_SAFE)
    spike: Literal["off", "warn", "roll_back"] = setting(
        "warn",
        "A loss far above the last ones. roll_back: the run goes back to before it, and leaves out its batch.",
        RESUME_SAFE,
    )
    spike_score: PositiveFloat = setting(
        10.0, "Robust standard deviations above the median that make a spike.", RESUME_SAFE
    )
    spike_window: Annotated[int, Field(ge=8, le=10_000)] = setting(
        128, "Steps whose losses a loss is compared with; earlier steps are not judged.", RESUME_SAFE
    )
    max_rollbacks: NonNegativeInt = setting(5, "How often a run may go back.", RESUME_SAFE)
    verify_every: NonNegativeInt = setting(
        0, "Compute one step in so many twice, and compare the results bit for bit; 0 never does.", RESUME_SAFE
    )
    step_timeout_s: NonNegativeFloat = setting(
        600.0,
        "A step, or the wait for its batch, hangs if it takes so long and 20 times the usual step; 0 sets no limit.",
        RESUME_SAFE,
    )
    hang_timeout_s: NonNegativeFloat = setting(
        3600.0,
        "The same for a start, compilation, evaluation or checkpoint that makes no progress.",
        RESUME_SAFE,
    )


class CheckpointSection(Section):
    """Checkpoints on disk: how often they are written, and which are kept."""

    every: NonNegativeInt = setting(
        200, "Steps between checkpoints; 0 saves only at the end and when stopped.", RESUME_SAFE
    )
    mtbf_hours: PositiveFloat | None = setting(
        None,
        "Mean time between failures that the run's machines have, for the advice of `aifx runs show`.",
        RESUME_SAFE,
    )
    keep_last: PositiveInt = setting(2, "Newest checkpoints that are kept.", RESUME_SAFE)
    keep_best: NonNegativeInt = setting(1, "Best checkpoints that are also kept, by `best_by`.", RESUME_SAFE)
    best_by: str = setting(
        "auto",
        'What makes a checkpoint the best: "max" or "min" and a validation metric, such as "max accuracy". '
        "auto: the metric of the first gate, otherwise the loss; fixed when the run starts.",
    )
    best_over: PositiveInt = setting(1, "Validations whose mean ranks a checkpoint: its own, and those just before.")
    asynchronous: bool = setting(True, "Write while training goes on.", RESUME_SAFE)
    stop_timeout_s: PositiveFloat = setting(
        30.0, "Bound on saving after a signal; then the process exits.", RESUME_SAFE
    )
    disk_timeout_s: NonNegativeFloat = setting(
        300.0, "Bound on waiting for a disk that is full or fails, once a run has nothing left to do.", RESUME_SAFE
    )
    local_dir: str | None = setting(
        None, "Folder on a quick disk of this host, such as /dev/shm, for checkpoints in between.", RESUME_SAFE
    )
    local_every: PositiveInt = setting(20, "Steps between checkpoints in `local_dir`.", RESUME_SAFE)

    def conflicts(self, config: Any) -> Iterator[Conflict]:
        if self.local_dir is not None and not self.local_dir.startswith("/"):
            yield Conflict(("checkpoint.local_dir",), "it must be an absolute path", f"it is {self.local_dir!r}")


class CostsSection(Section):
    """Costs of training, for the bill of `aifx runs show`. Nothing is assumed for keys that are not set."""

    price_per_hour: NonNegativeFloat | None = setting(
        None, "Price of all machines of a run for an hour, in any currency.", RESUME_SAFE
    )
    power_w: PositiveFloat | None = setting(
        None, "Power of all devices of a run, if it cannot be measured; tagged as declared.", RESUME_SAFE
    )
    pue: Annotated[float, Field(ge=1.0)] | None = setting(
        None, "Power usage effectiveness of the data center: its energy per energy of its machines.", RESUME_SAFE
    )
    gco2e_per_kwh: NonNegativeFloat | None = setting(
        None, "Carbon intensity of the electricity, in grams of CO2 equivalent per kWh.", RESUME_SAFE
    )
    embodied_gco2e_per_hour: NonNegativeFloat | None = setting(
        None, "Embodied emissions of the machines, as their share of an hour of use.", RESUME_SAFE
    )


class RegistrySection(Section):
    """The place of models by name: `aifx registry`."""

    root: str = setting(
        "registry",
        "Folder relative to the project, or a URL that fsspec knows, such as s3://bucket/models.",
        RESUME_SAFE,
    )
    trusted_keys: tuple[str, ...] = setting(
        (), "PEM files of public keys: code in a version that one of them signed may run.", RESUME_SAFE
    )


class MonitorSection(Section):
    """Rows of now beside those of the training: `aifx monitor`."""

    limits: tuple[str, ...] = setting(
        (),
        'Effects that columns may have, such as "amount <= 0.2": by default 0.1 standard deviations of numbers, and '
        '0.05 of the rows of values and of missing values. Limits of metrics: "outcome.accuracy >= 0.9" when outcomes '
        'are known, as eval.gates are, and "estimate.accuracy >= 0.9" before.',
        RESUME_SAFE,
    )
    shown: tuple[str, ...] = setting((), "Columns of numbers whose medians reports show.", RESUME_SAFE)
    time: str | None = setting(
        None, "Column with the time of a row. Rows are compared with those of the same part of the week.", RESUME_SAFE
    )


class DatasetsSection(Section):
    """The place of versions of data sets: `aifx data`."""

    root: str = setting(
        "datasets", "Folder relative to the project, or a URL that fsspec knows, such as s3://bucket/data.", RESUME_SAFE
    )
    readers: tuple[str, ...] = setting(
        (), "Code of the project that reads files for `aifx data add`, each as `module:Class`.", RESUME_SAFE
    )
    license_allow: tuple[str, ...] = setting(
        (), "SPDX identifiers of the licences that data may have, also `unknown`. By default any.", RESUME_SAFE
    )
    license_conflicts: Literal["warn", "refuse"] = setting(
        "warn", "What to do about sources whose licences exclude each other.", RESUME_SAFE
    )
