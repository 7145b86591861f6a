"""Ports for servers that a test starts, and perhaps ends and starts again."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """A port of 127.0.0.1 that no other process takes meanwhile, for servers that set SO_REUSEADDR.

    A socket that is bound to it and does not listen holds it. Without a server, connections are refused.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        if sys.platform != "linux":  # elsewhere, a server could not be bound beside the holder
            holder.close()
        yield port
