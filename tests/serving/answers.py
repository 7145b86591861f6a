"""Requests to an engine, and what came of them."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aifx.serving.engine import Engine
from aifx.serving.requests import Delta, GenerationRequest, SamplingSettings


@dataclass
class Answer:
    """The deltas of a request, as they came."""

    deltas: queue.Queue[Delta] = field(default_factory=queue.Queue)
    ticket: Any = None

    def all(self) -> list[Delta]:
        found: list[Delta] = []
        while not found or found[-1].finish_reason is None:
            found.append(self.deltas.get(timeout=60))
        return found


@dataclass
class Whole:
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[float | None, ...]
    finish: str | None
    last: Delta

    @classmethod
    def of(cls, deltas: Sequence[Delta]) -> Whole:
        tokens = tuple(t for d in deltas for t in d.token_ids)
        scores = tuple(s.logprob for d in deltas for s in d.scores)
        return cls(tokens, "".join(d.text for d in deltas), scores, deltas[-1].finish_reason, deltas[-1])


def send(engine: Engine, request: GenerationRequest) -> Answer:
    answer = Answer()
    answer.ticket = engine.submit(request, answer.deltas.put)
    return answer


def ask(engine: Engine, request: GenerationRequest) -> Whole:
    return Whole.of(send(engine, request).all())


def random_request(rng: np.random.Generator, vocab_size: int = 257, longest: int = 150) -> GenerationRequest:
    """A prompt and settings of any kind, with log-probabilities, so that bits can be compared."""
    prompt = rng.integers(1, vocab_size, int(rng.integers(1, longest))).tolist()
    if rng.random() < 0.3:  # what others begin with, so that pages are shared
        prompt = [*range(1, 129), *prompt[:20]]
    sampling = SamplingSettings(
        temperature=float(rng.choice([0.0, 0.7, 1.3])),
        top_k=int(rng.choice([0, 5, 100])),
        top_p=float(rng.choice([1.0, 0.9])),
        min_p=float(rng.choice([0.0, 0.05])),
        presence_penalty=float(rng.choice([0.0, 0.5])),
        frequency_penalty=float(rng.choice([0.0, 0.3])),
        repetition_penalty=float(rng.choice([1.0, 1.2])),
        logit_bias={7: 2.5} if rng.random() < 0.2 else {},
        seed=int(rng.integers(2**32)),
    )
    return GenerationRequest(prompt, int(rng.integers(1, 60)), sampling, logprobs=int(rng.choice([0, 3])))


def bits(whole: Whole) -> Any:
    return whole.tokens, np.array(whole.logprobs, np.float32).tobytes(), whole.text, whole.finish
