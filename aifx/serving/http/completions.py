"""`/v1/completions`."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from starlette.requests import Request
from starlette.responses import Response

from aifx.serving.http.answers import Answers, EventStream, event, json_response
from aifx.serving.http.documents import (
    Answer,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptTokensDetails,
    UsageAnswer,
    cost_of,
)
from aifx.serving.http.protocol import ApiError, CompletionRequest
from aifx.serving.http.state import record_of
from aifx.serving.http.text import TextState, base_seed, sampling_settings, stops, total_usage
from aifx.serving.requests import FinishReason, GenerationRequest, SamplingSettings, TokenScore, Usage

MAX_TOKENS = 16
"""Default of `max_tokens`, that of OpenAI's API."""


@dataclass
class _Choice:
    """One answer, or its part that is written already. `length`: of the text, where the next token's text begins."""

    texts: list[str] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    length: int = 0


async def completions(request: Request) -> Response:
    """Continue prompts."""
    state: TextState = request.app.state.server
    body = await state.read(request, CompletionRequest)
    adapter = state.adapter_of(body.model)
    n = check_n(body.n, state)
    if body.best_of not in (None, n):
        raise ApiError(400, "best_of: it must be n; this server keeps every answer", param="best_of")
    prompts = await state.prompts(body.prompt, "prompt", n)
    seed = base_seed(body, request)
    requests = _requests(body, state, prompts, [sampling_settings(body, seed + index) for index in range(n)], adapter)
    record_of(request).stream = bool(body.stream)
    answers = state.submit(request, requests, "prompt")
    writer = _Writer(state, body, prompts, n, answers)
    if body.stream:
        return EventStream(writer.stream(), answers)
    async with answers:
        return json_response(await writer.whole())


def check_n(n: int | None, state: TextState) -> int:
    """The number of answers that a prompt gets. Raises ApiError for too many."""
    if (n or 1) > state.settings.max_n:
        raise ApiError(400, f"n: {n}; this server's serve.max_n is {state.settings.max_n}", param="n")
    return n or 1


def _requests(
    body: CompletionRequest,
    state: TextState,
    prompts: Sequence[list[int]],
    settings: Sequence[SamplingSettings],
    adapter: str | None,
) -> list[GenerationRequest]:
    echo = bool(body.echo)
    max_tokens = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if not max_tokens and not echo:
        raise ApiError(400, "max_tokens: 0 writes nothing, which is of use only with echo", param="max_tokens")
    for ids in prompts:
        if (room := state.check_prompt(ids, "prompt")) < max_tokens:
            raise too_long("max_tokens", len(ids), max_tokens, room)
    return [
        GenerationRequest(
            prompt_ids=ids,
            max_tokens=max_tokens,
            sampling=sampling,
            stop=stops(body),
            stop_token_ids=frozenset(body.stop_token_ids or ()),
            ignore_end=bool(body.ignore_eos),
            logprobs=0 if body.logprobs is None and echo and not max_tokens else body.logprobs,
            prompt_logprobs=echo and (body.logprobs is not None or not max_tokens),
            adapter=adapter,
        )
        for ids in prompts
        for sampling in settings
    ]


def too_long(field: str, prompt: int, answer: int, room: int) -> ApiError:
    why = f"{field}: {prompt} tokens of the prompt and {answer} of the answer; this server has room for {prompt + room}"
    return ApiError(400, why, param=field, code="context_length_exceeded")


class _Writer:
    """Completions from deltas, whole or in pieces."""

    def __init__(
        self, state: TextState, body: CompletionRequest, prompts: Sequence[list[int]], n: int, answers: Answers
    ) -> None:
        self._state, self._body, self._answers, self._n = state, body, answers, n
        self._id, self._created = f"cmpl-{secrets.token_hex(16)}", int(time.time())
        self._prompts = prompts
        self._choices = [_Choice() for _ in range(len(prompts) * n)]
        if body.echo:
            for index, choice in enumerate(self._choices):
                choice.texts.append(self._prompt_text(index // n))

    async def whole(self) -> Completion:
        """The answer when all choices are complete. Raises ApiError, ClientGone."""
        async for batch in self._answers.batches():
            for index, delta in batch:
                choice = self._choices[index]
                choice.texts.append(delta.text)
                choice.scores += (*delta.prompt_scores, *delta.scores)
                choice.finish_reason = delta.finish_reason
        choices = [self._choice(index, choice) for index, choice in enumerate(self._choices)]
        return self._completion(choices, usage_answer(self._total()))

    async def stream(self) -> AsyncIterator[bytes]:
        """Chunks as events. Raises ApiError, ClientGone."""
        options = self._body.stream_options
        head = self._completion([]).encoded()
        async for batch in self._answers.batches():
            events = []
            for index, delta in batch:
                choice = self._choices[index]
                choice.texts.append(delta.text)
                choice.scores += (*delta.prompt_scores, *delta.scores)
                choice.finish_reason = delta.finish_reason
                if any(choice.texts) or choice.scores or delta.finish_reason:
                    events.append(with_choice(head, self._choice(index, choice)))
                    choice.texts, choice.scores = [], []
            if events:
                yield b"".join(events)
        if options is not None and options.include_usage:
            yield event(self._completion([], usage_answer(self._total())).encoded())

    def _prompt_text(self, index: int) -> str:
        prompt = self._body.prompt
        given = prompt if isinstance(prompt, str) else prompt[index] if isinstance(prompt[0], str) else None
        return given if isinstance(given, str) else self._state.tokenizer.decode(self._prompts[index])

    def _total(self) -> Usage:
        return total_usage(list(self._answers.usages.values()), self._n)

    def _choice(self, index: int, choice: _Choice) -> CompletionChoice:
        made = CompletionChoice(index=index, text="".join(choice.texts), finish_reason=finished(choice.finish_reason))
        if self._body.logprobs is not None:
            made.logprobs = self._logprobs(choice)
        return made

    def _logprobs(self, choice: _Choice) -> CompletionLogprobs:
        made = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for score in choice.scores:
            text = self._state.token_text(score.token)
            made.tokens.append(text)
            made.token_logprobs.append(score.logprob)
            made.text_offset.append(choice.length)
            choice.length += len(text)
            if score.logprob is None:
                made.top_logprobs.append(None)
                continue
            top: dict[str, float] = {}
            for token, logprob in (*score.top, (score.token, score.logprob)):
                top.setdefault(self._state.token_text(token), logprob)
            made.top_logprobs.append(top)
        return made

    def _completion(self, choices: list[CompletionChoice], usage: UsageAnswer | None = None) -> Completion:
        made = Completion(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._body.model or self._state.name,
            system_fingerprint=self._answers.fingerprint,
            choices=choices,
        )
        if usage is not None:
            made.usage = usage
        return made


def with_choice(empty: bytes, choice: Answer) -> bytes:
    """The event of a chunk, from the chunk without choices: all else is the same in a whole stream."""
    assert empty.endswith(b"[]}")
    return event(empty[:-2] + choice.encoded() + b"]}")


def finished(reason: FinishReason | None) -> Literal["stop", "length"] | None:
    """The `finish_reason` of an answer. `Answers` raises for one that is not complete."""
    assert reason in (None, "stop", "length")
    return reason


def usage_answer(usage: Usage) -> UsageAnswer:
    """The `usage` of an answer, without fields that are unknown."""
    return UsageAnswer(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
        **cost_of(usage.joules, usage.energy_basis, usage.cost),
    )
