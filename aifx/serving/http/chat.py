"""`/v1/chat/completions`: messages in, a message out, with calls of tools and answers that follow a JSON schema."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from aifx.serving.grammar import (
    ANY_OBJECT,
    CallBegin,
    Event,
    GrammarError,
    Text,
    ToolCallParser,
    ToolFormat,
    calls_grammar,
)
from aifx.serving.http.answers import Answers, EventStream, event, json_response
from aifx.serving.http.completions import check_n, finished, too_long, usage_answer, with_choice
from aifx.serving.http.documents import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    FunctionCallPiece,
    TokenLogprob,
    ToolCallPiece,
    TopLogprob,
)
from aifx.serving.http.protocol import ApiError, ChatRequest, NamedTool, Tool
from aifx.serving.http.state import record_of
from aifx.serving.http.text import TextState, base_seed, sampling_settings, stops, total_usage
from aifx.serving.requests import Delta, FinishReason, GenerationRequest, Grammar, TokenScore, Usage

Finish: TypeAlias = Literal["stop", "length", "tool_calls"]


async def chat_completions(request: Request) -> Response:
    """Answer a conversation."""
    state: TextState = request.app.state.server
    body = await state.read(request, ChatRequest)
    adapter = state.adapter_of(body.model)
    n = check_n(body.n, state)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs requires logprobs = true", param="top_logprobs")
    tools = _chosen_tools(body)
    prompt = await state.chat_prompt(body.messages, None if body.tool_choice == "none" else body.tools)
    max_tokens = _max_tokens(body, state, prompt)
    grammars = await run_in_threadpool(_grammars, body, state, tools, n)
    if grammars[0] is not None and (field := next((f for f in ("stop", "stop_token_ids") if getattr(body, f)), None)):
        raise ApiError(400, f"{field}: it could cut an answer that must be whole JSON", param=field)
    seed = base_seed(body, request)
    requests = [
        GenerationRequest(
            prompt_ids=prompt,
            max_tokens=max_tokens,
            sampling=sampling_settings(body, seed + index),
            stop=stops(body),
            stop_token_ids=frozenset(body.stop_token_ids or ()),
            ignore_end=bool(body.ignore_eos),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            adapter=adapter,
            grammar=grammar,
        )
        for index, grammar in enumerate(grammars)
    ]
    record_of(request).stream = bool(body.stream)
    answers = state.submit(request, requests, "messages")
    parsers = [ToolCallParser(_tool_format(state), [tool.function.name for tool in tools]) for _ in range(n)]
    writer = _Writer(state, body, answers, parsers if tools else None)
    if body.stream:
        return EventStream(writer.stream(), answers)
    async with answers:
        return json_response(await writer.whole())


def _tool_format(state: TextState) -> ToolFormat:
    return ToolFormat.of_template(state.renderer.template.source if state.renderer is not None else "")


def _chosen_tools(body: ChatRequest) -> list[Tool]:
    """The tools that the answer may call. Raises ApiError."""
    choice, tools = body.tool_choice, body.tools or []
    if choice not in (None, "none") and not tools:
        raise ApiError(400, "tool_choice requires tools", param="tool_choice")
    if body.response_format is not None and body.response_format.type != "text" and tools and choice != "none":
        why = "response_format cannot be used with tools, except with tool_choice = none"
        raise ApiError(400, why, param="response_format")
    if isinstance(choice, NamedTool):
        named = [tool for tool in tools if tool.function.name == choice.function.name]
        if not named:
            why = f"tool_choice: no tool is named {choice.function.name!r}"
            raise ApiError(400, why, param="tool_choice")
        return named[:1]
    return [] if choice == "none" else tools


def _max_tokens(body: ChatRequest, state: TextState, prompt: Sequence[int]) -> int:
    """All that the context leaves, unless the request has a limit. Raises ApiError."""
    room = state.check_prompt(prompt, "messages")
    given = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(given) > 1:
        why = "max_tokens and max_completion_tokens are two names of one limit, and differ"
        raise ApiError(400, why, param="max_completion_tokens")
    wanted = next(iter(given), None)
    if wanted is not None and wanted > room:
        field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        raise too_long(field, len(prompt), wanted, room)
    if not room:
        raise too_long("messages", len(prompt), 1, room)
    return wanted or room


def _grammars(body: ChatRequest, state: TextState, tools: Sequence[Tool], n: int) -> Sequence[Grammar | None]:
    """A grammar for each answer, or None for free text. Raises ApiError for a schema that no grammar can be made of."""
    param = "response_format"
    try:
        if tools and body.tool_choice not in (None, "auto"):
            param = "tools"
            functions = [tool.function.model_dump(exclude_none=True) for tool in tools]
            several = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, NamedTool)
            form = _tool_format(state)
            return [calls_grammar(state.grammars, form, functions, repeated=several) for _ in range(n)]
        form_of_answer: Any = body.response_format
        if form_of_answer is None or form_of_answer.type == "text":
            return [None] * n
        schema = ANY_OBJECT
        if form_of_answer.type == "json_schema":
            schema = form_of_answer.json_schema.schema_ or ANY_OBJECT
        return [state.grammars.schema(schema) for _ in range(n)]
    except GrammarError as error:
        raise ApiError(400, f"{param}: {error}", param=param) from None


class _Writer:
    """Messages from deltas, whole or in pieces."""

    def __init__(
        self, state: TextState, body: ChatRequest, answers: Answers, parsers: Sequence[ToolCallParser] | None
    ) -> None:
        """`parsers`: of calls in each answer; None if there can be none."""
        self._state, self._body, self._answers, self._parsers = state, body, answers, parsers
        self._n = body.n or 1
        self._id, self._created = f"chatcmpl-{secrets.token_hex(16)}", int(time.time())

    async def whole(self) -> ChatCompletion:
        """The answer when all choices are complete. Raises ApiError, ClientGone."""
        texts: list[list[str]] = [[] for _ in range(self._n)]
        calls: list[list[ToolCallPiece]] = [[] for _ in range(self._n)]
        scores: list[list[TokenScore]] = [[] for _ in range(self._n)]
        reasons: list[FinishReason | None] = [None] * self._n
        async for batch in self._answers.batches():
            for index, delta in batch:
                reasons[index] = delta.finish_reason
                scores[index] += delta.scores
                for found in self._events(index, delta):
                    if isinstance(found, Text):
                        texts[index].append(found.text)
                    elif isinstance(found, CallBegin):
                        function = FunctionCallPiece(name=found.name, arguments="")
                        calls[index].append(ToolCallPiece(id=found.id, type="function", function=function))
                    else:
                        calls[index][found.call].function.arguments += found.piece
        choices = []
        for index in range(self._n):
            text = "".join(texts[index])
            message = ChatMessage(role="assistant", content=text if text or not calls[index] else None)
            if calls[index]:
                message.tool_calls = calls[index]
            reason = self._finish(index, reasons[index])
            assert reason is not None
            choice = ChatChoice(index=index, message=message, finish_reason=reason)
            choice.logprobs = self._logprobs(scores[index]) if self._body.logprobs else None
            choices.append(choice)
        return ChatCompletion(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._body.model or self._state.name,
            system_fingerprint=self._answers.fingerprint,
            choices=choices,
            usage=usage_answer(self._total()),
        )

    async def stream(self) -> AsyncIterator[bytes]:
        """Chunks as events. Raises ApiError, ClientGone."""
        first = ChatMessage(role="assistant", content="")
        yield b"".join(self._event(index, first, None, ()) for index in range(self._n))
        async for batch in self._answers.batches():
            events = [piece for index, delta in batch for piece in self._pieces(index, delta)]
            if events:
                yield b"".join(events)
        options = self._body.stream_options
        if options is not None and options.include_usage:
            chunk = self._chunk([])
            chunk.usage = usage_answer(self._total())
            yield event(chunk.encoded())

    def _events(self, index: int, delta: Delta) -> Iterator[Event]:
        if self._parsers is None:
            if delta.text:
                yield Text(delta.text)
            return
        yield from self._parsers[index].feed(delta.text)
        if delta.finish_reason is not None:
            yield from self._parsers[index].finish()

    def _pieces(self, index: int, delta: Delta) -> Iterator[bytes]:
        """The events of a delta. Its log-probabilities go with the first one."""
        scores = delta.scores
        for found in self._events(index, delta):
            yield self._event(index, _message(found), None, scores)
            scores = ()
        if delta.finish_reason is not None or scores:
            yield self._event(index, ChatMessage(), self._finish(index, delta.finish_reason), scores)

    def _event(self, index: int, message: ChatMessage, reason: Finish | None, scores: Sequence[TokenScore]) -> bytes:
        choice = ChatChunkChoice(index=index, delta=message, finish_reason=reason)
        if self._body.logprobs and scores:
            choice.logprobs = self._logprobs(scores)
        return with_choice(self._empty_chunk, choice)

    @cached_property
    def _empty_chunk(self) -> bytes:
        return self._chunk([]).encoded()

    def _chunk(self, choices: list[ChatChunkChoice]) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._body.model or self._state.name,
            system_fingerprint=self._answers.fingerprint,
            choices=choices,
        )

    def _finish(self, index: int, reason: FinishReason | None) -> Finish | None:
        if reason == "stop" and self._parsers is not None and self._parsers[index].calls:
            return "tool_calls"
        return finished(reason)

    def _total(self) -> Usage:
        return total_usage(list(self._answers.usages.values()), self._n)

    def _logprobs(self, scores: Sequence[TokenScore]) -> ChatLogprobs:
        def top(token: int, logprob: float | None) -> dict[str, Any]:
            data = self._state.token_bytes(token)
            return {"token": self._state.token_text(token), "logprob": logprob, "bytes": list(data)}

        return ChatLogprobs(
            content=[
                TokenLogprob(
                    **top(score.token, score.logprob),
                    top_logprobs=[TopLogprob(**top(token, logprob)) for token, logprob in score.top],
                )
                for score in scores
            ]
        )


def _message(found: Event) -> ChatMessage:
    """A piece of an answer as the change of a message."""
    if isinstance(found, Text):
        return ChatMessage(content=found.text)
    if isinstance(found, CallBegin):
        function = FunctionCallPiece(name=found.name, arguments="")
        return ChatMessage(
            tool_calls=[ToolCallPiece(index=found.call, id=found.id, type="function", function=function)]
        )
    return ChatMessage(tool_calls=[ToolCallPiece(index=found.call, function=FunctionCallPiece(arguments=found.piece))])
