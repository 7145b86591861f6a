"""The page at `/`, which shows `/status` live and tries the model. The HTML itself has no data of the model."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import Response

from aifx.core.pages import render
from aifx.serving.http.answers import json_response
from aifx.serving.http.state import ServerState


async def page(request: Request) -> Response:
    """A page for a browser."""
    text, policy = _page()
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(text, headers=headers, media_type="text/html")


async def status(request: Request) -> Response:
    """The numbers on the page."""
    state: ServerState = request.app.state.server
    return json_response(state.status())


@cache
def _page() -> tuple[str, str]:
    """The page and its Content-Security-Policy, which allows its style, its script and requests to this server."""
    script = (files(__package__) / "pages/server.js").read_text(encoding="utf-8")
    text = render(
        __package__ or "",
        "server.html",
        title="aifx serve",
        command="aifx serve",
        script=Markup(script),  # our own
        script_digest=_digest(script),
    )
    found = re.search("<style>(.*?)</style>", text, re.DOTALL)
    assert found is not None
    policy = (
        f"default-src 'none'; style-src '{_digest(found[1])}'; script-src '{_digest(script)}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
