"""Requests of OpenAI's API, and of vLLM's additions to it, as pydantic models, and failures as that API reports them.

`parse` reads a body. A field that is not here is refused, unless the server is lenient. A list without a small maximum
is `fail_fast`: a body may hold a million wrong items, and errors for all of them take seconds and gigabytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails, from_json

from aifx.core.errors import nearest
from aifx.core.web.policy import WebError
from aifx.programs.serving import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS
from aifx.serving.requests import Delta, Draining, NotRecorded, QueueFull, RequestError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    504: "server_error",
}
"""Types of error objects by status; others are "invalid_request_error"."""

FIELDS = {"prompt_ids": "prompt", "ignore_end": "ignore_eos", "adapter": "model", "grammar": "response_format"}
"""Fields of `GenerationRequest` by another name in the API."""


class ApiError(WebError):
    """An answer that is a failure.

    Args:
        param: the field of the request that is wrong.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, code=code, headers=headers)
        self.param = param

    def body(self) -> bytes:
        kind = TYPES.get(self.status, "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()


def from_engine(error: Exception, prompt_field: str) -> ApiError:
    """The API's error for a request that the engine refuses. `prompt_field`: the API's name of the prompt."""
    if isinstance(error, QueueFull):
        after = str(max(1, round(error.retry_after_s)))
        return ApiError(429, f"the queue is full: {error}", code="queue_full", headers={"Retry-After": after})
    if isinstance(error, NotRecorded):
        why = "answers need records, and these cannot be written; the log says why"
        return ApiError(503, why, code="not_recorded", headers={"Retry-After": "1"})
    if isinstance(error, Draining):
        return ApiError.stopping()
    assert isinstance(error, RequestError)
    name = error.field.removeprefix("sampling.")
    param = prompt_field if name == "prompt_ids" else FIELDS.get(name, name)
    return ApiError(400, f"{param}: {error.why}", param=param)


def from_delta(delta: Delta) -> ApiError:
    """The API's error for a failed answer: the request's fault, such as a schema that is too complex, or ours."""
    if delta.field is not None:
        param = FIELDS.get(delta.field, delta.field)
        return ApiError(400, f"{param}: {delta.error}", param=param)
    return ApiError(500, f"the answer failed: {delta.error or 'unknown reason'}", code="engine_error")


MAX_STOPS = 16
MAX_STOP_TOKENS = 300
MAX_TOOLS = 128

MOST_DETAILS = 100
"""Most errors of a body that are read to name one of them."""

TokenId: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds: TypeAlias = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class Body(BaseModel):
    """The body of a request, or a part of one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


BodyT = TypeVar("BodyT", bound=Body)


def parse(kind: type[BodyT], data: bytes, *, lenient: bool) -> BodyT:
    """A request from JSON. Raises ApiError (400), which names the field. `lenient` leaves unknown fields out."""
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
    if lenient and (unknown := [detail for detail in details if detail["type"] == "extra_forbidden"]):
        for detail in unknown:
            _remove(body, _path(detail, body))
        try:
            return kind.model_validate(body)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)
    raise _refusal(details[:MOST_DETAILS], body, kind)


def _path(detail: ErrorDetails, body: Any) -> list[str | int]:
    """The path of an error in `body`. pydantic's own path also has the names of the alternatives that it tried."""
    path: list[str | int] = []
    for step in detail["loc"]:
        is_key = isinstance(body, dict) and step in body
        is_index = isinstance(body, list) and isinstance(step, int) and step < len(body)
        if is_key or is_index:
            path.append(step)
            body = body[step]
    if detail["type"] == "missing":
        path.append(detail["loc"][-1])
    return path


def _remove(body: Any, path: Sequence[str | int]) -> None:
    for step in path[:-1]:
        body = body[step]
    body.pop(path[-1], None)


def _refusal(details: list[ErrorDetails], body: Any, kind: type[Body]) -> ApiError:
    # Of the alternatives that were tried, the one that went farthest is what was meant.
    farthest = max(details, key=lambda detail: len(_path(detail, body)))
    first = _path(farthest, body)
    messages = dict.fromkeys(detail["msg"] for detail in details if _path(detail, body) == first)
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first).removeprefix(".")
    if farthest["type"] == "extra_forbidden":
        near = nearest(str(first[-1]), kind.model_fields) if len(first) == 1 else None
        why = f"did you mean {near!r}?" if near else "a server started with --lenient ignores it"
        return ApiError(400, f"unknown field {param!r}; {why}", param=param, code="unknown_field")
    why = " or ".join(message[:1].lower() + message[1:].removeprefix("alue error, ") for message in messages)
    return ApiError(400, f"{param}: {why}" if param else why, param=param or None)


class StreamOptions(Body):
    include_usage: bool | None = None


class _Model(Body):
    model: str | None = Field(None, description="A name of /v1/models; the base model if not given.")


class _Ignored(Body):
    """Fields that change nothing here."""

    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class SamplingFields(_Model, _Ignored):
    """The fields that completions and chats have in common."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1 keeps all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=MAX_LOGIT_BIAS)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=2**31)
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=MAX_STOPS)]
        | None
    ) = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def _kind_of_prompt(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, list):
        return "lists"
    if isinstance(value, list) and isinstance(first, int) and not isinstance(first, bool):
        return "ids"
    return "texts" if isinstance(value, list) else "text"


Prompt: TypeAlias = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[Annotated[list[str], Field(min_length=1, fail_fast=True)], Tag("texts")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[Annotated[list[TokenIds], Field(min_length=1, fail_fast=True)], Tag("lists")],
    Discriminator(_kind_of_prompt),
]
"""A text, texts, token ids, or lists of token ids."""


class CompletionRequest(SamplingFields):
    prompt: Prompt
    max_tokens: int | None = Field(None, ge=0, lt=2**31, description="16 if not given.")
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: int | None = Field(None, ge=1, description="Only the value of n.")


class TextPart(Body):
    type: Literal["text"]
    text: str


Content: TypeAlias = str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]


class InstructionMessage(Body):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(Body):
    role: Literal["user"]
    content: Content
    name: str | None = None


class FunctionCall(Body):
    name: str
    arguments: str = Field(description="JSON.")


class ToolCall(Body):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(Body):
    """An earlier answer, also as OpenAI's clients send one back, with fields that are null."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class ToolMessage(Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: str
    name: str | None = None


Message: TypeAlias = Annotated[
    InstructionMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]
Messages: TypeAlias = Annotated[list[Message], Field(min_length=1, fail_fast=True)]


class FunctionDefinition(Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition


class _FunctionName(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: _FunctionName


class _TextFormat(Body):
    type: Literal["text", "json_object"]


class JsonSchema(Body):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class _SchemaFormat(Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat: TypeAlias = Annotated[_TextFormat | _SchemaFormat, Field(discriminator="type")]


class ChatRequest(SamplingFields):
    messages: Messages
    max_tokens: int | None = Field(
        None, ge=1, lt=2**31, description="All that the model's context leaves if not given."
    )
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31, description="Newer name of max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


class EmbeddingRequest(_Model, _Ignored):
    input: Prompt
    encoding_format: Literal["float", "base64"] | None = None


class TokenizeRequest(_Model):
    """vLLM's: a text, or messages."""

    prompt: str | None = None
    messages: Messages | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class DetokenizeRequest(_Model):
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class PredictionRequest(_Model, _Ignored):
    rows: dict[str, Any] | Annotated[list[dict[str, Any]], Field(min_length=1, fail_fast=True)] = Field(
        description="A row, or several, as `aifx predict` reads them from JSON Lines."
    )


class FileRequest(_Model, _Ignored):
    image: str = Field(description="The base64 of a file.", min_length=1)
