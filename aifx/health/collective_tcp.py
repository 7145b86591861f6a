"""All-to-alls among processes over TCP: they test the hosts' network, without GPUs and without NCCL.

Each process has a connection to each other process. Ranks recognize each other by a word that all were given.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from aifx.core.parsing import parse_json

Buffer = npt.NDArray[np.uint32]

LENGTH = struct.Struct("!I")
MAX_HELLO = 1 << 20
RETRY_S = 0.05
HELLO_S = 2.0
"""Time for a caller to identify itself."""


class CollectiveError(Exception):
    """One line that names the rank at fault, if it is known."""


@dataclass(frozen=True)
class RankRequest:
    """One rank of a collective test, as the command that runs it gets it in JSON.

    The attributes of the test are those of `aifx.health.collective_launch.Options`.

    Attributes:
        host: rank 0's host, as the other hosts know it; empty for tasks of srun, which find their places themselves.
        port: the port at which rank 0 listens.
        word: what all ranks were given; a caller without it is rejected.
        delays_s: planted faults: ranks, and the delay before each message to them.
    """

    rank: int
    size: int
    host: str
    port: int
    word: str
    over: Literal["jax", "tcp"]
    num_bytes: int
    repeats: int
    limit_s: float
    delays_s: Sequence[tuple[int, float]]
    began: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        return self.began + self.limit_s - time.monotonic()

    @asynccontextmanager
    async def waiting_for(self, whom: str) -> AsyncIterator[None]:
        """Raise CollectiveError in this block when the time is up."""
        try:
            async with asyncio.timeout(self.left_s):
                yield
        except TimeoutError:
            raise CollectiveError(f"rank {self.rank} waited in vain for {whom}") from None


class Mesh:
    """All ranks, each connected with every other after `connect`."""

    def __init__(self, request: RankRequest) -> None:
        self.request = request
        self._delays_s = dict(request.delays_s)
        self._peers: dict[int, socket.socket] = {}

    def close(self) -> None:
        for connection in self._peers.values():
            connection.close()

    async def gather(self, value: Any) -> list[Any]:
        """Return every rank's value on every rank. This is also a barrier."""
        if self.request.rank:
            await self._tell(0, value)
            everyone: list[Any] = await _receive(self._peers[0], self.request, "rank 0")
            return everyone
        others = range(1, self.request.size)
        everyone = [value, *[await _receive(self._peers[rank], self.request, f"rank {rank}") for rank in others]]
        for rank in others:
            await self._tell(rank, everyone)
        return everyone

    async def all_to_all(self, sent: Buffer, received: Buffer) -> None:
        """Send row r of `sent` to rank r, and receive row r of `received` from it. Pairs of ranks take turns, so that
        each link carries only its own part.

        Args:
            sent: [size, count]
            received: [size, count]
        """
        rank, size = self.request.rank, self.request.size
        received[rank] = sent[rank]
        for step in range(1, size):
            to, source = (rank + step) % size, (rank - step) % size
            await self._exchange(to, sent[to], source, received[source])

    async def _exchange(self, to: int, sent: Buffer, source: int, received: Buffer) -> None:
        """Send to one rank while receiving from another."""
        if delay_s := self._delays_s.get(to):
            await asyncio.sleep(delay_s)
        async with self.request.waiting_for(f"ranks {to} and {source}"):
            await asyncio.gather(
                _send(self._peers[to], memoryview(sent).cast("B"), f"rank {to}"),
                _fill(self._peers[source], memoryview(received).cast("B"), f"rank {source}"),
            )

    async def connect(self) -> None:
        """Call rank 0 and learn from it where the other ranks listen, then call those with a lower rank."""
        request = self.request
        if request.rank == 0:
            with _listening(request.host, request.port, by_name=True) as listener:
                others = await _accepted(listener, request, request.size - 1)
            self._peers = {rank: connection for rank, (connection, _) in others.items()}
            for rank in self._peers:
                await self._tell(rank, {peer: hello["at"] for peer, (_, hello) in others.items()})
        else:
            self._peers[0] = await _called(request.host, request.port, request)
            host = self._peers[0].getsockname()[0]  # the address by which rank 0 knows this host
            with _listening(host) as listener:
                hello = {"word": request.word, "rank": request.rank, "at": [host, listener.getsockname()[1]]}
                await self._tell(0, hello)
                addresses: dict[str, tuple[str, int]] = await _receive(self._peers[0], request, "rank 0")
                for rank in range(1, request.rank):
                    self._peers[rank] = await _called(*addresses[str(rank)], request)
                    await self._tell(rank, hello)
                later = await _accepted(listener, request, request.size - 1 - request.rank)
            self._peers |= {rank: connection for rank, (connection, _) in later.items()}
        for connection in self._peers.values():
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def _tell(self, rank: int, value: Any) -> None:
        text = json.dumps(value).encode()
        async with self.request.waiting_for(f"rank {rank}"):
            await _send(self._peers[rank], LENGTH.pack(len(text)) + text, f"rank {rank}")


def _listening(host: str, port: int = 0, *, by_name: bool = False) -> socket.socket:
    """Args:
    by_name: other hosts know this one by the name `host`. Here it may resolve to 127.0.1.1, so this listens at all
        addresses.
    """
    with suppress(ValueError):
        ipaddress.ip_address(host)
        by_name = False  # the host is an address
    if not by_name:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
    elif socket.has_dualstack_ipv6():
        listener = socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", port), backlog=1024)
    listener.setblocking(False)
    return listener


async def _called(host: str, port: int, request: RankRequest) -> socket.socket:
    async with request.waiting_for(f"{host}:{port}"):
        while True:
            try:
                connection = socket.create_connection((host, port), timeout=max(request.left_s, RETRY_S))
            except (ConnectionRefusedError, TimeoutError):  # it is not listening yet
                await asyncio.sleep(RETRY_S)
            else:
                connection.setblocking(False)
                return connection


async def _accepted(
    listener: socket.socket, request: RankRequest, count: int
) -> dict[int, tuple[socket.socket, dict[str, Any]]]:
    """Return connections by rank, with the first message of each. Reject callers that do not know the word."""
    came: dict[int, tuple[socket.socket, dict[str, Any]]] = {}
    while len(came) < count:
        missing = sorted(set(range(request.size)) - came.keys() - {request.rank})
        async with request.waiting_for(f"rank {missing[0]}"):
            connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        try:
            async with asyncio.timeout(HELLO_S):
                hello = await _receive(connection, request, "a first word")
            if hello["word"] != request.word or hello["rank"] not in missing:
                raise ValueError
            came[hello["rank"]] = connection, hello
        except (CollectiveError, OSError, ValueError, LookupError, TypeError):
            connection.close()
    return came


async def _receive(connection: socket.socket, request: RankRequest, source: str) -> Any:
    async with request.waiting_for(source):
        head = bytearray(LENGTH.size)
        await _fill(connection, memoryview(head), source)
        (count,) = LENGTH.unpack(head)
        if count > MAX_HELLO:
            raise ValueError(f"{count} bytes announced")
        text = bytearray(count)
        await _fill(connection, memoryview(text), source)
    return parse_json(bytes(text))


async def _send(connection: socket.socket, data: bytes | memoryview, to: str) -> None:
    try:
        await asyncio.get_running_loop().sock_sendall(connection, data)
    except ConnectionError:
        raise CollectiveError(f"{to} went away") from None


async def _fill(connection: socket.socket, buffer: memoryview, source: str) -> None:
    while buffer:
        count = 0
        with suppress(ConnectionError):  # it went away with unread data
            count = await asyncio.get_running_loop().sock_recv_into(connection, buffer)
        if not count:
            raise CollectiveError(f"{source} went away")
        buffer = buffer[count:]


async def measure(request: RankRequest) -> tuple[list[list[float]], list[bool]]:
    """Return the times of each call by rank, and whether each rank's results were right."""
    size, rank = request.size, request.rank
    count = max(request.num_bytes // 4 // size, 1)
    ranks, places = np.arange(size, dtype=np.uint32)[:, None], np.arange(count, dtype=np.uint32)[None]
    mesh = Mesh(request)
    try:
        await mesh.connect()
        times, right = [], True
        for call in range(request.repeats + 1):
            received = np.zeros((size, count), np.uint32)
            sent = (rank * size + ranks) * np.uint32(2_654_435_761) + places + np.uint32(call)
            wanted = (ranks * size + rank) * np.uint32(2_654_435_761) + places + np.uint32(call)
            await mesh.gather(None)
            began = time.perf_counter()
            await mesh.all_to_all(sent, received)
            times.append(time.perf_counter() - began)
            right = right and bool(np.array_equal(received, wanted))
        gathered = await mesh.gather([times[1:], right])
    finally:
        mesh.close()
    return [times for times, _ in gathered], [bool(right) for _, right in gathered]
