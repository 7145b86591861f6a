"""Vectors of a local sentence encoder: the pooled last layer of its model."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from aifx.hub.encoders import Pooling, load_encoder
from aifx.hub.folder import open_folder
from aifx.models.bert.model import Bert
from aifx.search.embedders import ENCODER, F32, Embedder, EmbedderRecord
from aifx.search.token_batches import embed_texts, pool
from aifx.specs import Params

ALGORITHM = 1
"""Version of the vectors. Raise it if a text would get another one."""


class SentenceEmbedder(Embedder):
    """Embeds with the encoder in a folder."""

    def __init__(self, source: str) -> None:
        """Raises UsageError, DataError, ConfigError."""
        self._folder = open_folder(source)
        self._encoder = load_encoder(self._folder)

    @cached_property
    def record(self) -> EmbedderRecord:
        settings = {"algorithm": ALGORITHM, "sha256": self._encoder.sha256}
        return EmbedderRecord(ENCODER, str(self._folder.path), self._encoder.model.section.embed_dim, settings)

    def embed(self, texts: Any) -> F32:
        encoder = self._encoder
        call = partial(_pooled, encoder.model, encoder.pooling, encoder.params)
        return embed_texts(texts, encoder.encode, encoder.max_tokens, self.record.dims, call)


@partial(jax.jit, static_argnums=(0, 1))
def _pooled(model: Bert, pooling: Pooling, params: Params, inputs: jax.Array, counts: jax.Array) -> jax.Array:
    """`[rows, embed]` of tokens `[rows, seq]`, of which the first `counts` `[rows]` of each row are its text."""
    with jax.default_matmul_precision("highest"):
        is_token = jnp.arange(inputs.shape[1]) < counts[:, None]
        hidden = model.encode(params, inputs, is_token)
    return pool(hidden, counts, pooling)
