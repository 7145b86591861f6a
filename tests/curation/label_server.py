"""A server of the label page in a thread."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import httpx

from aifx.core.web.server import bind, url_of
from aifx.curation.labels.app import Labelling, open_server, token_of
from aifx.curation.labels.rows import LabelQueue, queued_rows, sample_rows, view_of
from aifx.curation.labels.store import open_log
from aifx.data.versions.catalog import Catalog
from aifx.data.versions.manifest import Version


class ServedLabels:
    """The page of a version, whose rows come in their order unless there is a sample."""

    def __init__(
        self,
        catalog: Catalog,
        version: Version,
        labels: Sequence[str] = ("good", "bad"),
        *,
        pair: str | None = None,
        overlap: int = 1,
        port: int = 0,
        labeller: str = "",
        rows: Sequence[str] | None = None,
    ) -> None:
        self._opened = ExitStack()
        self.log = self._opened.enter_context(open_log(catalog, version.manifest.name, "label"))
        view = view_of(version, "label", pair)
        chosen = rows or sorted(sample_rows(version, "label", 10_000, 0, relabel=True), key=lambda row: int(row[2:]))
        self.queue = LabelQueue(queued_rows(version, view, chosen), self.log.state, overlap)
        self.labelling = Labelling(version, view, "label", tuple(labels), self.queue, self.log, labeller)
        self.bound: socket.socket = bind("127.0.0.1", port, port_hint="")
        self.url, self.port, self.token = url_of(self.bound), self.bound.getsockname()[1], token_of(self.log.path)
        self.page = f"{self.url}/#token={self.token}"
        headers = {"Authorization": f"Bearer {self.token}"}
        self.http = httpx.Client(base_url=self.url, timeout=120, trust_env=False, headers=headers)
        self._server = open_server(self.labelling, self.bound, self.token)
        self._thread = self._server.start()

    def label(self, row: int | str, label: str | None = "good", labeller: str = "ann", **more: Any) -> httpx.Response:
        row = f"f-{row}" if isinstance(row, int) else row
        body = {"id": f"{row}{labeller}{label}{more}", "row": row, "label": label, "labeller": labeller, **more}
        return self.http.post("/labels", json=body)

    def rows(self, labeller: str = "ann", count: int = 10) -> list[str]:
        found = self.http.get("/rows", params={"labeller": labeller, "count": count}).json()
        return [row["row"] for row in found["rows"]]

    def close(self) -> None:
        self._server.stop()
        self._thread.join(120)
        assert not self._thread.is_alive()
        self.http.close()
        self.bound.close()
        self._opened.close()
