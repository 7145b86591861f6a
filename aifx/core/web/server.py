"""The life of a server: from a bound port, with uvicorn on it, to its end by a signal."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from aifx.core.errors import EnvironmentFault
from aifx.core.lifecycle import exit_code_of, exit_now, exit_soon, on_signals
from aifx.core.logs import at_level
from aifx.core.web.connections import Connection, Limits, connection_class
from aifx.core.web.traffic import Traffic

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


logger = logging.getLogger(__name__)

POLL_S = 0.02


@dataclass(frozen=True)
class Ending:
    """The end of a server: the signal that stopped it, and the number of requests that were cut."""

    signum: int | None
    cut: int

    def check(self) -> None:
        """Raise KeyboardInterrupt after Ctrl-C."""
        if self.signum == signal.SIGINT:
            raise KeyboardInterrupt


class HttpServer:
    """Answers requests at a socket until a signal, or `stop`."""

    def __init__(
        self,
        app: Starlette,
        bound: socket.socket,
        *,
        limits: Limits = Limits(),  # noqa: B008  it is frozen
        tls: ssl.SSLContext | None = None,
        drain_s: float = LAST_ANSWERS_S,
    ) -> None:
        """
        Args:
            app: of `app.make_app`.
            bound: of `sockets.bind`.
            tls: the certificate; None without TLS.
            drain_s: how long requests that run have to end after a signal.
        """
        self._traffic: Traffic = app.state.traffic
        self._socket = bound
        self.drain_s = drain_s
        self.connection_class = connection_class(limits, tls, app.state.policy.error)
        self._uvicorn = uvicorn_server(app, self.connection_class)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signum: int | None = None
        self._stopped = asyncio.Event()
        self._thread: threading.Thread | None = None
        self._ending: Ending | None = None
        self._failure: Exception | None = None

    @property
    def connections(self) -> Collection[object]:
        """The connections that are open."""
        return self._uvicorn.server_state.connections

    def run(self, on_listening: Callable[[], None] = lambda: None) -> Ending:
        """Serve. In the main thread, SIGTERM and Ctrl-C stop it; a second signal ends the process at once."""
        with quiet_uvicorn():
            try:
                return asyncio.run(self._serve(on_listening))
            finally:
                self._traffic.close()

    def start(self) -> threading.Thread:
        """Serve in a thread of its own until `stop`. Returns when it listens, and raises why it cannot."""
        ready = threading.Event()  # it listens, or has failed

        def run() -> None:
            try:
                self._ending = self.run(ready.set)
            except Exception as error:
                if ready.is_set():
                    logger.exception("the server has failed")
                self._failure = error
            finally:
                ready.set()

        self._thread = threading.Thread(target=run, name="http", daemon=True)
        self._thread.start()
        ready.wait()
        if self._failure is not None:
            raise self._failure
        return self._thread

    def wait(self, on_ready: Callable[[], None] = lambda: None) -> Ending:
        """Wait for the end of a server that `start` has started. Raises what ended it.

        In the main thread, SIGTERM and Ctrl-C stop it; a second signal ends the process at once.

        Args:
            on_ready: called as soon as signals do so.
        """
        assert self._thread is not None
        with on_signals(self._signal):
            on_ready()
            self._thread.join()
        if self._failure is not None:
            raise self._failure
        assert self._ending is not None
        return self._ending

    def stop(self) -> None:
        """Stop the server as SIGTERM does. From any thread."""
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._stopped.set)

    async def _serve(self, on_listening: Callable[[], None]) -> Ending:
        self._loop = asyncio.get_running_loop()
        with on_signals(self._signal):
            return await self._until_stopped(on_listening)

    async def _until_stopped(self, on_listening: Callable[[], None]) -> Ending:
        assert self._loop is not None
        serving = self._loop.create_task(self._uvicorn.serve([self._socket]))
        stopped = self._loop.create_task(self._stopped.wait())
        while not self._uvicorn.started and not serving.done():
            await asyncio.sleep(POLL_S / 4)
        if serving.done():
            await self._end_of(serving)
        on_listening()
        await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        cut = await self._drain()
        self._uvicorn.end()
        await serving
        return Ending(self._signum, cut)

    async def _end_of(self, serving: asyncio.Task[None]) -> None:
        """Wait for a server that ended by itself. Raises EnvironmentFault if another process has taken the port."""
        try:
            await serving
        except OSError as error:
            host, port = self._socket.getsockname()[:2]
            what = f"cannot listen at {host}:{port}"
            raise EnvironmentFault(what, error.strerror or str(error), "choose another port") from None

    async def _drain(self) -> int:
        """Take no more requests, and wait for those that run. Returns how many were cut."""
        traffic, limit_s = self._traffic, self.drain_s
        traffic.drain()
        if traffic.in_flight:
            logger.info(f"finishing {traffic.in_flight} requests, for {limit_s:g} s at most")
        end = asyncio.get_running_loop().time() + limit_s
        while traffic.in_flight and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(POLL_S)
        cut = traffic.in_flight
        await asyncio.to_thread(traffic.stop)
        return cut

    def _signal(self, number: int) -> None:
        """Act on a signal, in a thread: the event loop may be busy."""
        if self._signum is not None:
            exit_soon(exit_code_of(number))
            logger.warning("stopped at once by a second signal")
            exit_now(exit_code_of(number))
        self._signum = number
        self.stop()
