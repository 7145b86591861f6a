"""ASGI middleware around all routes: the policy, the access log, and unexpected failures."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aifx.core.addresses import client_network
from aifx.core.pages import PAGE_HEADERS
from aifx.core.web.connections import MAX_DISCARDED_BYTES
from aifx.core.web.errors import ClientGone, WebError
from aifx.core.web.policy import Policy
from aifx.core.web.traffic import Traffic

logger = logging.getLogger(__name__)

CLIENT_GONE = 499
"""The status in the log of a request whose client went away, as nginx has it."""

HEADERS = [(name.lower().encode(), value.encode()) for name, value in PAGE_HEADERS.items()]


class RequestMiddleware:
    """Checks who asks, logs and counts each request, and turns failures into answers."""

    def __init__(self, app: ASGIApp, policy: Policy, traffic: Traffic) -> None:
        self._app, self._policy, self._traffic = app, policy, traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, traffic = time.perf_counter(), self._traffic
        headers = dict(scope["headers"])
        client = scope["client"][0] if scope.get("client") else ""
        network = client_network(client)
        record = traffic.record(_request_id(headers), client, scope["method"], scope["path"])
        scope["aifx.record"] = record

        body = _Body(receive, headers)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                given = message.get("headers", ())
                missing = (header for header in HEADERS if all(header[0] != name for name, _ in given))
                message["headers"] = [*given, *missing, (b"x-request-id", record.id.encode())]
            elif not message.get("more_body") and body.is_coming:
                await send({**message, "more_body": True})
                traffic.in_flight -= 1  # it is answered: a server that stops need not wait for it
                try:
                    if not await body.discard(self._policy.discard_s):
                        return  # uvicorn closes the connection of an answer without an end
                finally:
                    traffic.in_flight += 1
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        traffic.in_flight += 1
        traffic.unfinished[network] += 1
        try:
            self._policy.check(record.method, record.path, scope["headers"], traffic.unfinished[network])
            if traffic.is_draining and record.method == "POST":
                raise self._policy.error.stopping()
            await self._app(scope, body.receive, send_with_id)
        except WebError as error:
            await respond(error)(scope, receive, send_with_id)
        except ClientGone as error:
            record.status, record.error = CLIENT_GONE, str(error)
        except Exception as error:
            logger.exception(f"request {record.id} failed")
            record.error = type(error).__name__
            if record.status:  # the answer has begun; the connection is closed
                raise
            failure = self._policy.error(500, f"internal error; the log has it as {record.id}")
            await respond(failure)(scope, receive, send_with_id)
        finally:
            traffic.in_flight -= 1
            traffic.unfinished[network] -= 1
            if not traffic.unfinished[network]:
                del traffic.unfinished[network]
            record.duration_s = time.perf_counter() - start
            traffic.ended(record, headers)


def respond(error: WebError) -> Response:
    """The answer of a failure."""
    return Response(error.body(), error.status, error.headers, "application/json")


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
