"""Collectives among processes over TCP: they test the hosts' network, without GPUs and without NCCL.

Each process has a connection to each other process. Ranks recognize each other by a word that all were given.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import selectors
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

logger = logging.getLogger(__name__)

Buffer = npt.NDArray[np.uint32]

LENGTH = struct.Struct("!I")
MAX_HELLO = 1 << 20
RETRY_S = 0.05
HELLO_S = 2.0
"""Time for a caller to identify itself."""


class CollectiveError(Exception):
    """Args:
    why: one line that names the rank at fault, if it is known.
    """


@dataclass(frozen=True)
class Place:
    """Attributes:
    rank: the rank of this process.
    size: the number of ranks.
    coordinator: the address at which rank 0 listens.
    word: what all ranks were given; a caller without it is rejected.
    deadline: by `time.monotonic`.
    delays_s: a planted fault: the delay before each message to a rank.
    """

    rank: int
    size: int
    coordinator: tuple[str, int]
    word: str
    deadline: float
    delays_s: Mapping[int, float]

    def left_s(self, what: str) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise CollectiveError(f"rank {self.rank} waited in vain {what}")
        return left


class Mesh:
    """All ranks, each connected with every other."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._control: dict[int, socket.socket] = {}
        self._peers: dict[int, socket.socket] = {}
        try:
            self._connect()
        except OSError as error:
            self.close()
            raise CollectiveError(f"rank {place.rank}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for connection in (*self._peers.values(), *self._control.values()):
            connection.close()

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value on every rank. This is also a barrier."""
        place = self.place
        if place.rank:
            _send(self._control[0], value)
            everyone: list[Any] = _receive(self._control[0], place, "for rank 0")
        else:
            others = range(1, place.size)
            everyone = [value, *(_receive(self._control[rank], place, f"for rank {rank}") for rank in others)]
            for rank in others:
                _send(self._control[rank], everyone)
        return everyone

    def all_to_all(self, sent: Buffer, received: Buffer) -> None:
        """Send row r of `sent` to rank r, and receive row r of `received` from it. Pairs of ranks take turns, so that
        each link carries only its own part.

        Args:
            sent: [size, count]
            received: [size, count]
        """
        rank, size = self.place.rank, self.place.size
        received[rank] = sent[rank]
        for step in range(1, size):
            to, source = (rank + step) % size, (rank - step) % size
            self._exchange(to, sent[to], source, received[source])

    def all_reduce(self, values: Buffer) -> None:
        """Compute the sum over all ranks, modulo 2^32, in place, around a ring: first sum parts, then pass them on.

        Args:
            values: [size, count]
        """
        rank, size = self.place.rank, self.place.size
        right, left = (rank + 1) % size, (rank - 1) % size
        arrived = np.empty_like(values[0])
        for step in range(size - 1):
            into = (rank - step - 1) % size
            self._exchange(right, values[(rank - step) % size], left, arrived)
            values[into] += arrived
        for step in range(size - 1):
            self._exchange(right, values[(rank - step + 1) % size], left, values[(rank - step) % size])

    def _exchange(self, to: int, sent: Buffer, source: int, received: Buffer) -> None:
        """Send to one rank while receiving from another."""
        if delay := self.place.delays_s.get(to):
            time.sleep(delay)
        out, into = memoryview(sent).cast("B"), memoryview(received).cast("B")
        with selectors.DefaultSelector() as ready:
            wanted = {self._peers[to]: selectors.EVENT_WRITE}
            wanted[self._peers[source]] = wanted.get(self._peers[source], 0) | selectors.EVENT_READ
            for peer, events in wanted.items():
                ready.register(peer, events)
            while out or into:
                for key, events in ready.select(self.place.left_s(f"for ranks {to} and {source}")):
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    if events & selectors.EVENT_WRITE:
                        out = out[connection.send(out) :]
                    if events & selectors.EVENT_READ:
                        count = connection.recv_into(into)
                        if not count:
                            raise CollectiveError(f"rank {source} went away")
                        into = into[count:]
                    done = (0 if out else selectors.EVENT_WRITE) | (0 if into else selectors.EVENT_READ)
                    if left := key.events & ~done:
                        ready.modify(connection, left)
                    else:
                        ready.unregister(connection)

    def _connect(self) -> None:
        """Learn through rank 0 where the other ranks listen, then call those with a lower rank."""
        place = self.place
        if place.rank == 0:
            with _listening(place.coordinator, by_name=True) as listener:
                others = _accepted(listener, place, place.size - 1)
            self._control = {rank: connection for rank, (connection, _) in others.items()}
            host = place.coordinator[0]
            with _listening((host, 0), by_name=True) as listener:
                addresses = {0: [host, listener.getsockname()[1]]}
                addresses |= {rank: hello["at"] for rank, (_, hello) in others.items()}
                for connection in self._control.values():
                    _send(connection, {str(rank): at for rank, at in addresses.items()})
                self._peers = {rank: c for rank, (c, _) in _accepted(listener, place, place.size - 1).items()}
        else:
            control = self._control[0] = _called(place.coordinator, place)
            host = control.getsockname()[0]  # the address by which rank 0 knows this host
            with _listening((host, 0)) as listener:
                _send(control, {"word": place.word, "rank": place.rank, "at": [host, listener.getsockname()[1]]})
                addresses = {int(rank): at for rank, at in _receive(control, place, "for rank 0").items()}
                for rank in range(place.rank):
                    self._peers[rank] = _called(tuple(addresses[rank]), place)
                    _send(self._peers[rank], {"word": place.word, "rank": place.rank})
                later = _accepted(listener, place, place.size - 1 - place.rank)
                self._peers |= {rank: connection for rank, (connection, _) in later.items()}
        for connection in self._peers.values():
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _listening(address: tuple[str, int], *, by_name: bool = False) -> socket.socket:
    """Args:
    by_name: other hosts know this one by the name in `address`. Here it may resolve to 127.0.1.1, so this listens at
        all addresses.
    """
    host, port = address
    try:
        is_literal = bool(ipaddress.ip_address(host))
    except ValueError:
        is_literal = False
    if not by_name or is_literal:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server(address, family=family, backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=1024)


def _called(address: tuple[str, int], place: Place) -> socket.socket:
    while True:
        try:
            return socket.create_connection(address, timeout=place.left_s(f"at {address[0]}:{address[1]}"))
        except (ConnectionRefusedError, TimeoutError):  # it is not listening yet
            time.sleep(RETRY_S)


def _accepted(listener: socket.socket, place: Place, count: int) -> dict[int, tuple[socket.socket, dict[str, Any]]]:
    """Return connections by rank, with the first message of each. Reject callers that do not know the word."""
    came: dict[int, tuple[socket.socket, dict[str, Any]]] = {}
    while len(came) < count:
        missing = sorted(set(range(place.size)) - came.keys() - {place.rank})
        listener.settimeout(place.left_s(f"for rank {missing[0]}"))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        try:
            soon = replace(place, deadline=min(place.deadline, time.monotonic() + HELLO_S))
            hello = _receive(connection, soon, "for a first word")
            if hello["word"] != place.word or hello["rank"] not in missing:
                raise ValueError
            came[hello["rank"]] = connection, hello
        except (CollectiveError, OSError, ValueError, LookupError, TypeError):
            connection.close()
    return came


def _send(connection: socket.socket, value: Any) -> None:
    text = json.dumps(value).encode()
    connection.sendall(LENGTH.pack(len(text)) + text)


def _receive(connection: socket.socket, place: Place, what: str) -> Any:
    def bytes_of(count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            connection.settimeout(place.left_s(what))
            try:
                part = connection.recv(count - len(found))
            except TimeoutError:
                continue
            if not part:
                raise CollectiveError(f"rank {place.rank}: the other side went away while it waited {what}")
            found += part
        return bytes(found)

    (count,) = LENGTH.unpack(bytes_of(LENGTH.size))
    if count > MAX_HELLO:
        raise ValueError(f"{count} bytes announced")
    return json.loads(bytes_of(count))


def measure(place: Place, collective: str, num_bytes: int, repeats: int) -> tuple[list[list[float]], list[bool]]:
    """Return the times of each call by rank, and whether each rank's results were right.

    Args:
        collective: "all_to_all" or "all_reduce".
        num_bytes: each rank's buffer.
        repeats: timed calls, after an untimed one.
    """
    size, rank = place.size, place.rank
    count = max(num_bytes // 4 // size, 1)
    ranks, places = np.arange(size, dtype=np.uint32)[:, None], np.arange(count, dtype=np.uint32)[None]
    mesh = Mesh(place)
    try:
        logger.info(f"rank {rank}: {size} are connected")
        times, right = [], True
        for call in range(repeats + 1):
            received = np.zeros((size, count), np.uint32)
            if collective == "all_to_all":
                sent = (rank * size + ranks) * np.uint32(2_654_435_761) + places + np.uint32(call)
                wanted = (ranks * size + rank).astype(np.uint32) * np.uint32(2_654_435_761) + places + np.uint32(call)
            else:
                received = ((ranks * count + places) * np.uint32(rank + 1) + np.uint32(call)).astype(np.uint32)
                wanted = (ranks * count + places) * np.uint32(size * (size + 1) // 2) + np.uint32(size * call)
            mesh.gather(None)
            began = time.perf_counter()
            if collective == "all_to_all":
                mesh.all_to_all(sent, received)
            else:
                mesh.all_reduce(received)
            times.append(time.perf_counter() - began)
            right = right and bool(np.array_equal(received, wanted.astype(np.uint32)))
        gathered = mesh.gather([times[1:], right])
    finally:
        mesh.close()
    return [times for times, _ in gathered], [bool(right) for _, right in gathered]
