"""The state of a request in the engine: tokens, pages and text."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from aifx.data.tokenizer import Tokenizer
from aifx.generation.text import StopTexts, TextStream
from aifx.serving.requests import (
    Deliver,
    Delta,
    Embedded,
    EnergyBasis,
    FinishReason,
    GenerationRequest,
    TokenScore,
    Usage,
)


@dataclass(frozen=True, eq=False)
class Weights:
    """A model's arrays as the programs take them. A row keeps those with which it began.

    Attributes:
        fingerprint: the digest of these arrays and the programs.
        root: of the names of chunks in the prefix cache.
        adapters: their names, in the order of the programs.
    """

    params: Any
    fingerprint: str
    root: bytes
    adapters: tuple[str, ...] = ()


class Row:
    """A request and its state. Only the engine's thread changes it, except for `cancel`."""

    def __init__(self, request: GenerationRequest, deliver: Deliver, tokenizer: Tokenizer, weights: Weights) -> None:
        self.request, self.deliver, self.weights = request, deliver, weights
        self.adapter = -1 if request.adapter is None else weights.adapters.index(request.adapter)
        self.tokens = list(request.prompt_ids)  # of prompt and answer
        self.prompt_len = len(self.tokens)
        self.held = 0  # tokens that the pages hold
        self.pages: list[int] = []
        self.chunks: list[bytes] = []  # the names of the prompt's full chunks
        self.cached_tokens = 0
        self.prompt_scores: list[TokenScore] = []
        self.finish: FinishReason | None = None
        self.is_cancelled = False
        self.joules: float | None = None
        self.energy_basis: EnergyBasis | None = None
        self.cost: float | None = None
        self.taken = time.monotonic()
        self.begun: float | None = None
        self.mask: Any = None  # of the grammar, for the next draw
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, self.tokens)
        self._stops = StopTexts(request.stop)

    @property
    def fingerprint(self) -> str:
        return self.weights.fingerprint

    def cancel(self) -> None:
        self.is_cancelled = True

    @property
    def root(self) -> bytes:
        """The root of the names of its chunks in the prefix cache."""
        return self.weights.root + f" {self.adapter}".encode()

    @property
    def num_written(self) -> int:
        return len(self.tokens) - self.prompt_len

    @property
    def is_prefilled(self) -> bool:
        """Whether the pages hold the prompt."""
        return self.held >= self.prompt_len

    @property
    def is_penalized(self) -> bool:
        s = self.request.sampling
        return s.presence_penalty != 0 or s.frequency_penalty != 0 or s.repetition_penalty != 1

    def accept(self, token: int, score: TokenScore | None) -> Delta:
        """Add a token that was drawn. Sets `finish` if it is the last."""
        request = self.request
        self.tokens.append(token)
        is_end = token in request.stop_token_ids or (not request.ignore_end and token in self._tokenizer.end_ids)
        text = ""
        if not is_end:
            text = self._stops.push(self._stream.push(token))
            if request.grammar is not None:
                request.grammar.accept(token)
        is_complete = request.grammar is not None and request.grammar.is_complete
        if is_end or is_complete or self._stops.is_found:
            self.finish = "stop"
        elif self.num_written >= request.max_tokens:
            self.finish = "length"
        if self.finish is not None:
            text += self._stops.push(self._stream.rest()) + self._stops.rest()
        return self.delta(text, (token,), () if score is None else (score,))

    def delta(self, text: str = "", tokens: tuple[int, ...] = (), scores: tuple[TokenScore, ...] = ()) -> Delta:
        """The next part of the answer: the first one has the prompt's scores, the last one the usage."""
        prompt_scores, self.prompt_scores = tuple(self.prompt_scores), []
        return Delta(text, tokens, scores, prompt_scores, self.finish, self.usage() if self.finish else None)

    def end(self, reason: FinishReason, error: str | None = None, field: str | None = None) -> Delta:
        self.finish = reason
        return Delta(finish_reason=reason, usage=self.usage(), error=error, field=field)

    def usage(self) -> Usage:
        waited = None if self.begun is None else self.begun - self.taken
        counts = self.prompt_len, self.num_written, self.cached_tokens
        return Usage(*counts, waited, self.joules, self.energy_basis, self.cost)

    def preempted(self) -> list[int]:
        """The pages, which the row lets go: it will read its prompt again, and its answer token by token."""
        pages, self.pages, self.held, self.cached_tokens = self.pages, [], 0, 0
        if self.num_written == 0:
            self.prompt_scores = []
        return pages


class EmbeddingRow(Row):
    """A prompt whose hidden states are pooled. Nothing is written."""

    def __init__(
        self,
        request: GenerationRequest,
        found: Callable[[Embedded | None], None],
        tokenizer: Tokenizer,
        weights: Weights,
    ) -> None:
        super().__init__(request, self._ended, tokenizer, weights)
        self._found = found
        self.hidden_sum: Any = 0.0
        self.hidden_last: Any = None

    def pooled(self, pooling: str) -> None:
        """Give the result: the mean of all tokens' hidden states, or that of the last token."""
        value = self.hidden_last if pooling == "last" else self.hidden_sum / self.prompt_len
        self.finish = "stop"
        self._found(Embedded(np.asarray(value, np.float32), self.usage()))

    def _ended(self, delta: Delta) -> None:
        if delta.finish_reason in ("cancelled", "error"):
            self._found(None)

    def preempted(self) -> list[int]:
        self.hidden_sum, self.hidden_last = 0.0, None
        return super().preempted()


@dataclass
class Counts:
    """Totals since the engine started."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    finished: int = 0
    seconds: float = 0.0  # that finished requests took from their beginning, together

    def row_ended(self, row: Row) -> None:
        self.finished += 1
        if row.begun is not None:
            self.seconds += time.monotonic() - row.begun
