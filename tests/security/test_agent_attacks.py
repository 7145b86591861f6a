"""Attacks on `aifx doctor serve`: clients that are slow, many, or a page of a stranger's in the operator's browser."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing

import httpx
import pytest

from aifx.core.addresses import is_own_name
from aifx.health import connections
from aifx.health.agent import Agent, Checks
from aifx.health.connections import MAX_CONNECTIONS, MAX_PER_ADDRESS, Connections

REPORT = {"status": "healthy", "findings": [], "skipped": [], "duration_s": 0.1, "padding": "x" * 30_000_000}


END_S = 120.0


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent that waits for clients for as long as a test takes. Tests shorten the limits that they are about."""
    for name in ("REQUEST_LIMIT_S", "IDLE_LIMIT_S", "ANSWER_LIMIT_S"):
        monkeypatch.setattr(connections, name, 1e6)
    server = Agent(("127.0.0.1", 0), Checks(lambda: REPORT, 60.0))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def connect(agent: Agent, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", agent.server_address[1]), timeout=END_S, source_address=(source, 0))


def answer(agent: Agent, *lines: str) -> str:
    """The status line that a request of these lines is answered with."""
    with connect(agent) as client:
        client.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        return client.makefile("rb").readline().decode().strip()


def test_slow_clients_keep_nobody_from_an_answer(agent: Agent) -> None:
    with ExitStack() as stack:
        for number in range(2 * MAX_CONNECTIONS):
            client = stack.enter_context(closing(connect(agent, f"127.0.0.{1 + number % 8}")))
            client.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        for source in ("127.0.0.1", "127.0.0.99"):
            transport = httpx.HTTPTransport(local_address=source)
            with httpx.Client(transport=transport, timeout=END_S) as client:
                assert client.get(f"{agent.url}/healthz").status_code == 200
        assert len(agent.connections._open) <= MAX_CONNECTIONS


def test_one_address_has_a_part_of_the_connections(agent: Agent) -> None:
    with ExitStack() as stack:
        patient = stack.enter_context(closing(connect(agent, "127.0.0.2")))
        greedy = [stack.enter_context(closing(connect(agent))) for _ in range(MAX_PER_ADDRESS + 3)]
        for client in greedy[:3]:  # the oldest of that address made room
            assert client.recv(1) == b""
        patient.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert patient.makefile("rb").readline().startswith(b"HTTP/1.1 200")


def test_a_request_has_a_deadline_however_its_bytes_come(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_LIMIT_S", 0.3)

    def trickle(client: socket.socket) -> None:
        client.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        while True:  # a byte before every limit of a single read
            client.sendall(b"x")
            time.sleep(0.05)

    with connect(agent) as client, pytest.raises(ConnectionError):
        trickle(client)


def test_an_answer_that_nobody_takes_is_given_up(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "ANSWER_LIMIT_S", 0.3)
    with connect(agent) as client:
        client.sendall(b"GET /v1/report HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.recv(1)
        while agent.connections._open:
            time.sleep(0.02)
        assert len(client.makefile("rb").read()) < len(REPORT["padding"])  # type: ignore[arg-type]


def test_a_connection_that_is_being_answered_is_not_closed_for_another() -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(MAX_PER_ADDRESS + 2)]
        open_ = Connections()
        assert all(open_.admit(one, "10.0.0.1") for one in sockets[:MAX_PER_ADDRESS])
        for one in sockets[:MAX_PER_ADDRESS]:
            open_.expect(one, math.inf)
        assert not open_.admit(sockets[-1], "10.0.0.1")
        assert not open_.admit(sockets[-1], "::ffff:10.0.0.1")
        assert open_.admit(sockets[-1], "10.0.0.2")
        assert all(open_.admit(socket.socket(), f"2001:db8::{n:x}") for n in range(MAX_PER_ADDRESS))
        assert open_._open[sockets[-1]].address == "10.0.0.2"
        assert sum("2001:db8::/64" in one.address for one in open_._open.values()) == MAX_PER_ADDRESS


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/v1/report"])
def test_pages_of_strangers_read_nothing(agent: Agent, path: str) -> None:
    for host in (
        "attacker.example",
        "attacker.example:9470",
        "127.0.0.1.attacker.example",
        "localhost.attacker.example",
    ):
        assert answer(agent, f"GET {path} HTTP/1.1", f"Host: {host}").startswith("HTTP/1.1 421 ")
    assert answer(agent, f"GET {path} HTTP/1.1", "Host: localhost", "Host: attacker.example").startswith(
        "HTTP/1.1 421 "
    )
    assert answer(agent, f"GET {path} HTTP/1.1", "Host: LOCALHOST:9470").startswith("HTTP/1.1 200 ")


def test_names_of_this_machine() -> None:
    assert all(map(is_own_name, ["localhost", "127.0.0.1:9470", "127.8.9.1", "[::1]:9470", "[::1]", "localhost.:1"]))
    assert not any(map(is_own_name, ["", "n1", "localhost, n1", "127.0.0.1@n1", "10.0.0.1", "[::2]"]))
