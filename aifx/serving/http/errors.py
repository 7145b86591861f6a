"""Failures as OpenAI's API reports them: a status and an error object."""

from __future__ import annotations

import json
from collections.abc import Mapping

from aifx.core.web.policy import WebError
from aifx.serving.requests import Delta, Draining, QueueFull, RequestError

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
