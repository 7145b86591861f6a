"""Connections of a server that slow or many clients cannot keep from others.

A request has a deadline as a whole, however its bytes come. An address has a limited number of connections, and there
is a limit for all; a new connection beyond these closes the oldest of that address that is not being answered.
"""

from __future__ import annotations

import io
import ipaddress
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

MAX_CONNECTIONS = 64
MAX_PER_ADDRESS = 16
REQUEST_LIMIT_S = 5.0
"""From the connection, or the first byte of a further request, to the end of the request. A TLS handshake included."""
IDLE_LIMIT_S = 30.0
"""Between two requests over one connection."""
ANSWER_LIMIT_S = 10.0
"""For a client to take an answer."""


@dataclass
class _Connection:
    address: str
    is_busy: bool = False


class Connections:
    """The open connections, the oldest first."""

    def __init__(self) -> None:
        self._open: dict[socket.socket, _Connection] = {}
        self._lock = threading.Lock()

    def admit(self, request: socket.socket, host: str) -> bool:
        """Whether there is room for a new connection. An older one that waits for its client may be closed for it."""
        address = _network(host)
        with self._lock:
            counts = Counter(one.address for one in self._open.values())
            crowded = address if counts[address] >= MAX_PER_ADDRESS else None
            if crowded is None and len(self._open) >= MAX_CONNECTIONS:
                crowded = counts.most_common(1)[0][0]
            if crowded is not None and not self._close_oldest(crowded):
                return False
            self._open[request] = _Connection(address)
        return True

    def remove(self, request: socket.socket) -> None:
        with self._lock:
            self._open.pop(request, None)

    @contextmanager
    def busy(self, request: socket.socket) -> Iterator[None]:
        """Keep a connection open in this block, in which an answer is being made."""
        with self._lock:
            found = self._open.get(request)
            if found is not None:
                found.is_busy = True
        try:
            yield
        finally:
            if found is not None:
                found.is_busy = False

    def _close_oldest(self, address: str) -> bool:
        for request, one in self._open.items():
            if one.address == address and not one.is_busy:
                with suppress(OSError):
                    # Not the method of an SSL socket, which another thread may be reading. Its read ends with this.
                    socket.socket.shutdown(request, socket.SHUT_RDWR)
                del self._open[request]
                return True
        return False


class DeadlineReader(io.RawIOBase):
    """What a client sends, as long as each request comes in time. Raises TimeoutError."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._is_first = True
        self._is_begun = False
        self._deadline = 0.0

    def expect_request(self) -> None:
        """Start the clock for the next request."""
        self._deadline = time.monotonic() + (REQUEST_LIMIT_S if self._is_first else IDLE_LIMIT_S)
        self._is_begun, self._is_first = self._is_first, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request did not come in time")
        self._connection.settimeout(left_s)
        count = self._connection.recv_into(buffer)
        if not self._is_begun:
            self._is_begun = True
            self._deadline = time.monotonic() + REQUEST_LIMIT_S
        return count


class DeadlineWriter(io.BufferedIOBase):
    """What a client is sent, as long as it takes each answer in time. Raises TimeoutError."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.expect_answer()

    def expect_answer(self) -> None:
        """Start the clock for the next answer."""
        self._deadline = time.monotonic() + ANSWER_LIMIT_S

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        view, sent = memoryview(data), 0
        while sent < len(view):
            left_s = self._deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("the answer was not taken in time")
            self._connection.settimeout(left_s)
            sent += self._connection.send(view[sent:])
        return sent


def _network(host: str) -> str:
    """The address of a client; of IPv6 the /64, any number of whose addresses one client can have."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            mapped = address.ipv4_mapped
            return str(mapped or ipaddress.ip_network((address, 64), strict=False))
    return host
