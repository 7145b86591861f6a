"""The processes of a job, connected by TCP: messages between them, and a watch over each of them. Imports no jax.

Process 0 listens, the others connect to it. A thread in each process sends and receives. It hears at once when the
process at the other end of a connection is killed, and after `Limits.silence_s` when that process is stopped or its
machine is gone. Each process also sends how far it has come, so that process 0 finds one that is stuck.

What one process learns, process 0 passes on to the others, and each of them calls its `on_loss`.
"""

from __future__ import annotations

import itertools
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from aifx.core.errors import AifxError, ExitCode
from aifx.parallel.connections import GOODBYE_S, Connection, Message, accept_all, close_all, reach_first
from aifx.parallel.group import Group, Limits, PeerLost, Progress, find_stuck
from aifx.parallel.processes import AGAIN, Membership

LOSS_S = 2.0
HOLD_S = 300.0
"""Limit of the wait for what process 0 finds out about a failure."""

LAST_MESSAGE_S = 10.0
"""Limit of a process that ends and waits for its thread to send the last message, usually for milliseconds."""

OVER = "over"

AWAKE_S = 1.0
"""A thread that slept so much longer than it asked was stopped, with its process."""


class JoinedGroup(Group):
    """A job of several processes. Whatever waits raises `PeerLost` when one of them is gone."""

    def __init__(
        self, me: Membership, address: str, limits: Limits, on_loss: Callable[[PeerLost], None] = lambda _: None
    ) -> None:
        """Wait until all processes are here.

        Args:
            address: of process 0, resolved.
            on_loss: called in the watching thread when another process is gone, for example to end this one.

        Raises EnvironmentFault, ConfigError.
        """
        self.index, self.size = me.process_id, me.num_processes
        self._limits, self._on_loss = limits, on_loss
        self._number = itertools.count()
        self._received: dict[str, dict[int, Any]] = {}
        self._changed = threading.Condition()
        self._orders: SimpleQueue[tuple[list[int], Message]] = SimpleQueue()
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)  # nobody reads once the thread has ended
        self._is_over = False
        self._held: PeerLost | None = None
        connect = accept_all if self.is_first else reach_first
        connections = connect(me, address, limits.connect_s)
        self._peers = {index: _Peer(index, connection) for index, connection in connections.items()}
        self._thread = threading.Thread(target=self._watch, name="aifx-processes", daemon=True)
        self._thread.start()

    def everyone(self) -> dict[int, tuple[str, Progress]]:
        others = {index: (peer.connection.host, peer.progress) for index, peer in list(self._peers.items())}
        return super().everyone() | others

    def gather(self, value: Any) -> list[Any]:
        key = self._next("gather")
        self.progress.advance()  # before the wait: a process that others wait for is behind them
        if not self.is_first:
            self._send({"key": key, "value": value})
            return []
        self.progress.waits = True
        found = self._wait(key, self.size - 1)
        self.progress.waits = False
        return [value, *(found[index] for index in range(1, self.size))]

    def broadcast(self, value: Any = None) -> Any:
        key = self._next("broadcast")
        self.progress.advance()
        if not self.is_first:
            return self._wait(key, 1)[0]
        self._send({"key": key, "value": value})
        return value

    def loss_behind(self, error: BaseException) -> PeerLost | None:
        if isinstance(error, Exception) and not isinstance(error, AifxError):
            with self._changed:
                self._changed.wait_for(lambda: self._loss is not None, min(self._limits.silence_s, LOSS_S))
        return self._loss

    @property
    def _loss(self) -> PeerLost | None:
        return self.error or (None if self.is_first else self._held)

    def fail(self, error: AifxError) -> None:
        self._send({"lost": self._failure(error).document()})
        self._end()

    def hold(self, error: AifxError) -> None:
        self._held = self._failure(error)
        self._send({"lost": self._held.document(), "waits": True})
        if not self.is_first:
            self.await_end()

    def await_end(self) -> None:
        """Wait for what `on_loss` does about a loss, in the watching thread. It ends this process as a rule."""
        self._thread.join(HOLD_S)

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of this process if process 0 is gone: 75, unless process 0 knew of a failure before."""
        return ExitCode.PREEMPTED if self._loss is None else self._loss.exit_code

    def _failure(self, error: AifxError) -> PeerLost:
        what, why = f"process {self.index} on {socket.gethostname()} failed", error.what
        why += f": {error.why}" if error.why else ""
        return PeerLost(what, why, error.hint or f"read the log of process {self.index}", exit_code=error.exit_code)

    def finish(self) -> None:
        if self._is_over:
            return
        self.gather(None)
        if self.is_first:
            self._send({"key": OVER, "value": None})
        else:
            self._wait(OVER, 1)
        self._end()

    def reaches_first(self) -> bool:
        """Whether the connection to process 0 is there; asked by any thread. Process 0 reaches itself."""
        return self.is_first or self._is_over or all(peer.connection.is_open() for peer in self._peers.values())

    def _next(self, kind: str) -> str:
        if self.error is not None:
            raise self.error
        return f"{kind} {next(self._number)}"

    def _send(self, message: Message) -> None:
        """To the other processes from process 0, to process 0 from the others."""
        self._orders.put(([*self._peers], message))
        self._wake()

    def _wait(self, key: str, count: int) -> dict[int, Any]:
        with self._changed:
            self._changed.wait_for(lambda: len(self._received.get(key, ())) >= count or self.error is not None)
            if len(self._received.get(key, ())) < count:
                assert self.error is not None
                raise self.error
            return self._received.pop(key)

    def _end(self) -> None:
        """Send what is left, and watch no longer."""
        self._is_over = True
        self._wake()
        self._thread.join(LAST_MESSAGE_S)

    def _wake(self) -> None:
        with suppress(OSError):
            self._waker.send(b"x")

    def _watch(self) -> None:
        """Send and receive until the job is over or a process is lost."""
        selector = selectors.DefaultSelector()
        selector.register(self._woken, selectors.EVENT_READ)
        for peer in self._peers.values():
            selector.register(peer.connection.socket, selectors.EVENT_READ, peer)
        for peer in list(self._peers.values()):
            if self.error is None:
                self._serve(peer, selector)  # what came right behind the welcome
        awake_at = beat_at = time.monotonic()
        while self._peers and self.error is None:
            now = time.monotonic()
            if now - awake_at > self._limits.beat_s + AWAKE_S:  # this process was stopped itself: it cannot judge yet
                for peer in self._peers.values():
                    peer.received_at = now
            awake_at = now
            if now >= beat_at:
                beat_at = now + self._limits.beat_s
                self._beat(now)
            self._take_orders()
            is_sent = not any(peer.connection.unsent for peer in self._peers.values())
            # `_is_over` first: another thread sets it after it has put its last message among the orders
            if self._is_over and self._orders.empty() and is_sent:
                break
            for peer in self._peers.values():
                events = selectors.EVENT_WRITE if peer.connection.unsent else 0
                selector.modify(peer.connection.socket, selectors.EVENT_READ | events, peer)
            for key, _ in selector.select(max(beat_at - time.monotonic(), 0.0)):
                if key.data is None:
                    self._woken.recv(1 << 12)
                elif self.error is None:
                    self._serve(key.data, selector)
        selector.close()
        self._close()

    def _beat(self, now: float) -> None:
        """Tell the others how far this process is, and look for one that is silent or stuck."""
        for peer in self._peers.values():
            own = self.progress
            peer.connection.put({"position": own.position, "phase": own.phase, "work": own.work})
        for peer in self._peers.values():
            if now - peer.received_at > self._limits.silence_s and not self._is_over and self._held is None:
                why = f"no sign of life for {self._limits.silence_s:g} s: it is stopped, or its machine is gone"
                return self._lose(peer.index, peer.connection.host, why, peer.progress)
        if self.is_first:
            everyone = {0: self.progress} | {index: peer.progress for index, peer in self._peers.items()}
            for index in find_stuck(everyone, now, self._limits.stuck_s):
                host = self._peers[index].connection.host if index else socket.gethostname()
                limit_s = self._limits.stuck_s
                why = f"it has not gone on for {limit_s:g} s (processes.stuck_timeout_s), and others wait for it"
                what = f"process {index} on {host} is stuck in {everyone[index].phase}"
                hint = f"{AGAIN}; if it needs more time: --set processes.stuck_timeout_s={2 * limit_s:g}"
                return self._lose_for(PeerLost(what, why, hint))
        return None

    def _take_orders(self) -> None:
        with suppress(Empty):
            while True:
                to, message = self._orders.get_nowait()
                has_failed = "lost" in message and "waits" not in message
                if has_failed or message.get("key") == OVER:
                    self._is_over = True  # the others close their ends now
                for index in to:
                    if (peer := self._peers.get(index)) is not None:
                        peer.connection.put(message)

    def _serve(self, peer: _Peer, selector: selectors.BaseSelector) -> None:
        """Send what waits for a process, and take what came from it."""
        connection, why = peer.connection, "its connection closed: it was killed, or it crashed"
        with suppress(OSError):  # what it sent before it closed its end is still to be read
            connection.flush()
        try:
            messages = connection.take()
        except OSError as error:
            connection.is_closed, messages = True, []
            why = why if isinstance(error, ConnectionError) else f"its connection broke: {error.strerror or error}"
        for message in messages:
            peer.received_at = time.monotonic()
            if "lost" in message:
                what, why, hint, code = (message["lost"][name] for name in ("what", "why", "hint", "exit_code"))
                lost = PeerLost(what, why, hint, exit_code=ExitCode(code))
                if self.is_first or "waits" not in message:
                    return self._lose_for(lost, holds="waits" in message)
                self._held = self._held or lost
            elif "key" in message:
                if message["key"] == OVER:
                    self._is_over = True  # what follows is no loss
                with self._changed:
                    self._received.setdefault(message["key"], {})[peer.index] = message["value"]
                    self._changed.notify_all()
            else:
                peer.progress.move(message["position"], message["phase"], message["work"])
        if connection.is_closed:
            selector.unregister(connection.socket)
            del self._peers[peer.index]
            if self._held is not None:
                self._lose_for(self._held)
            elif not self._is_over:
                self._lose(peer.index, connection.host, why, peer.progress)
        return None

    def _close(self) -> None:
        close_all([peer.connection for peer in self._peers.values()], GOODBYE_S)
        self._peers.clear()

    def _lose(self, index: int, host: str, why: str, progress: Progress) -> None:
        what = f"process {index} on {host} was lost in {progress.phase}"
        self._lose_for(PeerLost(what, why, AGAIN))

    def _lose_for(self, error: PeerLost, *, holds: bool = False) -> None:
        if self._is_over or (self.is_first and self._held is not None):
            return
        if self.is_first:
            for peer in self._peers.values():
                peer.connection.put({"lost": error.document(), **({"waits": True} if holds else {})})
            if not holds:
                self._close()
        with self._changed:
            self.error = error
            self._changed.notify_all()
        self._on_loss(error)


@dataclass
class _Peer:
    """Another process."""

    index: int
    connection: Connection
    progress: Progress = field(default_factory=Progress)
    received_at: float = field(default_factory=time.monotonic)
