"""Vectors of a run's language model: its last hidden states, pooled as `/v1/embeddings` of `aifx serve` pools them."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

from aifx.checkpoint.manifest import read_manifest
from aifx.core.digests import sha256_of
from aifx.core.errors import UsageError
from aifx.core.project import Project
from aifx.core.steps import parse_step
from aifx.data.text import TokenFormat
from aifx.loading.restore import restore_run
from aifx.search.embedders import F32, RUN, Embedder, EmbedderRecord
from aifx.search.token_batches import embed_texts
from aifx.serving.generate import unable_to_write

ALGORITHM = 2
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
            "algorithm": ALGORITHM,
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
