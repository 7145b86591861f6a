"""What all routes share: the model, its engine, the settings, and how requests are read."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from aifx.config.sections import ServeSection
from aifx.core.errors import DataError
from aifx.data.chat.assets import kept_template
from aifx.data.chat.rendering import ChatRenderer
from aifx.data.tokenizer import Tokenizer
from aifx.generation.chat import chat_renderer
from aifx.loading.restore import RestoredRun
from aifx.serving.grammar import GrammarError, Grammars
from aifx.serving.http.access_log import AccessLog, AccessRecord
from aifx.serving.http.answers import Answers, Mailbox
from aifx.serving.http.errors import ApiError, ClientGone
from aifx.serving.http.metrics import Metrics
from aifx.serving.http.protocol import BodyT, Messages, Prompt, SamplingFields, Tool, parse
from aifx.serving.requests import SEEDS, GenerationRequest, SamplingSettings, ServingEngine, Usage

logger = logging.getLogger(__name__)

LONG_TEXT = 4096
"""Characters of a text from which on a thread tokenizes it, so that other requests do not wait."""


@dataclass
class ServerState:
    """A model that is served.

    Attributes:
        name: of the model in the API.
        renderer: None if the run has no chat template.
        api_key: what clients must send; None if anyone may ask.
        ready: whether an answer was really written.
        is_draining: no more requests are taken.
    """

    engine: ServingEngine
    tokenizer: Tokenizer
    renderer: ChatRenderer | None
    name: str
    settings: ServeSection
    log: AccessLog
    api_key: str | None = None
    ready: Callable[[], bool] = lambda: True
    is_draining: bool = False
    in_flight: int = 0
    created: int = field(default_factory=lambda: int(time.time()))
    _mailbox: Mailbox | None = None

    @cached_property
    def metrics(self) -> Metrics:
        return Metrics(self.engine, self.name)

    @cached_property
    def key_digest(self) -> bytes:
        """Keys are compared by digests, in constant time."""
        return digest_of(self.api_key or "")

    @cached_property
    def grammars(self) -> Grammars:
        """Raises GrammarError for a tokenizer without grammars."""
        return Grammars(self.tokenizer, self.engine.vocab_size)

    @property
    def models(self) -> list[str]:
        return [self.name, *self.engine.adapters]

    def adapter_of(self, model: str | None) -> str | None:
        """The adapter that a request names, if it names one. Raises ApiError (404) for an unknown model."""
        if model in (None, self.name):
            return None
        if model in self.engine.adapters:
            return model
        message = f"no model {model!r}; /v1/models lists {', '.join(self.models)}"
        raise ApiError(404, message, param="model", code="model_not_found")

    async def read(self, request: Request, kind: type[BodyT]) -> BodyT:
        """The body of a request. Raises ApiError."""
        content_type = request.headers.get("content-type", "application/json")
        if content_type.partition(";")[0].strip().lower() != "application/json":
            # A web page of another origin can send other types without asking the server (CORS).
            raise ApiError(415, f"the Content-Type is {content_type}; it must be application/json")
        body = parse(kind, await self._body(request), lenient=self.settings.lenient)
        record = record_of(request)
        record.model = getattr(body, "model", None) or self.name
        if self.settings.log_prompts:
            known = body.model_dump(include={"prompt", "messages", "input"}, exclude_none=True)
            record.prompt = next(iter(known.values()), None)
        return body

    async def _body(self, request: Request) -> bytes:
        most = self.settings.max_body_bytes
        too_large = ApiError(
            413, f"the body is larger than serve.max_body_bytes = {most}", headers={"Connection": "close"}
        )
        if int(request.headers.get("content-length") or 0) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.request_s):
                async for piece in request.stream():
                    body += piece
                    if len(body) > most:
                        raise too_large
        except ClientDisconnect:
            raise ClientGone("the client went away") from None
        except TimeoutError:
            raise ApiError(408, "the body took longer than serve.request_s", headers={"Connection": "close"}) from None
        return bytes(body)

    @property
    def mailbox(self) -> Mailbox:
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = Mailbox(loop)
        return self._mailbox

    def submit(self, request: Request, requests: Sequence[GenerationRequest], prompt_field: str) -> Answers:
        """Give requests to the engine, all or none; the caller closes the answers. Raises ApiError."""
        answers = Answers(self.mailbox, self.metrics, record_of(request), request.receive, self.settings.request_s)
        answers.submit(self.engine, requests, prompt_field)
        return answers

    async def prompts(self, prompt: Prompt) -> list[list[int]]:
        """The token ids of each prompt of a completion. Raises ApiError."""
        if isinstance(prompt, str):
            return [await self.encode(prompt)]
        if isinstance(prompt[0], str):
            return [await self.encode(str(text)) for text in prompt]
        lists = [prompt] if isinstance(prompt[0], int) else prompt
        return [list(ids) for ids in lists]

    async def encode(self, text: str, *, with_begin: bool = True) -> list[int]:
        """The token ids of a text, after the token that begins texts if the model has one."""
        function = self.tokenizer.encode_prompt if with_begin else self.tokenizer.encode
        return function(text) if len(text) < LONG_TEXT else await run_in_threadpool(function, text)

    async def chat_prompt(self, messages: Messages, tools: Sequence[Tool] | None) -> list[int]:
        """The token ids of a conversation, by the model's chat template. Raises ApiError."""
        from aifx.serving.http.messages import template_messages

        if self.renderer is None:
            raise ApiError(400, f"{self.name} has no chat template; /v1/completions takes its prompts")
        plain = template_messages(messages)
        shown = [tool.model_dump(exclude_none=True) for tool in tools or ()]
        try:
            return await run_in_threadpool(self.renderer.prompt, plain, "messages", tools=shown)
        except DataError as error:
            param = "tools" if "tools" in error.what else "messages"
            raise ApiError(400, f"{error.what}: {error.why}", param=param) from None

    def check_prompt(self, ids: Sequence[int], field: str) -> int:
        """How many tokens may follow a prompt. Raises ApiError if it cannot be read."""
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


def record_of(request: Request) -> AccessRecord:
    record: AccessRecord = request.scope["aifx.record"]
    return record


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def base_seed(body: SamplingFields) -> int:
    """The seed of a request's first answer: its own, or one at random."""
    return secrets.randbelow(SEEDS) if body.seed is None else body.seed % SEEDS


def sampling_settings(body: SamplingFields, seed: int) -> SamplingSettings:
    """Raises ApiError."""
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
    """Of `n` answers to each prompt, which counts once."""
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
