"""Answers of OpenAI's API, and of vLLM's additions to it, as pydantic models, and the server's OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from aifx.core.version import __version__
from aifx.serving.http.protocol import Body


class Answer(BaseModel):
    """The body of an answer, or a part of one. Fields that were not set are not written."""

    def encoded(self) -> bytes:
        return self.model_dump_json(exclude_unset=True).encode()


class PromptTokensDetails(Answer):
    cached_tokens: int


class EnergyUsage(Answer):
    """An answer's share, by tokens or rows, of what the devices used while it was made."""

    joules: float
    basis: Literal["measured", "declared", "nameplate"]


class Cost(Answer):
    """The cost of an answer, without fields that are not known."""

    energy: EnergyUsage | None = None
    cost: float | None = None  # its share of serve.price_per_hour


class UsageAnswer(Cost):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None


class PredictionUsage(Cost):
    rows: int


def cost_of(joules: float | None, basis: str | None, cost: float | None) -> dict[str, Any]:
    """The fields of `Cost` that are known."""
    known: dict[str, Any] = {}
    if joules is not None and basis is not None:
        known["energy"] = EnergyUsage.model_validate({"joules": joules, "basis": basis})
    if cost is not None:
        known["cost"] = cost
    return known


class CompletionLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None


class Completion(Answer):
    """A completion, or a chunk of a streamed one."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: UsageAnswer | None = None


class TopLogprob(Answer):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    content: list[TokenLogprob]


class FunctionCallPiece(Answer):
    name: str | None = None
    arguments: str


class ToolCallPiece(Answer):
    """A call, or a piece of one: a later piece has `index` and more of the arguments."""

    index: int | None = None
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallPiece


class ChatMessage(Answer):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallPiece] | None = None


class ChatChoice(Answer):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: UsageAnswer


class ChatChunkChoice(Answer):
    index: int
    delta: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls"] | None


class ChatChunk(Answer):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: UsageAnswer | None = None


class Embedding(Answer):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="Numbers, or the base64 of little-endian float32.")


class Embeddings(Answer):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: UsageAnswer


class ModelCard(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None = None  # of text


class Models(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class Tokens(Answer):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class TokenizerInfo(Answer):
    """Facts for clients that encode and count tokens by this server, such as lm-eval."""

    tokenizer_class: str
    eos_token: str
    bos_token: str | None = None
    chat_template: str | None = None


class Detokenized(Answer):
    prompt: str


class Predictions(Answer):
    """The records that `aifx predict -` writes for the same rows."""

    object: Literal["list"]
    model: str
    system_fingerprint: str
    predictions: list[dict[str, Any]]
    usage: PredictionUsage


class Classification(Answer):
    """The prediction for one file; for classes, their names and probabilities."""

    model_config = ConfigDict(extra="allow")

    object: Literal["prediction"]
    model: str
    system_fingerprint: str
    label: str | None = None
    labels: list[str] | None = None
    probability: float | None = None
    probabilities: dict[str, float] | None = None
    thresholds: dict[str, float] | None = None  # by which classes were named
    usage: PredictionUsage


class Work(Answer):
    """A kind of work, counted since the server started."""

    name: str
    total: int


class PagesUsed(Answer):
    used: int
    cached: int
    total: int


class Latency(Answer):
    """Quantiles of the last 1,000 values; null if there was none."""

    name: str
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


class ServerStatus(Answer):
    """The numbers on the page at `/`."""

    model: str
    route: str  # that the page tries
    input: Literal["text", "chat", "file", "rows"]
    started: int
    system_fingerprint: str
    is_reproducible: bool
    is_draining: bool
    running: int
    waiting: int
    work: list[Work]
    latencies: list[Latency]
    pages: PagesUsed | None
    compilations: int
    swaps: int
    swaps_refused: int


class Status(Answer):
    status: str


class ServedModel(Answer):
    """A model that answers.

    Attributes:
        model: name of its run, or of the model version.
        digest: of the model version, or of the checkpoint's arrays.
    """

    model: str
    step: int
    digest: str


class ShadowStatus(ServedModel):
    """The second model of `--shadow`, and the requests that it was to answer since the start.

    Attributes:
        problem: why the last one failed; null if it did not.
    """

    answered: int
    failed: int
    dropped: int
    problem: str | None


class Readiness(Answer):
    """Whether the server takes requests.

    Attributes:
        watch: why the last look for another model failed; null if it did not. The present model goes on.
        served: the model of new requests.
        shadow: with `--shadow` alone.
    """

    status: str
    watch: str | None
    served: ServedModel | None = None
    shadow: ShadowStatus | None = None


class ErrorObject(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    error: ErrorObject


REFUSALS = {
    "400": "The request cannot be used; `param` names the field.",
    "401": "The key is missing or wrong.",
    "404": "No such model.",
    "408": "The body took too long.",
    "413": "The body is too large.",
    "415": "The body is of another type.",
    "421": "The Host header names another machine.",
    "429": "The queue is full; Retry-After says when to ask again.",
    "500": "The server failed.",
    "503": "The server is stopping, or not ready yet.",
    "504": "The request took too long.",
}
OF_BODIES = ("400", "404", "408", "413", "415", "429", "504")
"""Statuses of routes that read a body."""


@dataclass(frozen=True)
class Operation:
    """A route: the model of its body, if it has one, and of its answer, if that is an object of ours.

    `media` are other types of its body, whose bytes it takes as they are; `produces` those of an answer that is text.
    """

    method: str
    path: str
    body: type[Body] | None
    answer: type[Answer] | None
    endpoint: Callable[[Request], Awaitable[Response]]
    media: tuple[str, ...] = ()
    produces: tuple[str, ...] = ()


def document(operations: Sequence[Operation]) -> bytes:
    """The document as JSON."""
    kinds: list[Any] = [(o.body, "validation") for o in operations if o.body is not None]
    kinds += [(o.answer, "serialization") for o in operations if o.answer is not None]
    _, schemas = models_json_schema(
        [*kinds, (ErrorAnswer, "serialization")], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for operation in operations:
        path = operation.path.replace(":path}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, path)
    made = {
        "openapi": "3.1.0",
        "info": {"title": "aifx serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    return json.dumps(made).encode()


def _operation(operation: Operation, path: str) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _ref(operation.answer)}}
    if operation.produces:
        content = {kind: {"schema": {"type": "string"}} for kind in operation.produces}
    if operation.body is not None and "stream" in operation.body.model_fields:
        content["text/event-stream"] = {}  # events of chunks, which OpenAPI 3.1 cannot describe
    errors = {"application/json": {"schema": _ref(ErrorAnswer)}}
    statuses = [s for s in REFUSALS if operation.body is not None or s not in OF_BODIES or (s == "404" and "{" in path)]
    made: dict[str, Any] = {
        "summary": (operation.endpoint.__doc__ or "").strip(),
        "operationId": operation.endpoint.__name__,
        "responses": {
            "200": {"description": "The answer.", "content": content},
            **{status: {"description": REFUSALS[status], "content": errors} for status in statuses},
        },
        "security": [] if path in ("/", "/health", "/ready") else [{}, {"key": []}],
    }
    if operation.body is not None:
        schema = {"schema": _ref(operation.body)}
        files = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in operation.media}
        made["requestBody"] = {"required": True, "content": {"application/json": schema, **files}}
    if "{model}" in path:
        made["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    return made


def _ref(kind: type[Body] | type[Answer] | None) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"} if kind is not None else {"type": "object"}
