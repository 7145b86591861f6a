"""The application of a server: its routes behind a policy, the access log, and unexpected failures."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aifx.core.pages import PAGE_HEADERS, render_live
from aifx.core.web.connections import MAX_DISCARDED_BYTES
from aifx.core.web.policy import ClientGone, Policy, WebError, client_network
from aifx.core.web.traffic import Traffic

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

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


def make_app(routes: Sequence[Route], policy: Policy, traffic: Traffic | None = None) -> Starlette:
    """An application for `server.HttpServer`.

    Args:
        routes: their endpoints raise `policy.error` for what they refuse.
        traffic: counts, log and drain of its requests; by default they are only counted.
    """
    traffic = traffic or Traffic()
    middleware = [Middleware(RequestMiddleware, policy=policy, traffic=traffic)]
    if policy.sites:
        headers = ["Authorization", "Content-Type", "X-Request-Id"]
        cors = Middleware(
            CORSMiddleware, allow_origins=policy.sites, allow_methods=["GET", "POST"], allow_headers=headers
        )
        middleware.insert(0, cors)

    async def http_error(request: Request, error: Exception) -> Response:
        """Starlette's own: a path that is not there, or a method that it does not take."""
        assert isinstance(error, HTTPException)
        path, message = request.url.path, error.detail
        if error.status_code == 404:
            message = f"no route {path}"
        elif error.status_code == 405:
            message = f"{path} does not take {request.method}"
        return respond(policy.refusal(error.status_code, message, headers=error.headers))

    app = Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: http_error})
    app.router.redirect_slashes = False
    app.state.policy, app.state.traffic = policy, traffic
    return app


async def read_body(request: Request, most: int, too_large: WebError, limit_s: float) -> bytes:
    """The body as it came, of at most `most` bytes. Raises `too_large`, TimeoutError after `limit_s`, ClientGone."""
    too_large.headers["Connection"] = "close"
    if int(request.headers.get("content-length") or 0) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limit_s):
            async for piece in request.stream():
                body += piece
                if len(body) > most:
                    raise too_large
    except ClientDisconnect:
        raise ClientGone("the client went away") from None
    return bytes(body)


@cache
def _rendered(room: str, template: str, script: str, command: str, allowed: str) -> tuple[str, str]:
    return render_live(room, template, script, title=command, command=command, allowed=allowed)


def page_response(room: str, template: str, script: str, *, command: str, allowed: str = "") -> Response:
    """A page with a script. Its policy allows its style, its script and requests to this server.

    Args:
        room: the package in whose folder `pages` the files are.
        allowed: further directives of the policy, each with a semicolon after it.
    """
    text, policy = _rendered(room, template, script, command, allowed)
    return Response(text, headers={"Content-Security-Policy": policy}, media_type="text/html")


def metrics_endpoint(registry: CollectorRegistry) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers Prometheus."""

    async def metrics(request: Request) -> Response:
        return metrics_response(registry, request)

    return metrics


def metrics_response(registry: CollectorRegistry, request: Request) -> Response:
    """All metrics in the format that Prometheus asks for."""
    body, content_type = exposition(registry, request.headers.get("accept", ""))
    return Response(body, media_type=content_type)


def exposition(registry: Any, accept: str) -> tuple[bytes, str]:
    """All metrics in the format of Prometheus or OpenMetrics that `accept` asks for, and its content type."""
    from prometheus_client.exposition import choose_encoder

    try:
        encode, content_type = choose_encoder(accept)
    except (TypeError, ValueError):  # the client asks for a version that is not a number
        encode, content_type = choose_encoder("")
    return encode(registry), content_type
