"""The page on which rows are labelled, and the requests that it makes, as an ASGI application.

Everything but the page itself needs the token of the server. The page has it in the fragment of its URL, which
browsers send to nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aifx.core.addresses import is_own_name
from aifx.core.errors import AifxError
from aifx.core.json_values import plain
from aifx.core.pages import PAGE_HEADERS, render_live
from aifx.core.parsing import parse_json
from aifx.curation.labels.contents import Shown, has_row, image_type
from aifx.curation.labels.label_studio import TIE
from aifx.curation.labels.queue import LabelQueue, QueuedRow
from aifx.curation.labels.store import MOST_CHARACTERS, Entry, LabelLog, is_name, now
from aifx.data.versions import Version

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 10
MOST_ROWS = 50
HISTORY = 200
"""Rows that a labeller can go back by."""

SHOWN_IMAGES = ("image/png", "image/jpeg", "image/webp")
"""Media types that browsers show."""


@dataclass(frozen=True)
class Labelling:
    """The rows, labels and log of a server.

    Attributes:
        labels: to choose from; empty for pairs, whose choices are their columns and a tie.
        labeller: the name that the page uses; "" if it asks.
    """

    version: Version
    shown: Shown
    column: str
    labels: tuple[str, ...]
    queue: LabelQueue
    log: LabelLog
    labeller: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        return (*self.shown.columns, TIE) if self.shown.kind == "pairs" else self.labels


def make_app(labelling: Labelling, token: str) -> Starlette:
    """The application.

    Args:
        token: what all requests but that for the page must have.
    """
    routes = [
        Route("/", _page),
        Route("/session", _session),
        Route("/rows", _rows),
        Route("/rows/{row:path}", _row),
        Route("/image/{row:path}", _image),
        Route("/labels", _label, methods=["POST"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(_Guard, token=token)],
        exception_handlers={HTTPException: _http_error, AifxError: _aifx_error},
    )
    app.router.redirect_slashes = False
    app.state.labelling = labelling
    app.state.lock = asyncio.Lock()  # of the queue and the log: another thread appends
    return app


class _Guard:
    """Refuses requests without the token, and those of pages of other sites, even if their name means this machine."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, hashlib.sha256(token.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in message["headers"]}
                headers = ((name.lower().encode(), value.encode()) for name, value in PAGE_HEADERS.items())
                message["headers"] = [*message["headers"], *((name, one) for name, one in headers if name not in names)]
            await send(message)

        refusal = self._refusal(scope)
        await (self._app if refusal is None else refusal)(scope, receive, send_safely)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if not is_own_name(host):
            return _failure(421, "the Host header must be localhost")
        if headers.get(b"origin", f"http://{host}") != f"http://{host}":
            return _failure(403, "the request comes from a page of another site")
        if scope["path"] == "/":
            return None
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode("latin-1", "replace")).digest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._token):
            return _failure(401, "the token is missing or wrong: open the URL that aifx data label serve printed")
        return None


def _failure(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _failure(error.status_code, error.detail)


async def _aifx_error(request: Request, error: Exception) -> Response:
    """A disk that is full or fails: the page keeps its labels and tries again."""
    assert isinstance(error, AifxError)
    logger.error(str(error))
    return _failure(503, f"{error.what}: {error.why}")


async def _page(request: Request) -> Response:
    text, policy = _rendered()
    return Response(text, headers={"Content-Security-Policy": policy}, media_type="text/html")


@cache
def _rendered() -> tuple[str, str]:
    command = "aifx data label serve"
    images = "img-src blob:; "
    return render_live("aifx.curation.labels", "page.html", "page.js", title=command, command=command, allowed=images)


async def _session(request: Request) -> Response:
    """The data set and its labels. `scope` names the label file, below which the page keeps unsent labels."""
    labelling: Labelling = request.app.state.labelling
    manifest = labelling.version.manifest
    return JSONResponse(
        {
            "scope": hashlib.sha256(f"{labelling.log.path}".encode()).hexdigest()[:16],
            "dataset": manifest.reference,
            "column": labelling.column,
            "kind": labelling.shown.kind,
            "labels": labelling.choices,
            "labeller": labelling.labeller,
            "overlap": labelling.queue.overlap,
        }
    )


async def _rows(request: Request) -> Response:
    """The next rows of a labeller, and how far they are."""
    labelling: Labelling = request.app.state.labelling
    labeller = _labeller(request.query_params.get("labeller"))
    count = request.query_params.get("count", "10")
    if not re.fullmatch("[0-9]{1,9}", count) or not 0 < int(count) <= MOST_ROWS:
        raise HTTPException(400, f"count is a number from 1 to {MOST_ROWS}")
    async with request.app.state.lock:
        rows = [_shown_row(labelling, row) for row in labelling.queue.take(labeller, int(count))]
        return JSONResponse({"rows": rows, **_progress(labelling, labeller)})


async def _row(request: Request) -> Response:
    labelling: Labelling = request.app.state.labelling
    return JSONResponse(_shown_row(labelling, _queued(request)))


def _queued(request: Request) -> QueuedRow:
    labelling: Labelling = request.app.state.labelling
    found = labelling.queue.rows.get(request.path_params["row"])
    if found is None:
        raise HTTPException(404, "the queue has no such row")
    return found


def _shown_row(labelling: Labelling, row: QueuedRow) -> dict[str, Any]:
    """A row as the page has it. The texts of a pair are in an order that depends on the row alone."""
    columns: Sequence[str] = labelling.shown.columns
    if labelling.shown.kind == "pairs" and hashlib.sha256(row.row.encode()).digest()[0] % 2:
        columns = columns[::-1]
    context = _texts(row, labelling.shown.context)
    return {"row": row.row, "source": row.source, "fields": _texts(row, columns), "context": context}


def _texts(row: QueuedRow, columns: Sequence[str]) -> list[dict[str, str]]:
    values = ((name, row.content[name]) for name in columns)
    return [{"name": name, "text": "" if value is None else str(value)}
            for name, value in values if not isinstance(value, bytes)]  # fmt: skip


def _progress(labelling: Labelling, labeller: str) -> dict[str, Any]:
    queue = labelling.queue
    return {"progress": plain(queue.progress(labeller)), "history": queue.history(labeller, HISTORY)}


async def _image(request: Request) -> Response:
    """The image of a row, as PNG if browsers do not show its format."""
    labelling: Labelling = request.app.state.labelling
    data = _queued(request).content.get(labelling.shown.columns[0])
    if not isinstance(data, bytes):
        raise HTTPException(404, "the row has no image")
    kind = image_type(data)
    if kind not in SHOWN_IMAGES:
        kind, data = "image/png", await asyncio.to_thread(_as_png, data)
    return Response(data, media_type=kind)


def _as_png(data: bytes) -> bytes:
    from aifx.data.pictures import BadPicture, open_picture

    file = io.BytesIO()
    try:
        with open_picture(io.BytesIO(data)) as picture:
            picture.convert("RGB").save(file, "PNG")
    except BadPicture as e:
        raise HTTPException(415, f"the image cannot be shown: {e}") from None
    return file.getvalue()


async def _label(request: Request) -> Response:
    """Append a line. The answer comes after it is on the disk; the same line again is answered as the first was."""
    labelling: Labelling = request.app.state.labelling
    body = await _body(request)
    row: Any = body.get("row") if isinstance(body, dict) else None
    # A page that was open keeps labels of rows that the server showed before it was started with others.
    is_other = isinstance(row, str) and row not in labelling.queue.rows
    if is_other and not await asyncio.to_thread(has_row, labelling.version, row):
        raise HTTPException(400, f"{labelling.version.reference} has no such row")
    entry = _entry(labelling, body)
    async with request.app.state.lock:
        await asyncio.shield(asyncio.to_thread(labelling.log.append, [entry]))
        return JSONResponse({"saved": entry.id, **_progress(labelling, entry.labeller)})


async def _body(request: Request) -> Any:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise HTTPException(413, f"a label has at most {MAX_BODY_BYTES >> 10} KiB")
    try:
        return parse_json(data)
    except ValueError as e:
        raise HTTPException(400, f"the body is not JSON: {e}") from None


def _entry(labelling: Labelling, body: Any) -> Entry:
    fields = ("id", "row", "action", "label", "labeller", "note")
    if not isinstance(body, dict) or not set(body) <= set(fields):
        raise HTTPException(400, f"a label is an object with {', '.join(fields)}")
    if not isinstance(body.get("row"), str):
        raise HTTPException(400, "there is no such row")
    if body.get("label") is not None and body["label"] not in labelling.choices:
        raise HTTPException(400, f"label is one of {', '.join(labelling.choices)}")
    entry = Entry(
        id=body.get("id", ""),
        row=body["row"],
        action=body.get("action", "label"),
        label=body.get("label"),
        labeller=_labeller(body.get("labeller")),
        time=now(),
        kind=labelling.shown.kind,
        version=labelling.version.reference,
        note=body.get("note", ""),
    )
    try:
        entry.check()
    except ValueError as e:
        raise HTTPException(400, str(e)) from None
    return entry


def _labeller(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise HTTPException(400, "labeller is missing")
    if not is_name(name.strip()):
        raise HTTPException(400, f"labeller has at most {MOST_CHARACTERS} characters, and no control characters")
    return name.strip()
