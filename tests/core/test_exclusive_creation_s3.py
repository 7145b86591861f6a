"""`Store.create` against a server with S3's API that honours conditional writes, ignores them, or fails in between."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from s3_server import Application, s3_server
from werkzeug.wsgi import get_input_stream

from aifx.core.errors import EnvironmentFault
from aifx.core.stores import open_store

Fault = Callable[[Application, dict[str, Any], Callable[..., Any]], Any]


class Server:
    """A layer before moto.

    Attributes:
        requests: the method and path of each request.
        fault: takes the place of moto for requests with a condition; None for none.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.fault: Fault | None = None
        self._lock = threading.Lock()  # moto looks whether a name is taken, and then writes

    def wrapped(self, moto: Application) -> Application:
        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
            with self._lock:
                self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
                if self.fault is not None and environ.get("HTTP_IF_NONE_MATCH") == "*":
                    return self.fault(moto, environ, start)
                return list(moto(environ, start))

        return answer

    def puts(self, path: str) -> int:
        return self.requests.count(f"PUT {path}")

    def probes(self) -> int:
        """Requests that created, or tried to create, a probe."""
        return sum(request.startswith("PUT ") and "/.probe." in request for request in self.requests)


def once(fault: Fault) -> Fault:
    """A fault of the first request alone."""
    is_over = False

    def first(moto: Application, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        nonlocal is_over
        was_over, is_over = is_over, True
        return list(moto(environ, start)) if was_over else fault(moto, environ, start)

    return first


def ignored(moto: Application, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
    del environ["HTTP_IF_NONE_MATCH"]
    return list(moto(environ, start))


def lost(moto: Application, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
    """Do what is asked, and close the connection without an answer."""
    body = list(moto(environ, start))
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    return body


def answering(status: str, code: str) -> Fault:
    def answer(moto: Application, environ: dict[str, Any], start: Callable[..., Any]) -> Any:
        get_input_stream(environ).read()
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode()]

    return answer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    with s3_server(monkeypatch, server.wrapped):
        yield server


@pytest.mark.slow
def test_a_bucket_is_probed_once(server: Server) -> None:
    store = open_store("s3://bucket/names")
    assert store.create("one", b"1")
    assert not store.create("one", b"2")
    assert store.read("one") == b"1"
    assert server.probes() == 2
    assert store.below("deep").create("two", b"")
    assert open_store("s3://bucket/other").create("three", b"3")
    assert server.probes() == 2
    store.fs.mkdir("second")
    assert open_store("s3://second/names").create("four", b"4")
    assert server.probes() == 4
    assert sorted(store.fs.find("bucket") + store.fs.find("second")) == [
        "bucket/names/deep/two",
        "bucket/names/one",
        "bucket/other/three",
        "second/names/four",
    ]


@pytest.mark.slow
def test_one_of_eight_threads_creates_each_object(server: Server) -> None:
    store = open_store("s3://bucket/names")
    with ThreadPoolExecutor(8) as threads:
        for at in range(5):
            created = list(threads.map(lambda number, at=at: store.create(f"{at}", bytes([number])), range(8)))
            assert [bytes([number]) for number, is_new in enumerate(created) if is_new] == [store.read(f"{at}")]


@pytest.mark.slow
def test_a_server_that_ignores_the_condition_is_refused(server: Server) -> None:
    server.fault = ignored
    store = open_store("s3://bucket/names")
    for tries in (2, 4):
        with pytest.raises(EnvironmentFault, match="If-None-Match") as refused:
            store.create("one", b"1")
        assert "s3://bucket/names" in refused.value.what
        assert server.probes() == tries
    assert store.fs.find("bucket") == []
    assert server.puts("/bucket/names/one") == 0
    server.fault = None  # it was repaired
    assert store.create("one", b"1")


@pytest.mark.slow
def test_a_server_without_conditional_requests_is_refused(server: Server) -> None:
    server.fault = answering("501 Not Implemented", "NotImplemented")
    store = open_store("s3://bucket/names")
    with pytest.raises(EnvironmentFault) as refused:
        store.create("one", b"1")
    assert "s3://bucket/names" in refused.value.what
    assert "S3" in refused.value.hint
    assert server.puts("/bucket/names/one") == 0


@pytest.mark.slow
def test_a_lost_answer_is_no_refusal(server: Server) -> None:
    store = open_store("s3://bucket/names")
    store.create("before", b"")
    server.fault = once(lost)
    assert store.create("one", b"1")
    assert server.puts("/bucket/names/one") == 2
    server.fault = once(lost)
    assert not store.create("one", b"2")
    assert store.read("one") == b"1"
    assert set(store.kinds()) == {"before", "one"}  # which the client remembers
    server.fault = once(lost)
    assert store.create("two", b"2")


@pytest.mark.slow
def test_refusals_of_other_servers(server: Server) -> None:
    """A 409 says that another request is under way. A 412 of some servers does not say which condition failed."""
    store = open_store("s3://bucket/names")
    store.create("before", b"")
    server.fault = once(answering("409 Conflict", "ConditionalRequestConflict"))
    assert store.create("one", b"1")
    server.fault = answering("412 Precondition Failed", "PreconditionFailed")
    assert not store.create("one", b"2")
    assert store.create("one", b"1")
    server.fault = answering("409 Conflict", "ConditionalRequestConflict")
    with pytest.raises(EnvironmentFault):
        store.create("two", b"2")
    server.fault = answering("403 Forbidden", "AccessDenied")
    tried = server.puts("/bucket/names/two")
    with pytest.raises(EnvironmentFault):
        store.create("two", b"2")
    assert server.puts("/bucket/names/two") == tried + 1


@pytest.mark.slow
def test_a_bucket_that_is_missing(server: Server) -> None:
    with pytest.raises(EnvironmentFault, match="missing"):
        open_store("s3://missing/names").create("one", b"1")
