"""Connections of a server on which slow clients, or many, cannot block others.

A whole request has one deadline, however its bytes arrive. The number of connections is limited per address and in all.
A new connection beyond a limit closes the oldest connection of that address that is not being answered.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

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
    deadline: float  # by time.monotonic


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
            if crowded is not None:
                idle = (r for r, one in self._open.items() if one.address == crowded and one.deadline < math.inf)
                oldest = next(idle, None)
                if oldest is None:
                    return False
                self._close(oldest)
            self._open[request] = _Connection(address, time.monotonic() + REQUEST_LIMIT_S)
        return True

    def remove(self, request: socket.socket) -> None:
        with self._lock:
            self._open.pop(request, None)

    def expect(self, request: socket.socket, limit_s: float) -> None:
        """Close a connection in so many seconds if nothing else is expected until then. While the server prepares an
        answer, the limit is infinite, and no new connection closes this one."""
        with self._lock:
            if request in self._open:
                self._open[request].deadline = time.monotonic() + limit_s

    def close_late(self) -> None:
        """Close the connections whose deadline has passed."""
        with self._lock:
            for request in [r for r, one in self._open.items() if one.deadline < time.monotonic()]:
                self._close(request)

    def _close(self, request: socket.socket) -> None:
        """End the connection's thread, which may be reading from it or writing to it."""
        with suppress(OSError):
            socket.socket.shutdown(request, socket.SHUT_RDWR)  # the method of an SSL socket would change its state
        del self._open[request]


def _network(host: str) -> str:
    """Return the address of a client; for IPv6 its /64, because one client can have all of its addresses."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            mapped = address.ipv4_mapped
            return str(mapped or ipaddress.ip_network((address, 64), strict=False))
    return host
