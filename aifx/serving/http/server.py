"""A server's life: from a bound port to its end by a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import uvicorn

from aifx.core.addresses import is_loopback
from aifx.core.errors import AifxError, EnvironmentFault, ExitCode, UsageError
from aifx.serving.http.app import make_app
from aifx.serving.http.connections import MAX_HEADER_BYTES, connection_class
from aifx.serving.http.state import ServerState

logger = logging.getLogger(__name__)

KEY_VARIABLE = "AIFX_SERVE__API_KEY"

POLL_S = 0.02
LAST_ANSWERS_S = 2.0
"""How long answers that were cut have to reach their clients."""

BACKLOG = 2048


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


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, which does not listen yet. Raises EnvironmentFault."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small writes at once (TCP_NODELAY) only if the socket names its protocol; otherwise a token of a
    # reused connection waits 40 ms for the client's acknowledgement.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, UnicodeError) as error:  # UnicodeError: of a name that cannot be one
        bound.close()
        why = getattr(error, "strerror", None) or str(error)
        raise EnvironmentFault(f"cannot listen at {host}:{port}", why, "aifx serve --port 0") from None
    return bound


def url_of(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class HttpServer:
    """Answers requests at a socket until a signal, or `stop`."""

    def __init__(self, state: ServerState, bound: socket.socket) -> None:
        self._state, self._socket = state, bound
        self.settings = settings = state.settings
        self.connection_class = connection_class(settings.idle_s)
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                make_app(state),
                http=self.connection_class,
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=BACKLOG,
                timeout_keep_alive=settings.idle_s,  # type: ignore[arg-type]  # it goes to call_later
                timeout_graceful_shutdown=LAST_ANSWERS_S,  # type: ignore[arg-type]  # and this to wait_for
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            )
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signum: int | None = None
        self._stopped = asyncio.Event()

    @property
    def connections(self) -> Collection[object]:
        """The connections that are open."""
        return self._uvicorn.server_state.connections

    def run(self, on_listening: Callable[[], None] = lambda: None) -> Ending:
        """Serve. In the main thread, SIGTERM and Ctrl-C stop it; a second signal ends the process at once."""
        with _quiet_uvicorn():
            try:
                return asyncio.run(self._serve(on_listening))
            finally:
                self._state.log.close()
                if self._state.tracer is not None:
                    self._state.tracer.close()

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


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to us."""
        yield


@contextlib.contextmanager
def _quiet_uvicorn() -> Iterator[None]:
    """uvicorn reports each refused connection and each start; we log requests and failures ourselves."""
    theirs = logging.getLogger("uvicorn.error")
    before = theirs.level
    theirs.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        theirs.setLevel(before)
