"""Vectors of a local sentence encoder: the pooled last layer of its model."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from aifx.hub.encoders import load_encoder
from aifx.hub.folder import open_folder
from aifx.programs.decoding import embedding_program
from aifx.programs.program import Program
from aifx.search.embedders import ENCODER, F32, Embedder, EmbedderRecord
from aifx.search.token_batches import embed_texts
from aifx.specs import Params

ALGORITHM = 1
"""Version of the vectors. Raise it if a text would get another one."""


class SentenceEmbedder(Embedder):
    """Embeds with the encoder in a folder."""

    def __init__(self, source: str) -> None:
        """`source`: the encoder's folder. Raises UsageError, DataError, ConfigError."""
        self._folder = open_folder(source)
        self._encoder = load_encoder(self._folder)

    @cached_property
    def record(self) -> EmbedderRecord:
        settings = {"algorithm": ALGORITHM, "sha256": self._encoder.sha256}
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
