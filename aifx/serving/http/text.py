"""The state that the routes of text share: the model, its tokenizer, and the encoding of prompts."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import anyio
from anyio.to_thread import run_sync
from starlette.requests import Request

from aifx.core.errors import DataError
from aifx.data.chat.assets import kept_template
from aifx.data.chat.rendering import ChatRenderer
from aifx.data.tokenizer import Tokenizer
from aifx.loading.restore import RestoredRun
from aifx.serving.generate import chat_renderer
from aifx.serving.grammar import GrammarError, Grammars
from aifx.serving.http.answers import Answers
from aifx.serving.http.documents import ModelCard, PagesUsed
from aifx.serving.http.metrics import TextMetrics
from aifx.serving.http.protocol import (
    ApiError,
    AssistantMessage,
    Content,
    Messages,
    Prompt,
    SamplingFields,
    Tool,
    ToolMessage,
)
from aifx.serving.http.state import READERS, SEED, Load, ServerState, record_of
from aifx.serving.requests import SEEDS, GenerationRequest, SamplingSettings, ServingEngine, Usage
from aifx.serving.template_process import TemplateProcess

LONG_TEXT = 4096
"""Characters of texts from which on a thread tokenizes them, so that other requests do not wait."""

NAME_BYTES = 4
"""Bytes of the character that represents a special token in `SpecialTokens`."""


@dataclass(kw_only=True)
class TextState(ServerState):
    """The state of a server of text.

    Attributes:
        renderer: None if the run has no chat template.
    """

    engine: ServingEngine
    tokenizer: Tokenizer
    renderer: ChatRenderer | None

    metrics: TextMetrics = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = TextMetrics(self.engine, self.name, self.swaps)
        self._readers, self._writers = anyio.CapacityLimiter(READERS), anyio.CapacityLimiter(1)
        self.templates: TemplateProcess | None = None
        if self.renderer is not None:
            self.templates = TemplateProcess(self.renderer.writer, self.settings.template_s)

    def close(self) -> None:
        super().close()
        if self.templates is not None:
            self.templates.close()

    def card(self, name: str) -> ModelCard:
        return super().card(name).model_copy(update={"max_model_len": self.engine.max_model_len})

    def load(self) -> Load:
        stats, is_chat = self.engine.stats(), self.renderer is not None
        return Load(
            "/v1/chat/completions" if is_chat else "/v1/completions",
            "chat" if is_chat else "text",
            stats.running,
            stats.waiting,
            {"tokens written": stats.generation_tokens, "tokens read": stats.prompt_tokens},
            stats.compilations,
            PagesUsed(used=stats.pages_used, cached=stats.pages_cached, total=stats.pages_total),
        )

    @property
    def grammars(self) -> Grammars:
        """The grammars over the model's tokens. Raises GrammarError for a tokenizer without grammars."""
        if isinstance(self._grammars, GrammarError):
            raise self._grammars
        return self._grammars

    @cached_property
    def _grammars(self) -> Grammars | GrammarError:
        try:
            return Grammars(self.tokenizer, self.engine.vocab_size)
        except GrammarError as error:
            return error

    @property
    def models(self) -> list[str]:
        return [self.name, *self.engine.adapters]

    def adapter_of(self, model: str | None) -> str | None:
        """The adapter that a request names, if it names one. Raises ApiError (404) for an unknown model."""
        self.check_model(model)
        return None if model == self.name else model

    def submit(self, request: Request, requests: Sequence[GenerationRequest], prompt_field: str) -> Answers:
        """Submit an HTTP `request`'s engine `requests`, all or none; the caller closes the answers. Raises ApiError."""
        answers = Answers(self.mailbox, self.metrics, record_of(request), request.receive, self.settings.request_s)
        own = [replace(one, id=record_of(request).id) for one in requests]
        answers.submit(self.engine, own, prompt_field)
        return answers

    async def prompts(self, prompt: Prompt, field: str, n: int = 1) -> list[list[int]]:
        """The token ids of each prompt, of which each has `n` answers. Raises ApiError for too many."""
        if isinstance(prompt, str):
            return [self.tokenizer.as_prompt(ids) for ids in await self.encode([prompt], field)]
        if isinstance(prompt[0], int):
            return [list(prompt)]
        most = self.settings.queue + max(self.settings.slots)
        if len(prompt) * n > most:
            why = f"{len(prompt)} prompts" + (f" with n = {n}" if n > 1 else "") + f"; this server takes {most} at once"
            raise ApiError(400, f"{field}: {why}", param=field)
        if isinstance(prompt[0], str):
            found = await self.encode([str(text) for text in prompt], field)
            return [self.tokenizer.as_prompt(ids) for ids in found]
        return [list(ids) for ids in prompt]

    async def encode(self, texts: Sequence[str], field: str) -> list[list[int]]:
        """The token ids of texts, no special token added. Raises ApiError."""
        for text in texts:
            self._check_size(text, field)

        def encoded() -> list[list[int]]:
            return [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]

        is_short = sum(map(len, texts)) < LONG_TEXT
        return encoded() if is_short else await run_sync(encoded, limiter=self._readers)

    def _check_size(self, text: str, field: str, shortest: int = 0) -> None:
        """Raise ApiError for a long text of so many bytes that it has too many tokens, which take seconds to count.

        Args:
            shortest: bytes of a token of another kind in the text, which may be longer than the tokenizer's.
        """
        if self.tokenizer.most_bytes is None or len(text) < LONG_TEXT:
            return
        size, most = len(text.encode()), self.engine.max_model_len
        if size > most * max(self.tokenizer.most_bytes, shortest):
            why = f"{field}: {size} bytes are more than {most} tokens, which this server reads at the most"
            raise ApiError(400, why, param=field, code="context_length_exceeded")

    async def chat_prompt(self, messages: Messages, tools: Sequence[Tool] | None) -> list[int]:
        """The token ids of a conversation, by the model's chat template. Raises ApiError."""
        if self.renderer is None:
            raise ApiError(400, f"{self.name} has no chat template; /v1/completions takes its prompts")
        plain = template_messages(messages)
        functions = [tool.model_dump(exclude_none=True) for tool in tools or ()]
        special, templates = self.renderer.special, self.templates
        assert templates is not None
        try:
            text = await run_sync(templates.prompt_text, plain, "messages", functions, limiter=self._writers)
            self._check_size(text, "messages", NAME_BYTES)
            return await run_sync(special.encode_ids, text, limiter=self._readers)
        except DataError as error:
            param = "tools" if "tools" in error.what else "messages"
            raise ApiError(400, f"{error.what}: {error.why}", param=param) from None

    def check_prompt(self, ids: Sequence[int], field: str) -> int:
        """The number of tokens that may follow a prompt. Raises ApiError if it cannot be read."""
        most = self.engine.max_model_len
        if len(ids) > most:
            why = f"{field}: {len(ids)} tokens; this server reads {most} at the most, with the answer"
            raise ApiError(400, why, param=field, code="context_length_exceeded")
        if max(ids) >= self.engine.vocab_size:
            raise ApiError(400, f"{field}: token {max(ids)} of a vocabulary of {self.engine.vocab_size}", param=field)
        return most - len(ids)

    def token_text(self, token: int) -> str:
        """A token as OpenAI writes it: `bytes:\\xe2` if its bytes are not UTF-8."""
        data = self.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def token_bytes(self, token: int) -> bytes:
        try:
            return self.grammars.token_bytes(token)
        except GrammarError:
            return self.tokenizer.decode([token]).encode()


def renderer_of(trained: RestoredRun) -> ChatRenderer | None:
    """The renderer of a run's chats; None if it has no chat template."""
    if kept_template(trained.run.assets) is None:
        return None
    return chat_renderer(trained)


def base_seed(body: SamplingFields, request: Request) -> int:
    """The seed of a request's first answer: its own, or one at random. The scope of the request keeps it."""
    seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed % SEEDS
    request.scope[SEED] = seed
    return seed


def sampling_settings(body: SamplingFields, seed: int) -> SamplingSettings:
    """The engine's settings for a request. Raises ApiError for a bias of something other than a token."""
    given = {
        name: value
        for name in (
            "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"
        )
        if (value := getattr(body, name)) is not None
    }  # fmt: skip
    try:
        bias = {int(token): value for token, value in (body.logit_bias or {}).items()}
    except ValueError:
        raise ApiError(400, "logit_bias: its keys are token ids", param="logit_bias") from None
    return SamplingSettings(**given, top_k=max(body.top_k or 0, 0), logit_bias=bias, seed=seed % SEEDS)


def stops(body: SamplingFields) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def total_usage(usages: Sequence[Usage], n: int) -> Usage:
    """The usage of `n` answers to each prompt, which counts once."""
    bases = {usage.energy_basis for usage in usages}
    joules = [usage.joules for usage in usages if usage.joules is not None]
    costs = [usage.cost for usage in usages if usage.cost is not None]
    return Usage(
        sum(usage.prompt_tokens for usage in usages) // n,
        sum(usage.completion_tokens for usage in usages),
        sum(usage.cached_tokens for usage in usages) // n,
        joules=sum(joules) if len(joules) == len(usages) else None,
        energy_basis=bases.pop() if len(bases) == 1 else None,
        cost=sum(costs) if costs and len(costs) == len(usages) else None,
    )


def template_messages(messages: Messages) -> list[dict[str, Any]]:
    """Messages with plain texts, and the arguments of earlier calls as objects. Raises ApiError."""
    plain: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        made: dict[str, Any] = {"role": message.role, "content": _text(message.content)}
        if message.name is not None:
            made["name"] = message.name
        if isinstance(message, ToolMessage):
            made["tool_call_id"] = message.tool_call_id
        if isinstance(message, AssistantMessage):
            if message.tool_calls:
                made["tool_calls"] = _calls(message, f"messages[{index}].tool_calls")
            elif made["content"] is None:
                field = f"messages[{index}].content"
                raise ApiError(400, f"{field}: a message without tool_calls has content", param=field)
        plain.append(made)
    return plain


def _text(content: Content | None) -> str | None:
    return content if content is None or isinstance(content, str) else "\n".join(part.text for part in content)


def _calls(message: AssistantMessage, where: str) -> list[dict[str, Any]]:
    calls = []
    for index, call in enumerate(message.tool_calls or ()):
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError) as error:
            field = f"{where}[{index}].function.arguments"
            raise ApiError(400, f"{field} is not JSON: {error}", param=field) from None
        function = {"name": call.function.name, "arguments": arguments}
        calls.append({"id": call.id, "type": "function", "function": function})
    return calls
