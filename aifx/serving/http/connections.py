"""Connections with limits: of headers, of the time for a request, of the patience with a reader, of their number."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 64 << 10
"""Most bytes of a request's first line and headers."""

PROGRESS_BYTES = 64 << 10
"""Of a request that is incomplete: it is idle until as many more have come."""

MAX_DISCARDED_BYTES = 64 << 20
"""Of a request that is refused before all of it has come: most clients send it whole before they read the answer."""

MAX_CONNECTIONS = 4096
"""With more, or as many as the process may open files, the one that has been idle longest is closed."""


class _Parser(h11.Connection):
    """Also refuses headers that are too large if all of them come at once."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            headers = sum(len(name) + len(value) + len(":\r\n") for name, value in event.headers)
            size = len(event.method) + len(event.target) + headers
            if size > MAX_HEADER_BYTES:
                raise h11.RemoteProtocolError("the headers are too large", error_status_hint=431)
        return event


class Connection(H11Protocol):
    """A connection that does not wait for ever.

    It is aborted if for `idle_s` no PROGRESS_BYTES of a request and not its end arrive, or if its reader takes too
    little for as long. Between two requests, uvicorn's own limit closes it.
    """

    idle_s = 30.0
    max_connections = MAX_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Parser(h11.SERVER, MAX_HEADER_BYTES)
        self._timer: asyncio.TimerHandle | None = None
        self._since = time.monotonic()
        self._received = 0  # bytes of an incomplete request since the limit began
        self._left: int | None = None  # bytes that are still discarded after a refusal
        self._is_stalled = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            found = [c for c in self.connections if isinstance(c, Connection) and not c.transport.is_closing()]
            idle = (c for c in found if c is not self and not c._is_waiting_for_us)
            if len(found) > self.max_connections:
                min(idle, key=lambda c: c._since, default=self).transport.abort()
        self._await_request()

    def data_received(self, data: bytes) -> None:
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self.transport.abort()
            return
        is_new = self._is_between_requests
        super().data_received(data)
        self._received += len(data)
        if self._is_waiting_for_us:
            if not self._is_stalled:
                self._expect(None)
        elif is_new or self._received >= PROGRESS_BYTES:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._since = time.monotonic()
        super().on_response_complete()
        if not (self._is_between_requests or self._is_waiting_for_us):  # a part of the next request came early
            self._await_request()

    def pause_writing(self) -> None:
        self._is_stalled = True
        self._expect(self.idle_s)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._is_stalled = False
        self._expect(None if self._is_waiting_for_us else self.idle_s)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or has headers without end, as all routes refuse."""
        status, reason, error = 400, "Bad Request", sys.exception()
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            status, reason = 431, "Request Header Fields Too Large"
            msg = f"the request's first line and headers have more than {MAX_HEADER_BYTES} bytes"
        found = {"message": msg, "type": "invalid_request_error", "param": None, "code": None}
        body = json.dumps({"error": found}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        try:
            head = h11.Response(status_code=status, headers=headers, reason=reason)
            parts = (head, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(part) or b"" for part in parts))
        except h11.LocalProtocolError:  # an answer has begun
            self.transport.close()
            return
        # A connection that is closed before all has been read is reset, and the client loses the answer.
        self._left = MAX_DISCARDED_BYTES
        self.transport.write_eof()
        self.flow.resume_reading()
        self._expect(self.idle_s)

    @property
    def _is_between_requests(self) -> bool:
        """Whether no part of a request has come that was not answered."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.conn.trailing_data[0]

    @property
    def _is_waiting_for_us(self) -> bool:
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def _await_request(self) -> None:
        """Abort the connection if for `idle_s` no more of a request comes."""
        self._since, self._received = time.monotonic(), 0
        self._expect(self.idle_s)

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
