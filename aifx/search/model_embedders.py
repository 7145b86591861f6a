"""Embedders that are models: the language model of a run, or a local sentence encoder. Imports JAX.

A call takes texts of about one length: little is padding, and few programs compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from aifx.checkpoint.manifest import read_manifest
from aifx.core.digests import sha256_of
from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.core.steps import parse_step
from aifx.data.text import TokenFormat
from aifx.hub.encoders import load_encoder
from aifx.hub.folder import open_folder
from aifx.loading.restore import restore_run
from aifx.programs.decoding import embedding_program
from aifx.programs.program import Program
from aifx.search.embedders import ENCODER, F32, RUN, Embedder, EmbedderRecord, normalized
from aifx.serving.generate import unable_to_write
from aifx.specs import Params

BATCH_TOKENS = 1 << 13
"""Tokens of a call, with padding."""

LEAST_LENGTH = 16


def embed_texts(
    texts: Any,
    encode: Callable[[list[str]], Sequence[Sequence[int]]],
    most: int,
    dims: int,
    call: Callable[[NDArray[np.int32], NDArray[np.int32]], Any],
) -> F32:
    """Vectors `[texts, dims]` of an Arrow array of strings, of length 1; of length 0 for a text without content.

    Args:
        encode: gives the tokens of each text.
        most: tokens that the model reads; only the beginning of a longer text counts.
        call: see `pooled_in_batches`.
    """
    values = texts.to_pylist()
    written = [index for index, text in enumerate(values) if text and not text.isspace()]
    encoded = encode([values[index] for index in written])
    tokens = {index: row[:most] for index, row in zip(written, encoded, strict=True) if row}
    vectors = np.zeros((len(values), dims), np.float32)
    vectors[list(tokens)] = pooled_in_batches(list(tokens.values()), most, dims, call)
    return normalized(vectors)


def pooled_in_batches(
    tokens: Sequence[Sequence[int]], most: int, dims: int, call: Callable[[NDArray[np.int32], NDArray[np.int32]], Any]
) -> F32:
    """Vectors `[texts, dims]` of the tokens of texts.

    Args:
        most: tokens of the longest text that the model reads; none has more.
        call: (tokens `[rows, seq]`, counts `[rows]`) -> `[rows, dims]`, where a row's text is the first of its tokens.
    """
    vectors = np.zeros((len(tokens), dims), np.float32)
    order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
    while order:
        length = min(max(_power_of_two(len(tokens[order[-1]])), LEAST_LENGTH), most)
        largest = max(BATCH_TOKENS // length, 1)
        chosen = order[-largest:]
        del order[-len(chosen) :]
        rows = min(_power_of_two(len(chosen)), largest)
        inputs, counts = np.zeros((rows, length), np.int32), np.ones(rows, np.int32)
        for row, index in enumerate(chosen):
            counts[row] = len(tokens[index])
            inputs[row, : counts[row]] = tokens[index]
        vectors[chosen] = np.asarray(call(inputs, counts), np.float32)[: len(chosen)]
    return vectors


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


RUN_ALGORITHM = 2
"""Version of the vectors. Raise it if a text would get another one."""


class RunEmbedder(Embedder):
    """Embeds with the model of a run at a checkpoint."""

    def __init__(self, name: str, project: Project) -> None:
        """`name`: of the run, with @STEP for a checkpoint other than `eval.checkpoint`.

        Raises UsageError if there is no such run or it has no language model, CheckpointError.
        """
        run, _, step = name.partition("@")
        self._trained = restore_run(project.existing_run(run), project, step=parse_step(step) if step else None)
        programs, params, frozen = self._trained.programs("none")
        if (why := unable_to_write(programs)) is not None:
            raise UsageError(f"run {run} cannot embed texts", why, "--embedder ngrams")
        self._decoding, self._params = programs.as_decoding(params, frozen)
        form = programs.task.format
        assert isinstance(form, TokenFormat)
        self._tokenizer = form.tokenizer
        self._pooling = self._trained.config.serve.pooling
        self._program = self._decoding.embed(self._pooling)

    @cached_property
    def record(self) -> EmbedderRecord:
        trained = self._trained
        manifest = read_manifest(trained.run.checkpoints / str(trained.step))
        settings = {
            "algorithm": RUN_ALGORITHM,
            "step": trained.step,
            "state_digest": manifest.state_digest,
            "tokenizer": sha256_of(self._tokenizer.data),
            "pooling": self._pooling,
        }
        return EmbedderRecord(RUN, f"{trained.run.name}@{trained.step}", self._dims, settings)

    @cached_property
    def _dims(self) -> int:
        return int(self._program.trace().shape[1])

    def embed(self, texts: Any) -> F32:
        most, call = self._decoding.model.max_seq_len, partial(self._program, self._params)
        return embed_texts(texts, self._encode, most, self._dims, call)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [self._tokenizer.encode_prompt(text) for text in texts]


ENCODER_ALGORITHM = 1
"""Version of the vectors. Raise it if a text would get another one."""


class SentenceEmbedder(Embedder):
    """Embeds with the encoder in a folder."""

    def __init__(self, source: str) -> None:
        """`source`: the encoder's folder. Raises UsageError, DataError, ConfigError."""
        self._folder = open_folder(source)
        self._encoder = load_encoder(self._folder)

    @cached_property
    def record(self) -> EmbedderRecord:
        settings = {"algorithm": ENCODER_ALGORITHM, "sha256": self._encoder.sha256}
        return EmbedderRecord(ENCODER, str(self._folder.path), self._encoder.model.section.embed_dim, settings)

    @cached_property
    def _program(self) -> Program:
        encoder = self._encoder

        def hidden(params: Params, tokens: jax.Array, counts: jax.Array) -> jax.Array:
            with jax.default_matmul_precision("highest"):
                return encoder.model.encode(params, tokens, jnp.arange(tokens.shape[1]) < counts[:, None])

        return embedding_program(hidden, encoder.params, encoder.pooling)

    def embed(self, texts: Any) -> F32:
        encoder, call = self._encoder, partial(self._program, self._encoder.params)
        return embed_texts(texts, encoder.encode, encoder.max_tokens, self.record.dims, call)
