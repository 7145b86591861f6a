"""Sockets of servers: who else may take a port, and the way out of a refusal."""

from __future__ import annotations

import socket

import pytest

from aifx.core.errors import EnvironmentFault
from aifx.core.web.app import make_app
from aifx.core.web.policy import Policy
from aifx.core.web.server import HttpServer, bind, url_of


def test_a_port_at_which_a_server_listens_is_taken() -> None:
    with bind("127.0.0.1", 0, port_hint="", listen=True) as bound:
        port = bound.getsockname()[1]
        assert url_of(bound, "https") == f"https://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
        with pytest.raises(EnvironmentFault, match=f"cannot listen at 127.0.0.1:{port}") as refused:
            bind("127.0.0.1", port, port_hint="another port", host_hint="another host")
    assert refused.value.hint == "another port"


def test_a_port_that_another_takes_before_the_server_listens() -> None:
    """In a thread, too, the failure is known to who starts the server."""
    with bind("127.0.0.1", 0, port_hint="") as bound:
        port = bound.getsockname()[1]
        with bind("127.0.0.1", port, port_hint="", listen=True):
            server = HttpServer(make_app([], Policy()), bound)
            listening: list[bool] = []
            with pytest.raises(EnvironmentFault, match=f"cannot listen at 127.0.0.1:{port}"):
                server.run(lambda: listening.append(True))
            assert not listening
            with pytest.raises(EnvironmentFault):
                HttpServer(make_app([], Policy()), bound).start()


def test_a_server_that_fails_while_it_serves_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with bind("127.0.0.1", 0, port_hint="") as bound:
        server = HttpServer(make_app([], Policy()), bound)
        thread = server.start()
        assert server._loop is not None
        server._loop.call_soon_threadsafe(server._loop.stop)
        thread.join(60)
        assert not thread.is_alive()
    (record,) = [record for record in caplog.records if record.name == "aifx.core.web.server"]
    assert record.exc_info is not None


@pytest.mark.parametrize("host", ["nosuch.invalid", "a" * 64])
def test_the_way_out_of_a_host_that_is_not_there(host: str) -> None:
    with pytest.raises(EnvironmentFault) as refused:
        bind(host, 0, port_hint="another port", host_hint="another host")
    assert refused.value.hint == "another host"
