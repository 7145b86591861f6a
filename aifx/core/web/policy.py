"""The policy of a server: who may ask it, how much, and its refusals."""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from aifx.core.errors import UsageError


class WebError(Exception):
    """An answer that is a failure: `{"error": message}`, unless a subclass has another form.

    Args:
        code: a word for programs, for subclasses that have one.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code
        self.headers = dict(headers or {})

    @classmethod
    def stopping(cls) -> Self:
        """The failure of a request that comes to a server that is draining."""
        headers = {"Retry-After": "5", "Connection": "close"}
        return cls(503, "the server is stopping", code="stopping", headers=headers)

    def body(self) -> bytes:
        """The answer's JSON."""
        return json.dumps({"error": self.message}).encode() + b"\n"


class ClientGone(Exception):
    """The client went away: nobody reads the answer."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host's address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def client_network(host: str) -> str:
    """Return the address of a client; for IPv6 its /64, because one client can have all of its addresses."""
    with suppress(ValueError):
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address):
            mapped = address.ipv4_mapped
            return str(mapped or ipaddress.ip_network((address, 64), strict=False))
    return host


def is_own_name(host: str) -> bool:
    """Return whether the header `Host` names only this machine."""
    name = re.sub(r":\d*$", "", host.strip()).lower().rstrip(".")
    return is_loopback(name.removeprefix("[").removesuffix("]"))


def is_other_site(origin: str | None, fetch_site: str | None, host: str) -> bool:
    """Return whether a web page of another origin than the server's own sent a request.

    Args:
        origin: the header `Origin`; None if the client sends none, as programs do.
        fetch_site: the header `Sec-Fetch-Site`, which browsers send to loopback and by https, and no page can set.
        host: the header `Host`.
    """
    if fetch_site is not None:
        return fetch_site not in ("same-origin", "none")  # "none": a person typed the address
    return origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower())


_SALT = secrets.token_bytes(32)


@dataclass(frozen=True)
class Policy:
    """The clients that may ask a server, and how much.

    Attributes:
        key: what clients must send as `Authorization: Bearer KEY`; "" if anyone may ask.
        open_paths: of probes, and of a page without data: they need no key, and pages of any site may ask for them.
        own_names_only: whether the header `Host` must name this machine. A web page can have its own host name point
            at this machine (DNS rebinding).
        own_site_only: whether pages of other sites may not ask. A browser sends some requests of any page, and only
            keeps the answer from it. Links that a person follows are no such requests.
        sites: other sites whose pages may ask.
        max_client_requests: most unfinished requests of one client; 0 is no limit.
        discard_s: how long a client may send the rest of a body that was refused.
        hints: what to do about a refusal, by its status.
        error: failures of this server.
    """

    key: str = ""
    open_paths: Collection[str] = ()
    own_names_only: bool = True
    own_site_only: bool = True
    sites: Sequence[str] = ()
    max_client_requests: int = 0
    discard_s: float = 30.0
    hints: Mapping[int, str] = field(default_factory=dict)
    error: type[WebError] = WebError

    def check(self, method: str, path: str, headers: Sequence[tuple[bytes, bytes]], unfinished: int) -> None:
        """Raise `error` for a request that may not be made.

        Args:
            unfinished: the requests of its client, with this one.
        """
        given = {name: value.decode("latin-1") for name, value in headers}
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if self.own_names_only and not all(map(is_own_name, hosts)):
            raise self.refusal(421, "the Host header must be localhost")
        if path in self.open_paths:
            return
        origin, site = given.get(b"origin"), given.get(b"sec-fetch-site")
        is_link = method == "GET" and given.get(b"sec-fetch-dest") == "document"
        is_allowed = not self.own_site_only or is_link or origin in self.sites
        if not is_allowed and is_other_site(origin, site, given.get(b"host", "")):
            raise self.refusal(403, "the request comes from a page of another site")
        if self.key and not self._has_key(given.get(b"authorization", "")):
            why = "the header 'Authorization: Bearer KEY' is missing or wrong"
            raise self.refusal(401, why, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if 0 < self.max_client_requests < unfinished:
            why = f"{self.max_client_requests} requests of this address are unfinished"
            raise self.refusal(429, why, code="too_many_requests", headers={"Retry-After": "1"})

    def refusal(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> WebError:
        """A failure, with the hint of its status."""
        hint = self.hints.get(status)
        return self.error(status, f"{message}; {hint}" if hint else message, code=code, headers=headers)

    def _has_key(self, authorization: str) -> bool:
        """Keys are compared in constant time, whatever their length."""
        scheme, _, key = authorization.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(_digest(key.strip()), _digest(self.key))


def check_key(key: str, what: str, hint: str) -> None:
    """Raise UsageError for a key that no header could have."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(f"{what} holds no key", "a key is one word of printable ASCII", hint)


def _digest(key: str) -> bytes:
    return hmac.digest(_SALT, key.encode(), "sha256")
