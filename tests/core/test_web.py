"""Servers: keys, names of this machine, other sites, unfinished requests; ports, and the way out of a refusal."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from aifx.core.errors import EnvironmentFault, UsageError
from aifx.core.web.app import make_app
from aifx.core.web.policy import Policy, WebError, check_key, client_network
from aifx.core.web.server import HttpServer, bind, url_of

OPEN = {"open_paths": ("/health",)}
KEY = {"key": "se-cret", **OPEN}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


def refusal(
    policy: dict[str, Any], headers: dict[str, str], method: str = "GET", path: str = "/x", unfinished: int = 1
) -> int | None:
    """The status of the refusal; None for a request that may be made."""
    given = {"Host": "localhost:80", **headers}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()]
    try:
        Policy(**policy).check(method, path, raw, unfinished)
    except WebError as error:
        return error.status
    return None


@pytest.mark.parametrize(
    ("policy", "headers", "status"),
    [
        ({}, {}, None),
        (KEY, {}, 401),
        (KEY, {"Authorization": "Bearer se-cret"}, None),
        (KEY, {"Authorization": "bearer  se-cret "}, None),
        (KEY, {"Authorization": "Bearer se-cre"}, 401),
        (KEY, {"Authorization": "Bearer é"}, 401),
        (KEY, {"Authorization": "Basic se-cret"}, 401),
        (KEY, {"Authorization": "se-cret"}, 401),
        ({}, {"Host": "evil.example"}, 421),
        (KEY, {"Host": "evil.example", "Authorization": "Bearer se-cret"}, 421),
        ({"own_names_only": False}, {"Host": "n1:9470"}, None),
        ({}, {"Origin": "http://localhost:80"}, None),
        ({}, {"Origin": "http://evil.example"}, 403),
        ({}, {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
        ({}, {"Sec-Fetch-Site": "same-site"}, 403),
        (KEY, {"Origin": "http://evil.example", "Authorization": "Bearer se-cret"}, 403),
        ({"own_site_only": False}, {"Origin": "http://evil.example"}, None),
        ({"sites": ("http://app.example",)}, {"Origin": "http://app.example", "Sec-Fetch-Site": "cross-site"}, None),
        ({}, LINK, None),
        ({}, {**LINK, "Sec-Fetch-Dest": "iframe"}, 403),
        (KEY, LINK, 401),
    ],
)
def test_who_may_ask(policy: dict[str, Any], headers: dict[str, str], status: int | None) -> None:
    assert refusal(policy, headers) == status


def test_a_page_of_another_site_may_not_send_a_form() -> None:
    assert refusal({}, {**LINK, "Origin": "http://evil.example"}, method="POST") == 403


def test_open_paths_need_no_key_but_a_name_of_this_machine() -> None:
    evil = {"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    most = {**KEY, "max_client_requests": 2}
    assert refusal(most, evil, path="/health", unfinished=3) is None
    assert refusal(most, {"Host": "evil.example"}, path="/health") == 421


def test_unfinished_requests_of_a_client_are_limited() -> None:
    assert refusal({"max_client_requests": 2}, {}, unfinished=2) is None
    assert refusal({"max_client_requests": 2}, {}, unfinished=3) == 429
    assert refusal({"max_client_requests": 0}, {}, unfinished=1000) is None


def test_a_client_has_all_addresses_of_its_network() -> None:
    assert client_network("10.0.0.1") == client_network("::ffff:10.0.0.1") == "10.0.0.1"
    assert client_network("2001:db8::1") == client_network("2001:db8::ffff%eth0") != client_network("2001:db8:0:1::1")
    assert client_network("") == ""


@pytest.mark.parametrize("key", ["", "a b", "é", "a\n"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(UsageError, match="holds no key"):
        check_key(key, "KEY", "")


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
