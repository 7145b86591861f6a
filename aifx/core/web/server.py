"""A server's life: from a bound port to its end by a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass

from starlette.applications import Starlette

from aifx.core.errors import EnvironmentFault
from aifx.core.lifecycle import exit_code_of, exit_now, exit_soon, on_signals
from aifx.core.web.connections import Limits, connection_class
from aifx.core.web.sockets import LAST_ANSWERS_S, quiet_uvicorn, uvicorn_server
from aifx.core.web.traffic import Traffic

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
        """As SIGTERM does. From any thread."""
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
