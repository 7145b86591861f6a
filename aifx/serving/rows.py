"""The state of a request in the engine: tokens, pages and text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aifx.data.tokenizer import Tokenizer
from aifx.serving.requests import Deliver, Delta, Embedded, FinishReason, GenerationRequest, TokenScore, Usage
from aifx.serving.worker import RequestState

CONTEXT_TOKENS = 8
"""A token's text may depend on so many before it (a space that begins a word)."""

MAX_PENDING_TOKENS = 16
"""Tokens that may wait for the last byte of a character: more have bytes among them that no other completes."""

UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, eq=False)
class Weights:
    """A model's arrays as the programs take them. A row keeps those with which it began.

    Attributes:
        fingerprint: the digest of these arrays and the programs.
        root: of the names of chunks in the prefix cache.
        adapters: their names, in the order of the programs.
        model: digest of the model version, or of the checkpoint's arrays.
    """

    params: Any
    fingerprint: str
    root: bytes
    adapters: tuple[str, ...] = ()
    model: str = ""


class Row(RequestState[Weights]):
    """A request and its state.

    Attributes:
        tokens: of prompt and answer, without the first `forgotten` of them.
        prompt_len: how many of `tokens` are prefilled; the others are written one at a time.
        held: how many of `tokens` have keys and values in the pages.
        cached_tokens: how many of these came from the prefix cache.
        forgotten: how many tokens `forget` has dropped.
        chunks: the names of the prompt's full chunks.
        mask: of the grammar, for the next draw.
    """

    def __init__(self, request: GenerationRequest, deliver: Deliver, tokenizer: Tokenizer, weights: Weights) -> None:
        super().__init__(weights)
        self.request, self.deliver = request, deliver
        self.adapter = -1 if request.adapter is None else weights.adapters.index(request.adapter)
        self.tokens = list(request.prompt_ids)
        self.prompt_len = len(self.tokens)
        self.forgotten = self.held = self.cached_tokens = 0
        self.pages: list[int] = []
        self.chunks: list[bytes] = []
        self.prompt_scores: list[TokenScore] = []
        self.finish: FinishReason | None = None
        self.mask: Any = None
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, self.tokens)
        self._stops = StopTexts(request.stop)

    @property
    def root(self) -> bytes:
        """The root of the names of its chunks in the prefix cache."""
        return self.weights.root + f" {self.adapter}".encode()

    @property
    def answer_start(self) -> int:
        """The place in `tokens` where the answer begins; below 0 if its beginning is forgotten."""
        return len(self.request.prompt_ids) - self.forgotten

    @property
    def num_written(self) -> int:
        return len(self.tokens) - self.answer_start

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
        counts = len(self.request.prompt_ids), self.num_written, self.cached_tokens
        return Usage(*counts, self.queue_s, self.joules, self.energy_basis, self.cost)

    def forget(self, max_len: int) -> None:
        """Drop the oldest tokens, so that the rest of the answer fits into `max_len`; at least half of that stays."""
        kept = max_len - min(self.request.max_tokens - self.num_written, max_len // 2)
        if (excess := len(self.tokens) - kept) > 0:
            self.tokens = self.tokens[excess:]
            self.forgotten += excess
            self.prompt_len, self.chunks = kept, []

    def preempted(self) -> list[int]:
        """Give up the pages and return them. The row will read its prompt again, and its answer token by token."""
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
        if row.started_at is not None:
            self.seconds += time.monotonic() - row.started_at


class TextStream:
    """The text that follows a prompt, token by token: whole characters, so one that spans tokens waits for its last."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        marks = {*tokenizer.end_ids, *tokenizer.begin_ids}
        self._window = [i for i in prompt_ids[-CONTEXT_TOKENS:] if i not in marks]
        self._written = tokenizer.decode(self._window)

    def push(self, token: int) -> str:
        """The text that is whole with one more token."""
        self._window.append(token)
        text = self._tokenizer.decode(self._window)
        is_pending = len(text) <= len(self._written) or text.endswith(UNKNOWN)
        if is_pending and len(self._window) <= CONTEXT_TOKENS + MAX_PENDING_TOKENS:
            return ""
        end = max(len(text) - _open_characters(text), len(self._written))
        new = text[len(self._written) : end]
        self._window = self._window[-CONTEXT_TOKENS:]
        written = self._tokenizer.decode(self._window)
        self._written = written[: len(written) - min(len(text) - end, _open_characters(written))]
        return new

    def rest(self) -> str:
        """The text that has not become whole, with U+FFFD for its bytes."""
        return self._tokenizer.decode(self._window)[len(self._written) :]


def _open_characters(text: str) -> int:
    """The number of characters at the end that may be one that lacks its last byte: it has four at most."""
    end = text[-3:]
    return len(end) - len(end.rstrip(UNKNOWN))


class StopTexts:
    """Ends a text before the first of some texts; what may be the beginning of one waits."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""
        self.is_found = False

    def push(self, text: str) -> str:
        """The text that no stop text can take back. After one is found, nothing."""
        if not self._stop or self.is_found:
            return "" if self.is_found else text
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.is_found = True
            keep = min(found)
        else:
            keep = len(self._held) - max(map(self._overlap, self._stop))
        out, self._held = self._held[:keep], self._held[keep:]
        return out

    def rest(self) -> str:
        """The text that waited, if no stop text was found."""
        return "" if self.is_found else self._held

    def _overlap(self, stop: str) -> int:
        """The number of characters at the end of the held text that begin `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)
