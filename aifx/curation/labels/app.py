"""The page on which rows are labelled, the requests that it makes, and its server.

Everything but the page itself needs the token of the server. The page has it in the fragment of its URL, which
browsers send to nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aifx.core.digests import Sha256, sha256_of
from aifx.core.errors import AifxError
from aifx.core.files import make_private, read_file
from aifx.core.parsing import fault_in, parse_json
from aifx.core.project import cache_path
from aifx.core.web.app import make_app, page_response, read_body
from aifx.core.web.policy import Policy, WebError
from aifx.core.web.server import HttpServer
from aifx.curation.labels.rows import LabelQueue, View, VisibleRow, has_row, image_type
from aifx.curation.labels.store import MOST_CHARACTERS, Entry, LabelLog, is_name, now
from aifx.data.versions.manifest import Version

logger = logging.getLogger(__name__)

TIE = "tie"
"""The label of a pair neither of whose texts is better."""

MAX_BODY_BYTES = 64 << 10
BODY_S = 30.0
MOST_ROWS = 50
TOKEN_FILES = "label-tokens"
HISTORY = 200
"""Rows that a labeller can go back by."""

SHOWN_IMAGES = ("image/png", "image/jpeg", "image/webp")
"""Media types that browsers show."""


@dataclass(frozen=True)
class Labelling:
    """The rows, labels and log of a server, and its answers.

    Attributes:
        labels: to choose from; empty for pairs, whose choices are their columns and a tie.
        labeller: the name that the page uses; "" if it asks.
        lock: of the queue and the log: another thread appends.
    """

    version: Version
    view: View
    column: str
    labels: tuple[str, ...]
    queue: LabelQueue
    log: LabelLog
    labeller: str = ""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def choices(self) -> tuple[str, ...]:
        return (*self.view.columns, TIE) if self.view.kind == "pairs" else self.labels

    async def session(self, request: Request) -> Response:
        """The data set and its labels. `scope` names the label file, below which the page keeps unsent labels."""
        return JSONResponse(
            {
                "scope": sha256_of(f"{self.log.path}")[:16],
                "dataset": self.version.reference,
                "column": self.column,
                "kind": self.view.kind,
                "labels": self.choices,
                "labeller": self.labeller,
                "overlap": self.queue.overlap,
            }
        )

    async def rows(self, request: Request) -> Response:
        """The next rows of a labeller, and how far they are."""
        labeller = _labeller(request.query_params.get("labeller"))
        count = request.query_params.get("count", "10")
        if not re.fullmatch("[0-9]{1,9}", count) or not 0 < int(count) <= MOST_ROWS:
            raise WebError(400, f"count is a number from 1 to {MOST_ROWS}")
        async with self.lock:
            rows = [self._displayed(row) for row in self.queue.take(labeller, int(count))]
            return JSONResponse({"rows": rows, **self.queue.progress(labeller, HISTORY)})

    async def row(self, request: Request) -> Response:
        return JSONResponse(self._displayed(self._queued(request)))

    async def image(self, request: Request) -> Response:
        """The image of a row, as PNG if browsers do not show its format."""
        data = self._queued(request).content.get(self.view.columns[0])
        if not isinstance(data, bytes):
            raise WebError(404, "the row has no image")
        kind = image_type(data)
        if kind not in SHOWN_IMAGES:
            kind, data = "image/png", await asyncio.to_thread(_as_png, data)
        return Response(data, media_type=kind)

    async def label(self, request: Request) -> Response:
        """Append a line. The answer comes after it is on the disk; the same line again is answered as the first was."""
        body = await _body(request)
        entry = self._entry(body)
        # A page that was open keeps labels of rows that the server showed before it was started with others.
        if entry.row not in self.queue.rows and not await asyncio.to_thread(has_row, self.version, entry.row):
            raise WebError(400, f"{self.version.reference} has no such row")
        async with self.lock:
            try:
                await asyncio.shield(asyncio.to_thread(self.log.append, [entry]))
            except AifxError as error:  # a disk that is full or fails: the page keeps its labels and tries again
                logger.error(str(error))
                raise WebError(503, f"{error.what}: {error.why}") from None
            return JSONResponse({"saved": entry.id, **self.queue.progress(entry.labeller, HISTORY)})

    def _queued(self, request: Request) -> VisibleRow:
        found = self.queue.rows.get(request.path_params["row"])
        if found is None:
            raise WebError(404, "the queue has no such row")
        return found

    def _displayed(self, row: VisibleRow) -> dict[str, Any]:
        """A row as the page has it. The texts of a pair are in an order that depends on the row alone."""
        columns: Sequence[str] = self.view.columns
        if self.view.kind == "pairs" and Sha256(row.row.encode()).digest()[0] % 2:
            columns = columns[::-1]
        context = _texts(row, self.view.context)
        return {"row": row.row, "source": row.source, "fields": _texts(row, columns), "context": context}

    def _entry(self, body: Any) -> Entry:
        fields = ("id", "row", "action", "label", "labeller", "note")
        if not isinstance(body, dict) or not set(body) <= set(fields):
            raise WebError(400, f"a label is an object with {', '.join(fields)}")
        if body.get("label") is not None and body["label"] not in self.choices:
            raise WebError(400, f"label is one of {', '.join(self.choices)}")
        whose = {"time": now(), "kind": self.view.kind, "version": self.version.manifest.whole_reference}
        given: dict[str, Any] = {"id": "", "row": "", "action": "label", "label": None, **body}
        try:
            return Entry(**given | whose | {"labeller": _labeller(body.get("labeller"))})
        except ValueError as e:
            raise WebError(400, fault_in(e)) from None


def token_of(label_file: Path) -> str:
    """The token of a label file's server: the same each time, so that an open page goes on after a restart."""
    folder = cache_path(TOKEN_FILES)
    make_private(folder)
    path = folder / sha256_of(str(label_file.resolve()))[:32]
    with contextlib.suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(24))
    token = read_file(path).decode().strip()
    if not token:  # a process was killed as it wrote
        path.unlink()
        return token_of(label_file)
    return token


def open_server(labelling: Labelling, bound: socket.socket, token: str) -> HttpServer:
    """The server of the page at a socket, which is not started.

    Args:
        token: what all requests but that for the page must have.
    """
    routes = [
        Route("/", _page),
        Route("/session", labelling.session),
        Route("/rows", labelling.rows),
        Route("/rows/{row:path}", labelling.row),
        Route("/image/{row:path}", labelling.image),
        Route("/labels", labelling.label, methods=["POST"]),
    ]
    hints = {401: "open the URL that aifx data label serve printed"}
    app = make_app(routes, Policy(key=token, open_paths=("/",), hints=hints))
    return HttpServer(app, bound)


async def _page(request: Request) -> Response:
    command, images = "aifx data label serve", "img-src blob:; "
    return page_response("aifx.curation.labels", "page.html", "page.js", command=command, allowed=images)


def _texts(row: VisibleRow, columns: Sequence[str]) -> list[dict[str, str]]:
    values = ((name, row.content[name]) for name in columns)
    return [{"name": name, "text": "" if value is None else str(value)}
            for name, value in values if not isinstance(value, bytes)]  # fmt: skip


def _as_png(data: bytes) -> bytes:
    from aifx.data.readers.pictures import BadPicture, open_picture

    file = io.BytesIO()
    try:
        with open_picture(io.BytesIO(data)) as picture:
            picture.convert("RGB").save(file, "PNG")
    except BadPicture as e:
        raise WebError(415, f"the image cannot be shown: {e}") from None
    return file.getvalue()


async def _body(request: Request) -> Any:
    too_large = WebError(413, f"a label has at most {MAX_BODY_BYTES >> 10} KiB")
    try:
        return parse_json(await read_body(request, MAX_BODY_BYTES, too_large, BODY_S))
    except TimeoutError:
        raise WebError(408, f"the label took longer than {BODY_S:g} s", headers={"Connection": "close"}) from None
    except ValueError as e:
        raise WebError(400, f"the body is not JSON: {e}") from None


def _labeller(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise WebError(400, "labeller is missing")
    if not is_name(name.strip()):
        raise WebError(400, f"labeller has at most {MOST_CHARACTERS} characters, and no control characters")
    return name.strip()
