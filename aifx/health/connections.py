"""Connections of a server on which slow clients, or many, cannot block others.

A whole request has one deadline, however its bytes arrive. The number of connections is limited per address and in all.
A new connection beyond a limit closes the oldest connection of that address that is not being answered.
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
"""From the connection, or the first byte of another request, to the end of the request, including a TLS handshake."""
IDLE_LIMIT_S = 30.0
"""Between two requests over one connection."""
ANSWER_LIMIT_S = 10.0
"""Time for a client to read an answer."""


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
        """Return whether a new connection may stay. This may close an older one that waits for its client."""
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
        """Keep a connection open in this block, which prepares an answer."""
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
                    # Not the method of an SSL socket: another thread may be reading it. This ends that read.
                    socket.socket.shutdown(request, socket.SHUT_RDWR)
                del self._open[request]
                return True
        return False


class DeadlineReader(io.RawIOBase):
    """The bytes of a client. Raises TimeoutError if a request does not arrive in time."""

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
            raise TimeoutError("the request did not arrive in time")
        self._connection.settimeout(left_s)
        count = self._connection.recv_into(buffer)
        if not self._is_begun:
            self._is_begun = True
            self._deadline = time.monotonic() + REQUEST_LIMIT_S
        return count


class DeadlineWriter(io.BufferedIOBase):
    """The bytes to a client. Raises TimeoutError if it does not read an answer in time."""

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
                raise TimeoutError("the client did not read the answer in time")
            self._connection.settimeout(left_s)
            sent += self._connection.send(view[sent:])
        return sent


def _network(host: str) -> str:
    """Return the address of a client; for IPv6 its /64, because one client can have all of its addresses."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            mapped = address.ipv4_mapped
            return str(mapped or ipaddress.ip_network((address, 64), strict=False))
    return host
