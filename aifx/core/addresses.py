"""Addresses that only this machine can reach, and pages that may ask a server there."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress


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
