"""Vectors of a run's language model: its last hidden states, pooled as `/v1/embeddings` of `aifx serve` pools them."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from aifx.checkpoint.manifest import read_manifest
from aifx.core.digests import sha256_of
from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.core.steps import parse_step
from aifx.data.text import TokenFormat
from aifx.generation.generator import unable_to_write
from aifx.loading.restore import restore_run
from aifx.search.embedders import F32, RUN, Embedder, EmbedderRecord
from aifx.search.token_batches import embed_texts, pool
from aifx.specs import Params, init_params

ALGORITHM = 1
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
        programs, params, frozen = programs.one_copy(params, frozen)
        self._decoding = programs.decoding
        self._params = self._decoding.prepare(programs.merged(params, frozen) if programs.casts else params)
        form = programs.task.format
        assert isinstance(form, TokenFormat)
        self._tokenizer = form.tokenizer
        self._pooling = self._trained.config.serve.pooling
        self._pooled = jax.jit(self._decoding.per_device(self._pool))

    @cached_property
    def record(self) -> EmbedderRecord:
        trained = self._trained
        manifest = read_manifest(trained.run.checkpoints / str(trained.step))
        settings = {
            "algorithm": ALGORITHM,
            "step": trained.step,
            "state_digest": manifest.state_digest,
            "tokenizer": sha256_of(self._tokenizer.data),
            "pooling": self._pooling,
        }
        return EmbedderRecord(RUN, f"{trained.run.name}@{trained.step}", self._dims, settings)

    @cached_property
    def _dims(self) -> int:
        shapes = jax.ShapeDtypeStruct((1, 16), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
        found: int = jax.eval_shape(self._pooled, self._params, *shapes).shape[1]
        return found

    def embed(self, texts: Any) -> F32:
        most, call = self._decoding.model.max_seq_len, partial(self._pooled, self._params)
        return embed_texts(texts, self._encode, most, self._dims, call)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [self._tokenizer.encode_prompt(text) for text in texts]

    def _pool(self, params: Params, inputs: jax.Array, counts: jax.Array) -> jax.Array:
        """`[rows, embed]` of tokens `[rows, seq]`, of which the first `counts` `[rows]` of each row are its text."""
        decoding = self._decoding
        rows, length = inputs.shape
        cache = init_params(decoding.model.cache_specs(rows, length, decoding.dtype), jax.random.key(0))
        hidden, _ = decoding.model.prefill(params, inputs, counts, cache, decoding.context)
        return pool(hidden.astype(jnp.float32), counts, self._pooling)
