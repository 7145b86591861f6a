"""The server's OpenAPI 3.1 document, from the models of its requests and answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from aifx.core.version import __version__
from aifx.serving.http.documents import Answer, ErrorAnswer
from aifx.serving.http.protocol import Body

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
