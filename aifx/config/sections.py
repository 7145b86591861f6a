"""The sections of `aifx.toml`: one frozen model each, unknown keys refused.

The description of each field is its documentation: `aifx config schema` and the editors that read it show it.
A field marked RESUME_SAFE may change between a run and its resumption, because it changes no number that the run
computes. One marked ROUNDING may change too; it changes at most the rounding, and `aifx train` reports that. If any
other field differs, `aifx train` refuses (see `aifx.config.compare`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

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
    """What is trained."""

    kind: str = Field(
        "language", description="`language`, `vision`, or `module:Class` of a task in the project's own folder."
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


class LanguageModelSection(Section):
    """A decoder-only transformer: GPT-2, Llama and what lies between."""

    preset: str | None = Field(
        None, description="Named model whose values stand where none is given: see docs/models.md."
    )
    vocab_size: PositiveInt | None = Field(
        None, description="Rows of the embedding; the tokenizer's size when not set."
    )
    num_layers: PositiveInt = Field(4, description="Transformer blocks.")
    embed_dim: PositiveInt = Field(128, description="Width of the residual stream.")
    num_heads: PositiveInt = Field(4, description="Query heads.")
    num_kv_heads: PositiveInt | None = Field(
        None, description="Key and value heads; fewer than num_heads is grouped-query attention."
    )
    head_dim: PositiveInt | None = Field(None, description="Width of a head; embed_dim / num_heads when not set.")
    mlp_dim: PositiveInt | None = Field(None, description="Hidden width of the MLP; 4 x embed_dim when not set.")
    norm: Literal["layer_norm", "rms_norm"] = Field("rms_norm", description="Normalization before each block half.")
    norm_epsilon: PositiveFloat = Field(1e-5, description="Added to the variance.")
    positions: Literal["learned", "rotary"] = Field(
        "rotary", description="learned: a table of max_seq_len rows. rotary: RoPE."
    )
    max_seq_len: PositiveInt | None = Field(None, description="Longest context; data.seq_len when not set.")
    rope_theta: PositiveFloat = Field(10_000.0, description="Base of the rotary frequencies.")
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = Field(
        "swiglu", description="MLP activation; swiglu has a gate."
    )
    bias: bool = Field(False, description="Biases in projections and norms.")
    tie_embeddings: bool = Field(True, description="The output projection is the embedding's transpose.")
    scan_layers: bool = Field(
        False,
        description="Compile one layer and loop over it: compiles faster, same checkpoint.",
        json_schema_extra=ROUNDING,
    )
    remat: bool = Field(
        False, description="Recompute activations on the way back: less memory, more time.", json_schema_extra=ROUNDING
    )


class LanguageDataSection(Section):
    """Text, how it is split, and how it becomes sequences."""

    train: tuple[str, ...] = Field(
        ("data/*.txt",),
        description="Files or globs (.txt, .jsonl, .parquet; .txt and .jsonl also as .gz or .zst), "
        "relative to the project.",
        min_length=1,
    )
    validation: tuple[str, ...] = Field(
        (), description="Files of their own for validation; else a part of `train` is held out."
    )
    test: tuple[str, ...] = Field(
        (), description="Files of their own for the test; else a part of `train` is held out."
    )
    text_field: str = Field("text", description="Field of .jsonl records and .parquet columns that holds the text.")
    errors: Literal["strict", "replace", "skip"] = Field(
        "strict",
        description="Bytes that are not UTF-8. strict: an error. replace: U+FFFD instead. skip: left out.",
    )
    split: Literal["block", "document"] = Field(
        "block", description="block: contiguous parts, the test last. document: whole documents, by hash."
    )
    validation_fraction: Fraction = Field(0.05, description="Share held out for validation when `validation` is empty.")
    test_fraction: Fraction = Field(0.1, description="Share held out for the test when `test` is empty.")
    tokenizer: str = Field(
        "bpe", description="`bpe` trains one on the training split; else a path of a tokenizer.json."
    )
    vocab_size: Annotated[int, Field(ge=257, le=INT_MAX)] = Field(1024, description="Size of the trained tokenizer.")
    seq_len: Annotated[int, Field(ge=2, le=INT_MAX)] = Field(256, description="Tokens of a sequence.")
    packing: Literal["stream", "documents"] = Field(
        "stream",
        description="stream: cut from the joined text. documents: whole documents packed, attention kept within.",
    )
    eval_stride: NonNegativeInt = Field(
        0,
        description="Evaluation: tokens that each window scores, the rest being context; 0 scores whole windows.",
    )


class VisionModelSection(Section):
    """A small convolutional network."""

    preset: str | None = Field(
        None, description="Named model whose values stand where none is given: see docs/models.md."
    )
    channels: tuple[PositiveInt, ...] = Field(
        (32, 64), description="Width of each stage; each stage halves the picture.", min_length=1
    )
    blocks_per_stage: PositiveInt = Field(1, description="Residual blocks of a stage.")
    dropout: Fraction = Field(0.0, description="Share of features dropped before the classifier, in training.")


class VisionDataSection(Section):
    """Labelled images in a NumPy archive."""

    path: str = Field(
        "data/images.npz", description="An .npz with train_images, train_labels, test_images, test_labels."
    )
    classes: tuple[str, ...] = Field((), description="Names of the labels, in order; numbers when empty.")
    validation_fraction: Fraction = Field(0.1, description="Share of the training images held out for validation.")
    image_size: tuple[PositiveInt, PositiveInt] = Field(
        (28, 28), description="Height and width that each image must have."
    )
    flip: bool = Field(False, description="Mirror training images left to right at random.")
    shift: NonNegativeInt = Field(0, description="Shift training images by up to this many pixels at random.")
