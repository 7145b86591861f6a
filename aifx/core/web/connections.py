"""Connections with limits: of headers, of the time for a request and for reading an answer, of their number."""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from aifx.core.web.policy import WebError, client_network

MAX_HEADER_BYTES = 64 << 10
"""Most bytes of a request's first line and headers."""

PROGRESS_BYTES = 64 << 10
"""Bytes of progress: an incomplete request is idle until as many more of it have come."""

MAX_DISCARDED_BYTES = 64 << 20
"""Most bytes that are read of a refused request: most clients send it whole before they read the answer."""

MAX_CONNECTIONS = 4096


@dataclass(frozen=True)
class Limits:
    """Times that a connection waits for its client, and numbers of connections.

    Attributes:
        idle_s: between two requests.
        receive_s: for `progress_bytes` more of a request that is incomplete, or its end; `idle_s` if None.
        send_s: for a client that reads nothing; `idle_s` if None.
        progress_bytes: infinite if a whole request has one deadline, however its bytes come.
        max_connections: beyond them, the one that has waited longest for its client is closed, of the client with most.
        max_per_client: the same for the connections of one client.
    """

    idle_s: float = 30.0
    receive_s: float | None = None
    send_s: float | None = None
    progress_bytes: float = PROGRESS_BYTES
    max_connections: int = MAX_CONNECTIONS
    max_per_client: float = math.inf


SCRAPE_LIMITS = Limits(receive_s=5.0, send_s=10.0, progress_bytes=math.inf, max_connections=64, max_per_client=16)
"""Limits of servers whose clients ask for a document now and then: slow ones, or many, keep nobody from an answer."""


class _Parser(h11.Connection):
    """A parser that also refuses headers that are too large if all of them come at once."""

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

    It is aborted if an incomplete request, or a reader, makes no progress within the limits. Between two requests,
    uvicorn's own limit closes it. A TLS handshake is a part of the first request.

    Attributes:
        tls: the certificate; None without TLS.
        error: failures of the server.
    """

    idle_s = 30.0
    receive_s: float | None = None
    send_s: float | None = None
    progress_bytes: float = PROGRESS_BYTES
    max_connections = MAX_CONNECTIONS
    max_per_client = math.inf
    tls: ssl.SSLContext | None = None
    error: type[WebError] = WebError

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Parser(h11.SERVER, MAX_HEADER_BYTES)
        self._timer: asyncio.TimerHandle | None = None
        self._since = time.monotonic()
        self._received = 0  # bytes of an incomplete request since the limit began
        self._left: int | None = None  # bytes that are still discarded after a refusal
        self._is_stalled = False
        self._network = ""
        self._handshake: asyncio.Task[None] | None = None
        self._early = b""  # came with the end of the handshake

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._network = client_network(self.client[0]) if self.client else ""
        self._make_room()
        self._await_request()
        if self.tls is not None:
            transport.pause_reading()
            self._handshake = self.loop.create_task(self._shake_hands(transport, self.tls))

    async def _shake_hands(self, plain: asyncio.Transport, tls: ssl.SSLContext) -> None:
        if plain.is_closing():  # it was refused: asyncio would wait for its handshake for ever
            return
        encrypted = None
        with contextlib.suppress(OSError):  # a client that does not trust us, or speaks no TLS
            encrypted = await self.loop.start_tls(plain, self, tls, server_side=True)
        self._handshake = None
        if encrypted is None:
            self.connection_lost(None)
            return
        super().connection_made(encrypted)
        early, self._early = self._early, b""
        if early:
            self.data_received(early)

    def _make_room(self) -> None:
        """Close the connection that has waited longest for its client, if this client or all have too many."""
        if len(self.connections) <= min(self.max_connections, self.max_per_client):
            return
        found = [one for one in self.connections if isinstance(one, Connection)]
        counts = Counter(one._network for one in found)
        crowd = self._network
        if counts[crowd] <= self.max_per_client:
            if len(found) <= self.max_connections:
                return
            crowd = counts.most_common(1)[0][0]
        waiting = (one for one in found if one is not self and one._network == crowd and not one._is_busy)
        oldest = min(waiting, key=lambda one: one._since, default=self)
        self.connections.discard(oldest)
        oldest.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._handshake is not None:
            self._early += data
            return
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
        elif is_new or self._received >= self.progress_bytes:
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._since = time.monotonic()
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect(self._send_s)  # its client has not read all yet
        elif not (self._is_between_requests or self._is_waiting_for_us):  # a part of the next request came early
            self._await_request()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._expect(self._send_s)

    def pause_writing(self) -> None:
        self._is_stalled, self._since = True, time.monotonic()
        self._expect(self._send_s)
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
        body = self.error(status, msg).body()
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
        if self.transport.can_write_eof():  # TLS cannot
            self.transport.write_eof()
        self.flow.resume_reading()
        self._expect(self._send_s)

    @property
    def _is_between_requests(self) -> bool:
        """Whether no part of a request has come that was not answered."""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and not self.conn.trailing_data[0]

    @property
    def _is_waiting_for_us(self) -> bool:
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    @property
    def _is_busy(self) -> bool:
        """Whether its client waits for us, not we for it."""
        return self._is_waiting_for_us and not self._is_stalled

    @property
    def _send_s(self) -> float:
        return self.idle_s if self.send_s is None else self.send_s

    def _await_request(self) -> None:
        """Abort the connection if for `receive_s` no more of a request comes."""
        self._since, self._received = time.monotonic(), 0
        self._expect(self.idle_s if self.receive_s is None else self.receive_s)

    def _expect(self, limit_s: float | None) -> None:
        """Abort the connection after `limit_s`, unless this is called again."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(limit_s, self._abort) if limit_s is not None else None

    def _abort(self) -> None:
        self.transport.abort()


def connection_class(limits: Limits, tls: ssl.SSLContext | None, error: type[WebError]) -> type[Connection]:
    """Connections with these limits, as many as the process may open files."""
    most = min(limits.max_connections, _files(2 * limits.max_connections + 256) - 128)
    fields: dict[str, Any] = {**vars(limits), "max_connections": most, "tls": tls, "error": error}
    return type("LimitedConnection", (Connection,), fields)


def _files(wanted: int) -> int:
    """Files that this process may open: `wanted`, or as many as the system lets it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted
