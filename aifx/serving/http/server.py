"""A server's life: from a bound port to its end by a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from aifx.core.addresses import is_loopback
from aifx.core.errors import AifxError, ExitCode, UsageError
from aifx.serving.http.app import make_app
from aifx.serving.http.connections import connection_class
from aifx.serving.http.sockets import quiet_uvicorn, uvicorn_server
from aifx.serving.http.state import ServerState

logger = logging.getLogger(__name__)

KEY_VARIABLE = "AIFX_SERVE__API_KEY"

POLL_S = 0.02


@dataclass(frozen=True)
class Ending:
    """How a server ended: by which signal, and how many requests were cut."""

    signum: int | None
    cut: int

    def check(self, drain_s: float) -> None:
        """Raise what the command ends with: nothing after SIGTERM if no request was cut."""
        if self.signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.cut:
            plural = "request was" if self.cut == 1 else "requests were"
            why = f"not finished within serve.drain_s = {drain_s:g} s after SIGTERM"
            hint = "aifx serve --set serve.drain_s=SECONDS"
            raise AifxError(f"{self.cut} {plural} cut", why, hint, exit_code=ExitCode.PREEMPTED)


def read_key(host: str, environ: dict[str, str]) -> str | None:
    """The key that clients must send, from the environment alone. Raises UsageError."""
    key = environ.get(KEY_VARIABLE)
    if key is None:
        if is_loopback(host):
            return None
        why = "other machines can reach this address, and anyone there could ask"
        hint = f"export {KEY_VARIABLE}=$(openssl rand -hex 32)"
        raise UsageError(f"serve.host = {host} requires a key", why, hint)
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        why = "a key is one word of printable ASCII"
        raise UsageError(f"{KEY_VARIABLE} holds no key", why, f"export {KEY_VARIABLE}=$(openssl rand -hex 32)")
    return key


class HttpServer:
    """Answers requests at a socket until a signal, or `stop`."""

    def __init__(self, state: ServerState, bound: socket.socket) -> None:
        self._state, self._socket = state, bound
        self.settings = settings = state.settings
        self.connection_class = connection_class(settings.idle_s)
        self._uvicorn = uvicorn_server(make_app(state), self.connection_class)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signum: int | None = None
        self._stopped = asyncio.Event()

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
                self._state.close()

    def stop(self) -> None:
        """As SIGTERM does. From any thread."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._stopped.set)

    async def _serve(self, on_listening: Callable[[], None]) -> Ending:
        self._loop = asyncio.get_running_loop()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.add_signal_handler(number, partial(self._signal, number))
        serving = self._loop.create_task(self._uvicorn.serve([self._socket]))
        stopped = self._loop.create_task(self._stopped.wait())
        while not self._uvicorn.started and not serving.done():
            await asyncio.sleep(POLL_S / 4)
        on_listening()
        await asyncio.wait((serving, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        cut = await self._drain()
        self._uvicorn.should_exit = True
        await serving
        return Ending(self._signum, cut)

    async def _drain(self) -> int:
        """Take no more requests, and wait for those that run. Returns how many were cut."""
        state = self._state
        state.is_draining = True
        state.engine.drain()
        limit_s = state.settings.drain_s
        if state.in_flight:
            logger.info(f"finishing {state.in_flight} requests, for {limit_s:g} s at most")
        end = asyncio.get_running_loop().time() + limit_s
        while state.in_flight and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(POLL_S)
        cut = state.in_flight
        await asyncio.to_thread(state.engine.stop)
        return cut

    def _signal(self, number: int) -> None:
        if self._signum is not None:
            logger.warning("stopped at once by a second signal")
            os._exit(ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.PREEMPTED)
        self._signum = number
        self._stopped.set()
