"""Who may ask a server: keys, names of this machine, pages of other sites, unfinished requests."""

from __future__ import annotations

from typing import Any

import pytest

from aifx.core.errors import UsageError
from aifx.core.web.policy import Policy, WebError, check_key, client_network

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
