"""Requests to an engine and the parts of their answers, without HTTP."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

SEEDS = 2**32
"""Seeds are taken modulo this."""

EnergyBasis: TypeAlias = Literal["measured", "declared", "nameplate"]

FinishReason: TypeAlias = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class SamplingSettings:
    """Settings by which a request's tokens are drawn. The defaults are those of OpenAI's API.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_k: 0 keeps all.
        min_p: tokens less likely than this share of the likeliest one's probability are left out.
        presence_penalty: subtracted from the score of each token that was written.
        frequency_penalty: subtracted for each time that it was written.
        repetition_penalty: positive scores of tokens of prompt and answer are divided by it, negative ones multiplied.
        logit_bias: added to scores, by token.
        seed: with the position, all that the draws depend on.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0


class Grammar(Protocol):
    """The state of a grammar that one answer must match. Only the engine's thread calls it.

    If a method raises, the answer ends with an error.
    """

    source: str  # what a new one of the same kind can be made of

    def mask(self) -> Any:
        """The tokens that may come next: uint32 `[ceil(vocab_size / 32)]`, token t is bit t % 32 of word t // 32."""
        ...

    def accept(self, token: int) -> None:
        """The token that came next."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether nothing but the end can follow."""
        ...


@dataclass(frozen=True)
class GenerationRequest:
    """A prompt to continue, and how.

    Attributes:
        prompt_ids: at least one token.
        max_tokens: at least 0; with 0 and `prompt_logprobs`, the prompt is scored and nothing written.
        stop: texts before which the answer ends; none of it is written.
        stop_token_ids: tokens that end the answer, beside those of the tokenizer.
        ignore_end: the tokenizer's end tokens do not end the answer (for measurements).
        logprobs: log-probabilities of each token, and of so many of the likeliest; None for none.
        prompt_logprobs: those of the prompt's tokens too.
        adapter: the name of a loaded adapter.
        grammar: a grammar of this request's own.
        forgets: if the context is full, its older part is forgotten and the rest is read again: as much stays as leaves
            room for what is still to be written, at least half. Otherwise prompt and answer must fit.
        id: of the response, for its record.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    sampling: SamplingSettings = SamplingSettings()
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_end: bool = False
    logprobs: int | None = None
    prompt_logprobs: bool = False
    adapter: str | None = None
    grammar: Grammar | None = None
    forgets: bool = False
    id: str = ""


class TokenScore(NamedTuple):
    """A token, its log-probability under the model (before temperature and limits), and the likeliest others."""

    token: int
    logprob: float | None  # None for the first token of a prompt
    top: tuple[tuple[int, float], ...] = ()  # (token, log-probability), likeliest first


@dataclass(frozen=True)
class Usage:
    """The cost of a request so far."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    queue_s: float | None = None  # how long it waited
    joules: float | None = None  # its share, by tokens, of what the devices used; None if that is not known
    energy_basis: EnergyBasis | None = None  # how that is known: "measured", "declared" or "nameplate"
    cost: float | None = None  # its share of `serve.price_per_hour`


class Embedded(NamedTuple):
    """The hidden states of a prompt, pooled: float32 `[embed]`."""

    vector: Any
    usage: Usage


@dataclass(frozen=True)
class Delta:
    """The part of an answer that one step added. `text` is whole characters; a token may add none yet.

    Attributes:
        scores: of `token_ids`, if they were asked for.
        prompt_scores: of the prompt, once, with the first delta.
        finish_reason: of the last delta alone. "stop": an end token, a stop text or a complete grammar.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None  # with the last delta
    error: str | None = None  # why, if the reason is "error"
    field: str | None = None  # of the `GenerationRequest`, if the error is its fault


Deliver: TypeAlias = Callable[[Delta], None]
"""Called from the engine's thread with each delta, the last one with a finish reason. It must not wait."""


def complete_answer(deltas: queue.Queue[Delta]) -> list[Delta]:
    """Wait for the last delta that an engine puts into a queue. Returns all of them."""
    found = [deltas.get()]
    while found[-1].finish_reason is None:
        found.append(deltas.get())
    return found


class Ticket(Protocol):
    """A request that the engine has taken."""

    @property
    def fingerprint(self) -> str:
        """The digest of the weights and the program that write the answer."""
        ...

    def cancel(self) -> None:
        """Cancel the request, whose pages are then free within one step. From any thread, any number of times."""
        ...


class QueueFull(Exception):
    """The queue has no place for another request. `retry_after_s` estimates when it will."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(f"{waiting} requests are waiting")
        self.retry_after_s = retry_after_s


class Draining(Exception):
    """The engine finishes what it has and takes no more."""


class NotRecorded(Draining):
    """Answers need records, which cannot be written. The message says why."""


class RequestError(ValueError):
    """A request that cannot be served. `field` names what is wrong with it, as `GenerationRequest` calls it."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field, self.why = field, why


class ServedEngine(Protocol):
    """The part of an engine, of text or of predictions, that every server uses."""

    is_reproducible: bool
    """Whether an answer's bits were shown, at the start, not to depend on other requests."""

    failure: str | None
    """The reason why the engine ended by itself, or None."""

    @property
    def fingerprint(self) -> str:
        """Digest of the weights and program that answer new requests."""
        ...

    def drain(self) -> None:
        """Take no more requests; running and waiting ones go on."""
        ...

    def stop(self) -> None:
        """End all requests ("cancelled") and the engine's thread. Waits for it."""
        ...


class ServingEngine(ServedEngine, Protocol):
    """An engine that writes text. `aifx.serving.engine.Engine` implements it."""

    @property
    def max_model_len(self) -> int:
        """Tokens of a prompt and its answer, at the most."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def adapters(self) -> Sequence[str]: ...

    def submit(self, request: GenerationRequest, deliver: Deliver, *, beside: Any = None) -> Ticket:
        """Take a request. From any thread. Raises RequestError, QueueFull, Draining.

        Args:
            beside: the ticket of another, whose weights also write this answer.
        """
        ...

    def embed(
        self, prompt_ids: Sequence[int], deliver: Callable[[Embedded | None], None], *, adapter: str | None = None
    ) -> Ticket:
        """The last hidden state, pooled over the prompt: calls `deliver` once, with None if it was cancelled. Raises as
        `submit` does."""
        ...

    def stats(self) -> EngineStats: ...


@dataclass(frozen=True)
class EngineStats:
    """The engine at this moment, and its counts since it started."""

    running: int
    waiting: int
    pages_total: int
    pages_used: int  # by requests that run
    pages_cached: int  # held for prompts that may come again; freed as needed
    prefix_queries: int  # tokens of prompts looked up
    prefix_hits: int  # tokens found
    preemptions: int
    prompt_tokens: int
    generation_tokens: int
    steps: int
    compilations: int  # after the start: 0, or a program was missing
