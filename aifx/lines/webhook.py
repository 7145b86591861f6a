"""One attempt to deliver an event: a CloudEvent with a signature of Standard Webhooks, to an address that is checked.

A URL of a webhook may name any host, also by way of a name whose meaning changes between a check and a connection
("DNS rebinding"). So aifx resolves the name itself, checks the address, and connects to that address; TLS still
verifies the name. Redirects are refused, proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

from aifx.core.errors import ConfigError, EnvironmentFault
from aifx.core.extras import install_command
from aifx.core.json_files import encode
from aifx.core.json_values import encode_json
from aifx.core.os_errors import first_line
from aifx.core.version import __version__
from aifx.lines.events import Event
from aifx.lines.file import Target

if TYPE_CHECKING:
    import httpx
    from standardwebhooks import Webhook

TIMEOUT_S = 15.0
"""Seconds of a whole attempt: Standard Webhooks advises senders to wait for 15 to 30."""
FINISH_S, MOST_BODY_BYTES = 1.0, 1 << 16

CONTENT_TYPE = "application/cloudevents+json; charset=UTF-8"
REFERENCE = "docs/notify.md"

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address
_UNICAST = ipaddress.ip_network("2000::/3")  # all that IANA has given out; ::127.0.0.1 and fec0::/10 are elsewhere
MOST_SECRET_BYTES, LEAST_SECRET_BYTES = 64, 24  # Standard Webhooks


@dataclass(frozen=True)
class Receiver:
    """A target with its secrets, which are in no message, and the authorities that TLS trusts."""

    target: Target
    url: httpx.URL
    webhook: Webhook
    tls: ssl.SSLContext

    @property
    def place(self) -> str:
        """Scheme and host of its URL, the rest of which is a secret."""
        return f"{self.url.scheme}://{self.url.host}"

    @property
    def host(self) -> str:
        """The name that is resolved and that TLS verifies: ASCII, as the request names it."""
        return self.url.raw_host.decode()


class Refused(Exception):
    """An attempt failed. The text is the reason, without the secrets of the URL.

    Attributes:
        is_down: nobody answered, so that other events would have the same fate.
    """

    def __init__(self, reason: str, *, is_down: bool = False) -> None:
        super().__init__(reason)
        self.is_down = is_down


def open_receiver(target: Target, environ: Mapping[str, str]) -> Receiver:
    """The receiver of a target. Raises ConfigError naming the variable that is unset or cannot be used.

    Raises EnvironmentFault without the package standardwebhooks.
    """
    import httpx

    try:
        from standardwebhooks import Webhook
    except ImportError as e:
        what = "signatures of events need the package standardwebhooks"
        raise EnvironmentFault(what, first_line(e), install_command("notify")) from e
    values = {}
    for name in (target.url_from, target.secret_from):
        if not (value := environ.get(name, "").strip()):
            what = f"the environment variable {name} is not set"
            raise ConfigError(what, f"the target {target.name} asks for it", f"export {name}=...    ({REFERENCE})")
        values[name] = value
    try:
        url = httpx.URL(values[target.url_from])
        is_usable = url.scheme in ("https", "http") and bool(url.host) and 0 < (url.port or 443) < 1 << 16
    except (httpx.InvalidURL, UnicodeError):  # whose texts have parts of the URL: a "/" in a password ends a host
        is_usable = False
    if not is_usable:
        why = "it is https://HOST/..., or http:// if `allow` names the network of its host"
        raise ConfigError(f"{target.url_from} has no URL of a webhook", why, REFERENCE)
    secret = values[target.secret_from]
    try:  # with another alphabet, the library would take the rest for the secret
        size = len(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
    except ValueError:
        size = 0
    if not LEAST_SECRET_BYTES <= size <= MOST_SECRET_BYTES:
        why = f"it is whsec_ and {LEAST_SECRET_BYTES} to {MOST_SECRET_BYTES} bytes in base64"
        hint = f'export {target.secret_from}="whsec_$(openssl rand -base64 24)"'
        raise ConfigError(f"{target.secret_from} has no secret of a webhook", why, hint)
    return Receiver(target, url, Webhook(secret), _tls(environ.get("SSL_CERT_FILE", "")))


def _tls(authorities: str) -> ssl.SSLContext:
    """TLS that verifies, and also trusts the authorities in a file."""
    import httpx

    context = httpx.create_ssl_context(trust_env=False)
    if authorities:
        try:
            context.load_verify_locations(authorities)
        except OSError as e:  # SSLError is one
            why = f"{authorities}: {first_line(e)}"
            raise ConfigError("SSL_CERT_FILE has no certificates", why, f"ls -l {authorities}") from None
    return context


async def post(connections: httpx.AsyncHTTPTransport, receiver: Receiver, event: Event) -> int:
    """Deliver an event by `open_connections`. Returns the HTTP status of the success. Raises Refused."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _post(connections, receiver, event)
    except TimeoutError:
        raise Refused(f"no answer within {TIMEOUT_S:g} s", is_down=True) from None


def open_connections(receiver: Receiver) -> httpx.AsyncHTTPTransport:
    """Connections to one receiver, which verify TLS, follow no redirect and take no proxy from the environment.

    Not for several receivers: two names may have one address, and a connection is verified for one name. Not a client
    of httpx, which logs each URL.
    """
    import httpx

    return httpx.AsyncHTTPTransport(verify=receiver.tls, trust_env=False)


async def _post(connections: httpx.AsyncHTTPTransport, receiver: Receiver, event: Event) -> int:
    import httpx

    body = encode(encode_json(event.cloud_event(), ensure_ascii=False))
    now = datetime.now(UTC).replace(microsecond=0)  # each attempt is signed with its own time
    headers = {
        "Host": receiver.url.netloc.decode(),
        "Content-Type": CONTENT_TYPE,
        "User-Agent": f"aifx/{__version__}",
        "webhook-id": event.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": receiver.webhook.sign(event.id, now, body.decode()),
        **_login(receiver.url),
    }
    reasons = []
    for address in await _addresses(receiver):
        # TLS verifies the name, although the connection is to an address.
        request = httpx.Request(
            "POST", receiver.url.copy_with(host=str(address), userinfo=b""), content=body, headers=headers,
            extensions={"sni_hostname": receiver.host, "timeout": httpx.Timeout(TIMEOUT_S).as_dict()},
        )  # fmt: skip
        try:
            response = await connections.handle_async_request(request)
        except httpx.TransportError as e:
            reasons.append(_reason(e))
            if isinstance(e, httpx.ConnectError | httpx.ConnectTimeout):
                continue  # another address of the name may answer
            break
        try:
            return _judge(response)
        finally:
            await _finish(response)
    raise Refused(f"{receiver.place}: {'; '.join(reasons)}", is_down=True)


def _reason(error: httpx.TransportError) -> str:
    """Why there was no answer. Nothing that the receiver sent: it may repeat the URL, which is a secret."""
    import httpx

    if isinstance(error, httpx.RemoteProtocolError):
        return "RemoteProtocolError: the connection was closed before an answer, or the answer is not HTTP"
    hint = "; SSL_CERT_FILE names the authority to trust" if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
    return f"{type(error).__name__}: {first_line(error) or 'the connection was closed'}{hint}"


async def _finish(response: httpx.Response) -> None:
    """Read a short body, so that the connection can be used again. Nothing of the body counts."""
    import httpx

    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(FINISH_S):
            if 0 <= int(response.headers.get("content-length", -1)) <= MOST_BODY_BYTES:
                async for _ in response.aiter_raw():
                    pass
    with suppress(httpx.HTTPError):
        await response.aclose()


def _login(url: httpx.URL) -> dict[str, str]:
    if not url.userinfo:
        return {}
    return {"Authorization": f"Basic {base64.b64encode(f'{url.username}:{url.password}'.encode()).decode()}"}


def _judge(response: httpx.Response) -> int:
    code = response.status_code
    if response.is_success:
        return code
    status = f"{code} {HTTPStatus(code).phrase}" if code in set(HTTPStatus) else str(code)
    if 300 <= code < 400:
        raise Refused(f"{status}: redirects are refused; use the URL of the receiver itself")
    raise Refused(status)


async def _addresses(receiver: Receiver) -> list[Address]:
    """The addresses of a receiver that aifx may connect to. Raises Refused if there are none."""
    url, allow = receiver.url, [ipaddress.ip_network(network) for network in receiver.target.allow]
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(receiver.host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as e:  # UnicodeError of a name that no DNS can have
        raise Refused(f"{url.host} cannot be resolved: {first_line(e)}", is_down=True) from None
    addresses = list(dict.fromkeys(ipaddress.ip_address(one[4][0]) for one in found))
    named = [address for address in addresses if any(address in network for network in allow)]
    if url.scheme == "http":
        addresses, why = named, 'http:// is not encrypted, and is for networks that `allow` names: allow = ["{}/{}"]'
    else:
        allowed = [address for address in addresses if address in named or is_public(address)]
        addresses, why = allowed, 'it is not a public address: allow = ["{}/{}"] lets aifx connect to it'
    if not addresses:
        refused = ipaddress.ip_address(found[0][4][0])
        named_so = "" if receiver.host == str(refused) else f"{url.host} is "
        raise Refused(f"{named_so}{refused}; {why.format(refused, refused.max_prefixlen)}", is_down=True)
    return addresses


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet: not private, loopback, link-local, shared, reserved or multicast.

    An IPv6 address that stands for an IPv4 address is judged by that.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    return address.is_global and not address.is_multicast
