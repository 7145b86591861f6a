"""Attacks on `aifx doctor serve`: clients that are slow, many, or a page of a stranger's in the operator's browser."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import make_certificate

from aifx.core.web.connections import SCRAPE_LIMITS, Limits
from aifx.core.web.policy import is_own_name
from aifx.core.web.server import bind, url_of
from aifx.health.agent import Checks, open_agent
from aifx.health.agent_token import server_tls

REPORT = {"status": "healthy", "findings": [], "skipped": [], "duration_s": 0.1, "padding": "x" * 30_000_000}

MOST = int(SCRAPE_LIMITS.max_per_client)

END_S = 120.0

PATIENT = replace(SCRAPE_LIMITS, idle_s=1e6, receive_s=1e6, send_s=1e6)
"""For as long as a test takes. Tests shorten the limits that they are about."""


class Agent:
    """An agent in a thread."""

    def __init__(
        self, limits: Limits, check: Callable[[], dict[str, Any]], tls: ssl.SSLContext | None, send_buffer: int | None
    ) -> None:
        bound = bind("127.0.0.1", 0, port_hint="")
        if send_buffer is not None:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.url, self.port = url_of(bound), bound.getsockname()[1]
        self.server = open_agent(Checks(check, 60.0), bound, tls=tls, limits=limits)
        self.thread = self.server.start()

    def close(self) -> None:
        self.server.stop()
        self.thread.join()


@pytest.fixture
def start() -> Iterator[Callable[..., Agent]]:
    started: list[Agent] = []

    def start(
        limits: Limits = PATIENT,
        check: Callable[[], dict[str, Any]] = lambda: REPORT,
        tls: ssl.SSLContext | None = None,
        send_buffer: int | None = None,
    ) -> Agent:
        started.append(Agent(limits, check, tls, send_buffer))
        return started[-1]

    yield start
    for agent in started:
        agent.close()


@pytest.fixture
def agent(start: Callable[..., Agent]) -> Agent:
    return start()


def connect(agent: Agent, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", agent.port), timeout=END_S, source_address=(source, 0))


def answer(agent: Agent, *lines: str) -> str:
    """The status line that a request of these lines is answered with."""
    with connect(agent) as client:
        client.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode())
        return client.makefile("rb").readline().decode().strip()


def connected(agent: Agent, count: int) -> bool:
    """Whether so many connections are open; waits for it."""
    until = time.monotonic() + END_S
    while len(agent.server.connections) != count:
        assert time.monotonic() < until
        time.sleep(0.01)
    return True


def test_slow_clients_keep_nobody_from_an_answer(agent: Agent) -> None:
    with ExitStack() as stack:
        for number in range(2 * SCRAPE_LIMITS.max_connections):
            client = stack.enter_context(closing(connect(agent, f"127.0.0.{1 + number % 8}")))
            client.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        for source in ("127.0.0.1", "127.0.0.99"):
            transport = httpx.HTTPTransport(local_address=source)
            with httpx.Client(transport=transport, timeout=END_S) as client:
                assert client.get(f"{agent.url}/healthz").status_code == 200
        assert len(agent.server.connections) <= SCRAPE_LIMITS.max_connections


def test_one_address_has_a_part_of_the_connections(agent: Agent) -> None:
    with ExitStack() as stack:
        patient = stack.enter_context(closing(connect(agent, "127.0.0.2")))
        greedy = [stack.enter_context(closing(connect(agent))) for _ in range(MOST + 3)]
        for client in greedy[:3]:  # the oldest of that address made room
            assert client.recv(1) == b""
        patient.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert patient.makefile("rb").readline().startswith(b"HTTP/1.1 200")


def test_a_request_has_a_deadline_however_its_bytes_come(start: Callable[..., Agent]) -> None:
    agent = start(replace(PATIENT, receive_s=0.3))

    def trickle(client: socket.socket) -> None:
        client.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        while True:  # a byte before every limit of a single read
            client.sendall(b"x")
            time.sleep(0.05)

    with connect(agent) as client, pytest.raises(ConnectionError):
        trickle(client)


def test_an_answer_that_nobody_takes_is_given_up(start: Callable[..., Agent]) -> None:
    agent = start(replace(PATIENT, send_s=0.3))
    with connect(agent) as client:
        client.sendall(b"GET /v1/report HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.recv(1)
        assert connected(agent, 0)
        assert len(client.makefile("rb").read()) < len(REPORT["padding"])  # type: ignore[arg-type]


@pytest.mark.parametrize("asked", [b"close", b"keep-alive"])
def test_a_small_answer_that_nobody_takes_is_given_up(start: Callable[..., Agent], asked: bytes) -> None:
    """The server has written all of it, and the connection is only closed once its client has read it."""
    limits = replace(PATIENT, idle_s=0.3, send_s=0.3)
    agent = start(limits, lambda: {**REPORT, "padding": "x" * 50_000}, send_buffer=4096)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(END_S)
        client.connect(("127.0.0.1", agent.port))
        client.sendall(b"GET /v1/report HTTP/1.1\r\nHost: localhost\r\nConnection: " + asked + b"\r\n\r\n")
        client.recv(1)
        assert connected(agent, 0)
        assert len(client.makefile("rb").read()) < 50_000


def test_a_connection_that_is_being_answered_is_not_closed_for_another(start: Callable[..., Agent]) -> None:
    """A newcomer is refused instead, but not one from another address."""
    begun, may_end = threading.Event(), threading.Event()

    def check() -> dict[str, Any]:
        begun.set()
        assert may_end.wait(END_S)
        return {**REPORT, "padding": ""}

    agent = start(check=check)
    with ExitStack() as stack:
        waiting = [stack.enter_context(closing(connect(agent))) for _ in range(MOST)]
        for client in waiting:
            client.sendall(b"GET /v1/report HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert begun.wait(END_S)
        until = time.monotonic() + END_S
        while not all(one._is_busy for one in agent.server.connections) or len(agent.server.connections) < MOST:  # type: ignore[attr-defined]
            assert time.monotonic() < until
            time.sleep(0.01)
        assert stack.enter_context(closing(connect(agent))).recv(1) == b""
        other = stack.enter_context(closing(connect(agent, "127.0.0.2")))
        other.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert other.makefile("rb").readline().startswith(b"HTTP/1.1 200")
        may_end.set()
        for client in waiting:
            assert client.makefile("rb").readline().startswith(b"HTTP/1.1 200")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate")
def test_handshakes_that_stall_are_limited_and_end(start: Callable[..., Agent], tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    tls = server_tls(certificate, key)
    agent = start(PATIENT, tls=tls)
    with ExitStack() as stack:
        stalled = [stack.enter_context(closing(connect(agent))) for _ in range(MOST + 1)]
        assert stalled[0].recv(1) == b""  # the oldest made room
        verify = ssl.create_default_context(cafile=certificate)
        url = agent.url.replace("http:", "https:")
        assert httpx.get(f"{url}/healthz", verify=verify, timeout=END_S).status_code == 200
    assert connected(agent, 0)
    agent = start(replace(PATIENT, receive_s=0.3), tls=tls)
    with connect(agent) as client:
        assert client.recv(1) == b""
        assert connected(agent, 0)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make a certificate")
def test_a_refused_handshake_leaves_nothing_behind(start: Callable[..., Agent], tmp_path: Path) -> None:
    """Refused because all connections of its network are being answered."""
    may_end = threading.Event()

    def check() -> dict[str, Any]:
        assert may_end.wait(END_S)
        return REPORT

    certificate, key = make_certificate(tmp_path)
    agent = start(replace(PATIENT, max_per_client=1), check, server_tls(certificate, key))
    context = ssl.create_default_context(cafile=certificate)
    loop = agent.server._loop
    assert loop is not None
    with closing(context.wrap_socket(connect(agent), server_hostname="127.0.0.1")) as waiting:
        waiting.sendall(b"GET /v1/report HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until = time.monotonic() + END_S
        while not any(one._is_busy for one in agent.server.connections):  # type: ignore[attr-defined]
            assert time.monotonic() < until
            time.sleep(0.01)
        for _ in range(20):
            with connect(agent) as refused:
                assert refused.recv(1) == b""
        while [task for task in asyncio.all_tasks(loop) if "_shake_hands" in repr(task)]:
            assert time.monotonic() < until
            time.sleep(0.01)
        may_end.set()
        assert waiting.makefile("rb").readline().startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/v1/report"])
def test_pages_of_strangers_read_nothing(agent: Agent, path: str) -> None:
    for host in (
        "attacker.example",
        "attacker.example:9470",
        "127.0.0.1.attacker.example",
        "localhost.attacker.example",
    ):
        assert answer(agent, f"GET {path} HTTP/1.1", f"Host: {host}").startswith("HTTP/1.1 421 ")
    two = answer(agent, f"GET {path} HTTP/1.1", "Host: localhost", "Host: attacker.example")
    assert two.startswith("HTTP/1.1 400 ")
    assert answer(agent, f"GET {path} HTTP/1.1", "Host: LOCALHOST:9470").startswith("HTTP/1.1 200 ")


def test_names_of_this_machine() -> None:
    assert all(map(is_own_name, ["localhost", "127.0.0.1:9470", "127.8.9.1", "[::1]:9470", "[::1]", "localhost.:1"]))
    assert not any(map(is_own_name, ["", "n1", "localhost, n1", "127.0.0.1@n1", "10.0.0.1", "[::2]"]))
