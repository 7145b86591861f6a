"""The page at `/`, which shows `/status` live and tries the model. The HTML itself has no data of the model."""

from __future__ import annotations

from functools import cache

from starlette.requests import Request
from starlette.responses import Response

from aifx.core.pages import PAGE_HEADERS, render_live
from aifx.serving.http.answers import json_response
from aifx.serving.http.state import ServerState


async def page(request: Request) -> Response:
    """A page for a browser."""
    text, policy = _page()
    return Response(text, headers={"Content-Security-Policy": policy, **PAGE_HEADERS}, media_type="text/html")


async def status(request: Request) -> Response:
    """The numbers on the page."""
    state: ServerState = request.app.state.server
    return json_response(state.status())


@cache
def _page() -> tuple[str, str]:
    """The page and its Content-Security-Policy, which allows its style, its script and requests to this server."""
    return render_live(__package__ or "", "server.html", "server.js", title="aifx serve", command="aifx serve")
