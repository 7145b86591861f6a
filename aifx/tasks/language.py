"""Next-token prediction over text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from aifx.config import Config
from aifx.config.sections import LanguageDataSection, LanguageModelSection, Section
from aifx.core.errors import ConfigError
from aifx.core.project import Project
from aifx.data import TextData, TextSource, Tokenizer, open_text
from aifx.data.base import Batch, Split
from aifx.data.rows import InputFile, Row, field, read_rows
from aifx.data.sequences import empty_batch
from aifx.data.text import TOKENIZER_FILE, document_windows, open_split_files, open_text_file
from aifx.models.decoder.model import Decoder
from aifx.specs import Params
from aifx.tasks.base import Sums, Task, Totals
from jax_kernels._ops.linear_cross_entropy import linear_cross_entropy

UNSCORED = -1
"""The label of a token that only gives context or fills up a row: its weight is 0. That of the others is 1."""


class LanguageTask(Task):
    """A decoder trained on text; reports loss (nats a token), perplexity and bits a byte."""

    model_section: ClassVar[type[Section]] = LanguageModelSection
    data_section: ClassVar[type[Section]] = LanguageDataSection
    unit = "tokens"

    def __init__(self, model: Decoder, tokenizer: Tokenizer, config: Config, data: TextData | None = None) -> None:
        """Without `data`, the task of a trained model: it makes predictions, and measures what `with_data` opens."""
        self.model: Decoder = model
        self.tokenizer = tokenizer
        self.config = config
        self._data = data
        self._token_bytes = np.asarray(tokenizer.token_bytes(), np.float32)

    @classmethod
    def create(cls, config: Config, project: Project, assets: Path) -> LanguageTask:
        assert isinstance(config.data, LanguageDataSection)
        data = open_text(config.data, project, assets)
        return cls(make_decoder(config, data.tokenizer), data.tokenizer, config, data)

    @classmethod
    def load(cls, config: Config, project: Project, assets: Path) -> LanguageTask:
        tokenizer = open_tokenizer(assets)
        return cls(make_decoder(config, tokenizer), tokenizer, config)

    def with_data(self, path: Path) -> LanguageTask:
        assert isinstance(self.config.data, LanguageDataSection)
        data = open_text_file(path, self.config.data, self.tokenizer)
        return type(self)(self.model, self.tokenizer, self.config, data)

    def with_split(self, split: Split, project: Project) -> LanguageTask | None:
        assert isinstance(self.config.data, LanguageDataSection)
        data = open_split_files(split, self.config.data, project, self.tokenizer)
        return None if data is None else type(self)(self.model, self.tokenizer, self.config, data)

    @property
    def data(self) -> TextData:
        assert self._data is not None, "the task was loaded without data"
        return self._data

    def source(self, split: Split) -> TextSource:
        train = self.config.train
        if split == "train":
            return self.data.source(split, batch_size=train.global_batch_size, seed=train.seed)
        return self.evaluation_source(split)

    def evaluation_source(self, split: Split) -> TextSource:
        rows = self.config.eval.batch_size or self.config.train.global_batch_size
        return self.data.source(split, batch_size=rows, seed=None)

    def objective(self, params: Params, batch: Mapping[str, jax.Array], key: jax.Array, *, training: bool) -> Sums:
        """Sums over the batch: "loss" in nats over tokens, "bytes" of the text that the targets stand for."""
        hidden = self.model.hidden(
            params, batch["inputs"], segment_ids=batch.get("segment_ids"), positions=batch.get("positions")
        )
        targets, weights = batch["targets"], batch["weights"]
        weight = weights.sum()
        loss = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            self.model.output_weight(params),
            jnp.where(weights > 0.0, targets, UNSCORED).reshape(-1),
            ignore_label=UNSCORED,
            reduction="sum",
        )
        sums: Sums = {"loss": (loss, weight)}
        if not training:
            sums["bytes"] = ((jnp.asarray(self._token_bytes)[targets] * weights).sum(), weight)
        return sums

    def metrics(self, totals: Totals) -> dict[str, Any]:
        """loss [nats/token], perplexity, and where bytes were summed bits_per_byte, tokens, bytes."""
        nats, tokens = (float(x) for x in totals["loss"])
        loss = nats / tokens if tokens else math.nan
        report: dict[str, Any] = {"loss": loss, "perplexity": _exp(loss)}
        if "bytes" in totals:
            num_bytes = float(totals["bytes"][0])
            report["bits_per_byte"] = nats / math.log(2.0) / num_bytes if num_bytes else math.nan
            report["tokens"] = round(tokens)
            report["bytes"] = round(num_bytes)
        return report

    def units(self, batch: Batch) -> int:
        return int(np.count_nonzero(batch["weights"]))

    def read_rows(self, file: InputFile) -> Iterator[Row]:
        """A .txt file is one text, as it is in training."""
        assert isinstance(self.config.data, LanguageDataSection)
        return read_rows(file, text_field=self.config.data.text_field)

    def encode(self, row: Mapping[str, Any]) -> Batch:
        """A text as the windows that evaluation reads, the token that ends it among the targets."""
        section = self.config.data
        assert isinstance(section, LanguageDataSection)
        text = field(row, section.text_field)
        if not isinstance(text, str):
            raise ValueError(f"field {section.text_field!r} is {type(text).__name__}, not text")
        num_bytes = len(text.encode())  # before the tokenizer, which drops what is not Unicode
        windows = document_windows(self.tokenizer, text, section)
        batch = empty_batch(len(windows), section.seq_len, self.tokenizer.eos_id, documents=False)
        for index in range(len(windows)):
            windows.write(index, 0, batch, index)
        batch["num_bytes"] = np.zeros(len(windows), np.int32)
        batch["num_bytes"][0] = num_bytes
        return batch

    def predictions(self, params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Of each window: "nats" of negative log-likelihood, "tokens" that were scored, "bytes" of their text."""
        hidden = self.model.hidden(params, batch["inputs"])
        weights = batch["weights"]
        losses = linear_cross_entropy(
            hidden.reshape(-1, hidden.shape[-1]),
            self.model.output_weight(params),
            jnp.where(weights > 0.0, batch["targets"], UNSCORED).reshape(-1),
            ignore_label=UNSCORED,
        )
        nats = losses.reshape(weights.shape).sum(axis=-1)
        return {"nats": nats, "tokens": weights.sum(axis=-1), "bytes": batch["num_bytes"]}

    def decode(self, predictions: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """How well the model predicts the text: what `metrics` reports of a split."""
        nats, tokens, num_bytes = (predictions[name].sum(dtype=np.float64) for name in ("nats", "tokens", "bytes"))
        return self.metrics({"loss": (nats, tokens), "bytes": (num_bytes, tokens)})

    def batch_shape(self) -> tuple[int, ...]:
        assert isinstance(self.config.data, LanguageDataSection)
        return (self.config.train.global_batch_size, self.config.data.seq_len)

    def data_digest(self) -> str:
        return batches_digest(self.data.digest, self.config)


def make_decoder(config: Config, tokenizer: Tokenizer) -> Decoder:
    """The model of a configuration over a tokenizer's vocabulary. Raises ConfigError where it is too small for it."""
    assert isinstance(config.data, LanguageDataSection)
    assert isinstance(config.model, LanguageModelSection)
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    if vocab_size < tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {vocab_size} is less than the tokenizer's {tokenizer.vocab_size}",
            "every token needs a row of the embedding",
            f"aifx train --set model.vocab_size={tokenizer.vocab_size}",
        )
    max_seq_len = config.model.max_seq_len or config.data.seq_len
    return Decoder(config.model, vocab_size=vocab_size, max_seq_len=max_seq_len)


def open_tokenizer(assets: Path) -> Tokenizer:
    """The tokenizer that a run keeps. Raises DataError."""
    return Tokenizer.load(assets / TOKENIZER_FILE)


def batches_digest(data_digest: str, config: Config) -> str:
    """SHA-256 over the data and everything that decides how it becomes batches."""
    how = config.data.model_dump_json(), config.train.global_batch_size, config.eval.batch_size, config.train.seed
    return hashlib.sha256(repr((data_digest, *how)).encode()).hexdigest()


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def stream_text(tokenizer: Tokenizer, prompt_ids: Sequence[int], ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids` piece by piece, each piece whole characters: one that spans tokens waits for its last.

    A token's text may depend on those before (a space that begins a word), so the end of the prompt is decoded along.
    """
    window = [i for i in prompt_ids[-8:] if i != tokenizer.eos_id]
    told = tokenizer.decode(window)
    for token in ids:
        if token == tokenizer.eos_id:
            break
        window.append(token)
        text = tokenizer.decode(window)
        if len(text) > len(told) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(told) :]
            window = window[-8:]
            told = tokenizer.decode(window)
    rest = tokenizer.decode(window)[len(told) :]
    if rest:
        yield rest
