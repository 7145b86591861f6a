"""Servers that verbs start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from aifx.core.web.server import Ending, HttpServer


class _Listening(Protocol):
    @property
    def url(self) -> str: ...


Listening = TypeVar("Listening", bound=_Listening)


class RunningServer(Generic[Listening]):
    """A server that answers in a thread of its own until `close`, or the end of a `with` block.

    Attributes:
        listening: what it serves, and where.
    """

    def __init__(
        self,
        server: HttpServer,
        listening: Listening,
        held: ExitStack,
        check: Callable[[Ending], None] = lambda ending: ending.check(),
    ) -> None:
        """Start the server.

        Args:
            held: closed when it has ended.
            check: raises what a command says of its end by a signal.
        """
        self.listening = listening
        self._server, self._held, self._check = server, held, check
        with ExitStack() as unless_started:
            unless_started.push(held)
            server.start()
            unless_started.pop_all()

    @property
    def url(self) -> str:
        return self.listening.url

    def wait(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Wait for its end, and stop it at a signal: `HttpServer.wait`. Raises what ended it."""
        with self._held:
            self._check(self._server.wait(on_ready))

    def close(self) -> None:
        """Take no more requests, finish those that run, and wait for the end."""
        self._server.stop()
        with self._held:
            self._server.wait()

    def __enter__(self) -> RunningServer[Listening]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
