"""Sockets, and uvicorn on them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager

import uvicorn
from starlette.types import ASGIApp

from aifx.core.errors import EnvironmentFault
from aifx.core.logs import at_level
from aifx.core.web.connections import Connection

LAST_ANSWERS_S = 2.0
"""Time in which answers that were cut must reach their clients."""

BACKLOG = 2048


def bind(host: str, port: int, *, port_hint: str, host_hint: str = "", listen: bool = False) -> socket.socket:
    """A socket at an address.

    Args:
        port_hint: how to take another port.
        host_hint: how to take another address, if the command has a choice.
        listen: whether clients may connect already, so that another process that wants the port is refused. Otherwise
            they are refused until the server runs.

    Raises EnvironmentFault.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small writes at once (TCP_NODELAY) only if the socket names its protocol; otherwise a token of a
    # reused connection waits 40 ms for the client's acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        if listen:
            bound.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # UnicodeError: of a name that cannot be one
        bound.close()
        why = getattr(error, "strerror", None) or str(error)
        is_port = getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES)
        hint = port_hint if is_port or not host_hint else host_hint
        raise EnvironmentFault(f"cannot listen at {host}:{port}", why, hint) from None
    return bound


def url_of(bound: socket.socket, scheme: str = "http") -> str:
    """The address at which clients on this machine find a server."""
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class UvicornServer(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Take no more connections, and close those that are idle. From the event loop."""
        self.should_exit = True
        self._ended.set()

    async def main_loop(self) -> None:
        """Renew the header `Date` each second until the end. uvicorn's own wakes a busy process ten times a second."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to us."""
        yield


def quiet_uvicorn() -> AbstractContextManager[None]:
    """uvicorn reports each refused connection and each start; we log requests and failures ourselves."""
    return at_level("uvicorn.error", logging.CRITICAL)


def uvicorn_server(app: ASGIApp, connection_class: type[Connection]) -> UvicornServer:
    """A server of an application, with the limits of its connections."""
    return UvicornServer(
        uvicorn.Config(
            app,
            http=connection_class,
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=connection_class.idle_s,  # type: ignore[arg-type]  # it goes to call_later
            timeout_graceful_shutdown=LAST_ANSWERS_S,  # type: ignore[arg-type]  # and this to wait_for
        )
    )
