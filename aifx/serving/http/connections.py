"""Connections with limits: of headers, of the time for a request, of the patience with a reader, of their number."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 64 << 10
"""Most bytes of a request's first line and headers."""

MAX_CONNECTIONS = 4096
"""With more, or as many as the process may open files, the one that has been idle longest is closed."""


class Connection(H11Protocol):
    """A connection that does not wait for ever.

    It is aborted if for `idle_s` a request's headers or body do not arrive, or if its reader takes too little for as
    long. Between two requests, uvicorn's own limit closes it.
    """

    idle_s = 30.0
    max_connections = MAX_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._since = time.monotonic()
        self._is_stalled = False
        if len(self.connections) > self.max_connections:
            idle = [c for c in self.connections if isinstance(c, Connection) and c is not self and c._is_idle]
            min(idle, key=lambda c: c._since, default=self).transport.abort()
        self._expect(self.idle_s)

    def data_received(self, data: bytes) -> None:
        was_complete = self._is_idle
        super().data_received(data)
        if self._is_waiting_for_us:
            if not self._is_stalled:
                self._expect(None)
        elif was_complete or (self.cycle is not None and self.cycle.more_body):
            self._expect(self.idle_s)  # for headers from their first byte, for a body from its last piece

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._is_stalled = True
        self._expect(self.idle_s)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._is_stalled = False
        self._expect(None)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or has headers without end, as all routes refuse."""
        error = {"message": msg, "type": "invalid_request_error", "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            head = h11.Response(status_code=400, headers=headers, reason="Bad Request")
            parts = (head, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(part) or b"" for part in parts))
        except h11.LocalProtocolError:  # an answer has begun
            pass
        self.transport.close()

    @property
    def _is_idle(self) -> bool:
        """Whether no part of a request has come that was not answered."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.conn.trailing_data[0]

    @property
    def _is_waiting_for_us(self) -> bool:
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _expect(self, limit_s: float | None) -> None:
        """Abort the connection after `limit_s`, unless this is called again."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(limit_s, self.transport.abort) if limit_s is not None else None


def connection_class(idle_s: float) -> type[Connection]:
    """Connections with this limit, as many as the process may open files."""
    fields: dict[str, Any] = {"idle_s": idle_s, "max_connections": min(MAX_CONNECTIONS, _files() - 128)}
    return type("LimitedConnection", (Connection,), fields)


def _files() -> int:
    """Files that this process may open: as many as the system lets it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MAX_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, 2 * MAX_CONNECTIONS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return soft
        return wanted
    return 2 * MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft
