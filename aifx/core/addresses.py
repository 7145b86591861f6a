"""Addresses that only this machine can reach."""

from __future__ import annotations

import ipaddress
import re


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host's address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_own_name(host: str) -> bool:
    """Return whether the header `Host` names only this machine."""
    name = re.sub(r":\d*$", "", host.strip()).lower().rstrip(".")
    return is_loopback(name.removeprefix("[").removesuffix("]"))
