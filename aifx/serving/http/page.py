"""The page at `/`, which shows `/status` live and tries the model. The HTML itself has no data of the model."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from aifx.core.web.app import page_response
from aifx.serving.http.answers import json_response
from aifx.serving.http.state import ServerState


async def page(request: Request) -> Response:
    """A page for a browser."""
    return page_response(__package__ or "", "server.html", "server.js", command="aifx serve")


async def status(request: Request) -> Response:
    """The numbers on the page."""
    state: ServerState = request.app.state.server
    return json_response(state.status())
