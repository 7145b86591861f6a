"""The application of a server: its routes behind a policy, and what servers have in common."""

from __future__ import annotations

import asyncio
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

from aifx.core.pages import render_live
from aifx.core.web.errors import ClientGone, WebError
from aifx.core.web.middleware import RequestMiddleware, respond
from aifx.core.web.policy import Policy
from aifx.core.web.traffic import Traffic

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


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
