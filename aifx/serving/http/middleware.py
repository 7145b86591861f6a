"""ASGI middleware around all routes: authorization, the access log, and unexpected failures."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aifx.core.addresses import is_loopback, is_other_site, is_own_name
from aifx.serving.http.access_log import AccessRecord
from aifx.serving.http.connections import MAX_DISCARDED_BYTES
from aifx.serving.http.errors import ApiError, ClientGone, stopping
from aifx.serving.http.state import ServerState, digest_of

logger = logging.getLogger(__name__)

OPEN = ("/", "/health", "/ready")
"""Routes that need no key: for probes, and the page, which asks for one."""

QUIET = (*OPEN, "/metrics", "/status")
"""Routes that are asked all the time: only their failures are logged."""

CLIENT_GONE = 499
"""The status in the log of a request whose client went away, as nginx has it."""


class RequestMiddleware:
    """Checks who asks, logs and counts each request, and turns failures into error objects."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app, self._state = app, state
        self._own_names_only = state.api_key is None and is_loopback(state.settings.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, state = time.perf_counter(), self._state
        headers = dict(scope["headers"])
        client = scope["client"][0] if scope.get("client") else ""
        record = AccessRecord(_request_id(headers), client, scope["method"], scope["path"])
        scope["aifx.record"] = record

        body = _Body(receive, headers)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
            elif not message.get("more_body") and body.is_coming:
                await send({**message, "more_body": True})
                state.in_flight -= 1  # it is answered: a server that stops need not wait for it
                try:
                    if not await body.discard(state.settings.request_s):
                        return  # uvicorn closes the connection of an answer without an end
                finally:
                    state.in_flight += 1
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        state.in_flight += 1
        state.unfinished[client] += 1
        try:
            self._admit(scope, headers, client)
            await self._app(scope, body.receive, send_with_id)
        except ApiError as error:
            await error.response()(scope, receive, send_with_id)
        except ClientGone as error:
            record.status, record.error = CLIENT_GONE, str(error)
        except Exception as error:
            logger.exception(f"request {record.id} failed")
            record.error = type(error).__name__
            if record.status:  # the answer has begun; the connection is closed
                raise
            await ApiError(500, f"internal error; the log has it as {record.id}").response()(
                scope, receive, send_with_id
            )
        finally:
            state.in_flight -= 1
            state.unfinished[client] -= 1
            if not state.unfinished[client]:
                del state.unfinished[client]
            record.duration_s = time.perf_counter() - start
            state.metrics.response(record.status)
            if record.path not in QUIET or record.status >= 400:
                state.log.write(record)
                if state.tracer is not None:
                    state.tracer.record(record, headers)

    def _admit(self, scope: Scope, headers: dict[bytes, bytes], client: str) -> None:
        """Raise ApiError for a client that may not ask, or that asks too much or too late."""
        given = {name: value.decode("latin-1") for name, value in headers.items()}
        settings, host = self._state.settings, given.get(b"host", "")
        if self._own_names_only and not is_own_name(host):
            # A web page whose host name was pointed at this machine (DNS rebinding).
            raise ApiError(421, "the Host header must be localhost")
        needs_site = self._state.api_key is None and scope["path"] not in OPEN and "*" not in settings.cors_origins
        origin, site = given.get(b"origin"), given.get(b"sec-fetch-site")
        if needs_site and origin not in settings.cors_origins and is_other_site(origin, site, host):
            # A browser sends some requests of any page, and only keeps the answer from it.
            raise ApiError(403, "the request comes from a page of another site; serve.cors_origins allows sites")
        if self._state.api_key is not None and scope["path"] not in OPEN:
            scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(digest_of(key.strip()), self._state.key_digest):
                why = "the header 'Authorization: Bearer KEY' is missing or wrong"
                raise ApiError(401, why, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        most = settings.max_client_requests
        if most and self._state.unfinished[client] > most and scope["path"] not in OPEN:
            why = f"{most} requests of this address are unfinished, as many as serve.max_client_requests allows"
            raise ApiError(429, why, code="too_many_requests", headers={"Retry-After": "1"})
        if self._state.is_draining and scope["method"] == "POST":
            raise stopping()


class _Body:
    """The body of a request, of which the application may leave a part.

    Attributes:
        is_coming: whether the client sends more of it.
    """

    def __init__(self, receive: Receive, headers: dict[bytes, bytes]) -> None:
        self._receive = receive
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        self.is_coming = has_body and b"expect" not in headers  # it then waits for "100 Continue", or for an answer

    async def receive(self) -> Message:
        message = await self._receive()
        self.is_coming = bool(message.get("more_body"))
        return message

    async def discard(self, limit_s: float) -> bool:
        """Read what the application left. Returns whether it has come to its end, within the limits."""
        left = MAX_DISCARDED_BYTES
        try:
            async with asyncio.timeout(limit_s):
                while self.is_coming and left > 0:
                    left -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            return False
        return not self.is_coming


def _request_id(headers: dict[bytes, bytes]) -> str:
    """The client's own, if it is a plain word."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    return given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else secrets.token_hex(8)
