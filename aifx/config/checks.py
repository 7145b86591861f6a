"""What no single key can know: settings that do not go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aifx.config.best_by import AUTO, parse_best_by
from aifx.config.config import Config
from aifx.config.diagnostics import Mistake
from aifx.config.gates import parse_gate
from aifx.config.origins import OriginKind
from aifx.config.sections import LanguageDataSection, LanguageModelSection, VisionDataSection
from aifx.core.errors import UsageError

_RANK: dict[OriginKind, int] = {"default": 0, "preset": 1, "file": 2, "env": 3, "set": 4}


def _rank(config: Config, key: str) -> int:
    return _RANK[config.origin(key).kind]


@dataclass(frozen=True)
class Conflict:
    """Settings that do not go together; the first key is the one to blame when they come from the same place."""

    keys: tuple[str, ...]
    problem: str
    reason: str

    def mistake(self, config: Config) -> Mistake:
        """With the place of the key that was set last."""
        blamed = max(self.keys, key=lambda key: _rank(config, key))
        where = config.origin(blamed).where
        return Mistake(
            "" if where == "default" else where,
            self.problem,
            self.reason,
            "change one of them, then: aifx config check",
        )


def conflicts(config: Config) -> Iterator[Conflict]:
    """Every pair of settings that cannot be used together."""
    yield from _train(config)
    yield from _gates(config)
    yield from _best_by(config)
    if isinstance(config.model, LanguageModelSection):
        yield from _heads(config.model)
        if isinstance(config.data, LanguageDataSection):
            yield from _lengths(config, config.model, config.data)
    if isinstance(config.data, (LanguageDataSection, VisionDataSection)):
        yield from _splits(config, config.data)


def _train(config: Config) -> Iterator[Conflict]:
    train, schedule = config.train, config.schedule
    if train.global_batch_size % train.gradient_accumulation:
        yield Conflict(
            ("train.gradient_accumulation", "train.global_batch_size"),
            f"train.global_batch_size = {train.global_batch_size} does not divide by "
            f"train.gradient_accumulation = {train.gradient_accumulation}",
            "each micro-batch has the same number of rows",
        )
    if train.early_stopping and not train.validate_every:
        yield Conflict(
            ("train.early_stopping", "train.validate_every"),
            f"train.early_stopping = {train.early_stopping} needs validations, and train.validate_every = 0 makes none",
            "early stopping counts validations without improvement",
        )
    # A run cut short for a trial (`--set train.num_steps=20`) may end within its warm-up; a file may not ask for it.
    if schedule.warmup_steps > train.num_steps and _rank(config, "schedule.warmup_steps") >= _rank(
        config, "train.num_steps"
    ):
        yield Conflict(
            ("schedule.warmup_steps", "train.num_steps"),
            f"schedule.warmup_steps = {schedule.warmup_steps} is more than train.num_steps = {train.num_steps}",
            "the run would end before its warm-up does",
        )


def _gates(config: Config) -> Iterator[Conflict]:
    for expr in config.eval.gates:
        try:
            parse_gate(expr)
        except UsageError as error:
            yield Conflict(("eval.gates",), f"eval.gates: {error.what}", error.why)


def _best_by(config: Config) -> Iterator[Conflict]:
    if config.checkpoint.best_by == AUTO:
        return
    try:
        parse_best_by(config.checkpoint.best_by)
    except UsageError as error:
        yield Conflict(("checkpoint.best_by",), error.what, error.why)


def _heads(model: LanguageModelSection) -> Iterator[Conflict]:
    head_dim = model.head_dim or model.embed_dim // model.num_heads
    if model.head_dim is None and model.embed_dim % model.num_heads:
        yield Conflict(
            ("model.num_heads", "model.embed_dim"),
            f"model.embed_dim = {model.embed_dim} does not divide by model.num_heads = {model.num_heads}",
            "head_dim is their quotient where it is not set",
        )
    elif model.positions == "rotary" and head_dim % 2:
        yield Conflict(
            ("model.head_dim", "model.num_heads", "model.embed_dim", "model.positions"),
            f'model.positions = "rotary" needs an even head_dim, and it is {head_dim}',
            "rotary positions turn pairs of features",
        )
    if model.num_kv_heads is not None and model.num_heads % model.num_kv_heads:
        yield Conflict(
            ("model.num_kv_heads", "model.num_heads"),
            f"model.num_heads = {model.num_heads} does not divide by model.num_kv_heads = {model.num_kv_heads}",
            "each key and value head serves the same number of query heads",
        )


def _lengths(config: Config, model: LanguageModelSection, data: LanguageDataSection) -> Iterator[Conflict]:
    if model.max_seq_len is not None and model.max_seq_len < data.seq_len:
        yield Conflict(
            ("data.seq_len", "model.max_seq_len"),
            f"data.seq_len = {data.seq_len} is more than model.max_seq_len = {model.max_seq_len}",
            "the model has no positions for so long a sequence",
        )
    # Sequences cut short for a trial are read with the stride cut to them.
    if data.eval_stride > data.seq_len and _rank(config, "data.eval_stride") >= _rank(config, "data.seq_len"):
        yield Conflict(
            ("data.eval_stride", "data.seq_len"),
            f"data.eval_stride = {data.eval_stride} is more than data.seq_len = {data.seq_len}",
            "windows would step over tokens that none of them scores",
        )


def _splits(config: Config, data: LanguageDataSection | VisionDataSection) -> Iterator[Conflict]:
    if isinstance(data, LanguageDataSection):
        validation = 0.0 if data.validation else data.validation_fraction
        test = 0.0 if data.test else data.test_fraction
        if validation + test >= 1.0:
            yield Conflict(
                ("data.validation_fraction", "data.test_fraction"),
                f"data.validation_fraction = {validation:g} and data.test_fraction = {test:g} leave no training data",
                "together they must be below 1",
            )
        validation = 1.0 if data.validation else data.validation_fraction
    else:
        validation = data.validation_fraction
    if config.train.early_stopping and validation == 0.0:
        yield Conflict(
            ("train.early_stopping", "data.validation_fraction"),
            f"train.early_stopping = {config.train.early_stopping} needs a validation split, "
            "and data.validation_fraction = 0 holds nothing out",
            "early stopping watches the validation loss",
        )
