"""Connections between the processes of a job: process 0 listens, the others connect and say who they are.

Imports no jax.
"""

from __future__ import annotations

import errno
import json
import random
import selectors
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from aifx.core.errors import AifxError, ConfigError, EnvironmentFault
from aifx.core.parsing import parse_json
from aifx.core.version import __version__
from aifx.parallel.processes import PORTS, Membership

MAX_BYTES = 64 << 20
"""Limit of a message."""

CHUNK = 1 << 16
RETRY_S = (0.02, 1.0)  # between attempts to connect: the first pause, which doubles, and the longest
GOODBYE_S = 0.3
"""Limit of a process that ends and waits for the others to read its last message."""

GRACE_S = 5.0
"""Process 0 tells the others that not all have come. They wait so much longer, in case it does not."""

Message = Mapping[str, Any]


class Connection:
    """JSON objects over a socket, one per line, without waiting.

    Attributes:
        host: of the other process, as it names itself.
        unsent: bytes that the socket has not taken yet.
        is_closed: whether the other process has closed its end.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.host = ""
        self.is_closed = False
        self.unsent = bytearray()
        self._unread = bytearray()
        self._put_back: list[dict[str, Any]] = []
        sock.setblocking(False)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def put(self, message: Message) -> None:
        """Send a message, or keep what the socket does not take for `flush`."""
        self.unsent += json.dumps(message).encode() + b"\n"
        with suppress(OSError):  # whoever reads next hears of it
            self.flush()

    def flush(self) -> None:
        """Send what the socket takes. Raises OSError if the connection is broken."""
        with suppress(BlockingIOError):
            while self.unsent:
                del self.unsent[: self.socket.send(self.unsent)]

    def take(self) -> list[dict[str, Any]]:
        """The messages that have come. Raises OSError for nonsense, and for a broken connection if there are none."""
        broken: OSError | None = None
        try:
            while not self.is_closed and len(self._unread) <= MAX_BYTES:
                part = self.socket.recv(CHUNK)
                self._unread += part
                self.is_closed = not part
        except BlockingIOError:
            pass
        except OSError as error:
            broken = error
        *lines, rest = bytes(self._unread).split(b"\n")
        self._unread[:] = rest
        try:
            messages = [parse_json(line) for line in lines]
        except ValueError:
            messages = [None]
        if len(rest) > MAX_BYTES or not all(isinstance(message, dict) for message in messages):
            raise OSError(errno.EPROTO, "it does not speak as aifx does")
        messages = self._put_back + messages
        self._put_back = []
        if broken is not None and not messages:
            raise broken
        return messages  # the next call finds a broken connection closed

    def put_back(self, messages: list[dict[str, Any]]) -> None:
        """Let the next call of `take` return these messages first."""
        self._put_back += messages

    def is_open(self) -> bool:
        """Whether the other end is there; asked by any thread, and takes nothing."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


def free_port(address: str) -> int:
    """A port at a local address where nothing listens now, and which Linux does not assign by itself."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for port in random.SystemRandom().sample(PORTS, 100):
        with suppress(OSError), socket.create_server(("", port), family=family):
            return port
    raise EnvironmentFault("no port is free", f"tried 100 of {PORTS.start} to {PORTS.stop - 1}", "ss -ltn")


def close_all(connections: Iterable[Connection], limit_s: float) -> None:
    """Send what is left, and close each connection once the other end has read it and closed too.

    A socket that is closed before it was read to its end makes the other end lose what it has not read yet.
    """
    deadline = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)
        while selector.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                connection = key.data
                try:
                    connection.flush()
                    if not connection.unsent and key.events & selectors.EVENT_WRITE:
                        connection.socket.shutdown(socket.SHUT_WR)
                        selector.modify(connection.socket, selectors.EVENT_READ, connection)
                    connection.take()
                except OSError:
                    connection.is_closed = True
                if connection.is_closed:
                    selector.unregister(connection.socket)
    for connection in connections:
        connection.socket.close()


def accept_all(me: Membership, address: str, limit_s: float) -> dict[int, Connection]:
    """The connections of all other processes, by index. Raises EnvironmentFault, also in those that have come."""
    deadline = time.monotonic() + limit_s
    found: dict[int, Connection] = {}
    with _listen(me, address) as listener, selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while len(found) < me.num_processes - 1 and (left_s := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left_s):
                if key.data is None:
                    with suppress(OSError):
                        connection = Connection(listener.accept()[0])
                        selector.register(connection.socket, selectors.EVENT_READ, connection)
                else:
                    _greet(key.data, me, found)
                    if key.data.is_closed or key.data in found.values():
                        selector.unregister(key.fileobj)
    missing = [index for index in range(1, me.num_processes) if index not in found]
    if missing:
        names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        what = f"{len(missing)} of {me.num_processes} processes did not come: {names}"
        why = f"process 0 waited {limit_s:g} s at {me.coordinator} ({me.source})"
        error = EnvironmentFault(what, why, "look for them in the scheduler's log, then run it again")
        _refuse(found.values(), error)
        raise error
    for connection in found.values():
        connection.put({"welcome": socket.gethostname()})
    return found


def reach_first(me: Membership, address: str, limit_s: float) -> dict[int, Connection]:
    """The connection to process 0, by its index, once all are there. Raises EnvironmentFault, ConfigError."""
    deadline, pause_s = time.monotonic() + limit_s, RETRY_S[0]
    why = "nobody listens there"
    while (left_s := deadline - time.monotonic()) > 0:
        try:
            with_timeout = socket.create_connection((address, me.port), timeout=min(left_s, GRACE_S))
        except OSError as error:
            why = error.strerror or str(error)
        else:
            connection = Connection(with_timeout)
            connection.put(_hello(me))
            if _await_welcome(connection, deadline + GRACE_S):
                return {0: connection}
            why = "the connection closed before all processes were there"
            connection.socket.close()
        time.sleep(min(pause_s, max(deadline - time.monotonic(), 0)))
        pause_s = min(2 * pause_s, RETRY_S[1])
    what = f"process {me.process_id} did not reach process 0 at {me.coordinator} ({me.source})"
    hint = "start all processes of the job; export AIFX_COORDINATOR=HOST:PORT names another address"
    raise EnvironmentFault(what, f"{why}, for {limit_s:g} s", hint)


def _hello(me: Membership) -> Message:
    who = {"version": __version__, "coordinator": me.coordinator, "num_processes": me.num_processes}
    return {**who, "process": me.process_id, "host": socket.gethostname()}


def _await_welcome(connection: Connection, deadline: float) -> bool:
    """Whether process 0 has welcomed this process. Raises the error for which it refuses it."""
    with selectors.DefaultSelector() as selector:
        selector.register(connection.socket, selectors.EVENT_READ)
        while not connection.is_closed and (left_s := deadline - time.monotonic()) > 0:
            selector.select(left_s)
            try:
                messages = connection.take()
            except OSError:
                return False
            for number, message in enumerate(messages, 1):
                if "refused" in message:
                    raise EnvironmentFault(**message["refused"])
                if "welcome" in message:
                    connection.host = str(message["welcome"])
                    connection.put_back(messages[number:])
                    return True
    return False


def _greet(connection: Connection, me: Membership, found: dict[int, Connection]) -> None:
    """Take a process into the job, or refuse it. A stranger's connection is closed."""
    try:
        hello = next(iter(connection.take()), None)
        if hello is None and not connection.is_closed:
            return
        index, connection.host = int(hello["process"]), str(hello["host"])  # type: ignore[index]
    except (OSError, ValueError, KeyError, TypeError):
        connection.is_closed = True
        connection.socket.close()
        return
    ours = _hello(me)
    for name in ("version", "coordinator", "num_processes"):
        if hello is not None and hello.get(name) != ours[name]:
            why = f"it has {name} = {hello.get(name)}, process 0 has {ours[name]}"
            error: AifxError = ConfigError(f"process {index} on {connection.host} is not of this job", why)
            break
    else:
        if index in found and not found[index].is_open():  # it died, and was started again
            found.pop(index).socket.close()
        if index in found or not 0 < index < me.num_processes:
            what = f"two processes say that they are process {index}"
            why = f"one on {connection.host}, and one on {found[index].host if index in found else ours['host']}"
            error = ConfigError(what, why, "start each with a number of its own")
        else:
            found[index] = connection
            return
    _refuse([connection], error)
    connection.is_closed = True


def _refuse(connections: Iterable[Connection], error: AifxError) -> None:
    document = {"what": error.what, "why": error.why, "hint": error.hint}
    for connection in connections:
        connection.put({"refused": document})
    close_all(list(connections), GOODBYE_S)


def _listen(me: Membership, address: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for place in (address, ""):
        try:
            return socket.create_server((place, me.port), family=family, backlog=max(me.num_processes, 16))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and place:  # behind a service, or a name of several interfaces
                continue
            what = f"process 0 cannot listen at {me.coordinator} ({me.source})"
            hint = "export AIFX_COORDINATOR=HOST:PORT names another port"
            raise EnvironmentFault(what, error.strerror or str(error), hint) from error
    raise AssertionError(address)
