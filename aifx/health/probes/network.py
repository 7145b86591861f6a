"""Network cards, the default route, and the machine's own name."""

from __future__ import annotations

import socket
import time
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host, within
from aifx.health.probes import Probe

NET = "/sys/class/net"
IFF_UP = 1
NAME_LIMIT_S = 1.5


def collect(host: Host) -> dict[str, Any]:
    name = host.measure("own_name", own_name)
    return {
        "network": {
            "interfaces": _interfaces(host),
            "has_default_route": _has_default_route(host),
            "name_resolves": name.get("resolves") if isinstance(name, dict) else name,
            "name_took_ms": name.get("took_ms") if isinstance(name, dict) else name,
        }
    }


def own_name() -> dict[str, Any]:
    """Return whether the machine's own name resolves, and how long that took."""
    began = time.monotonic()
    try:
        within(NAME_LIMIT_S, lambda: socket.getaddrinfo(socket.gethostname(), None), "resolving the own name")
        resolves = True
    except (OSError, UnicodeError):  # including TimeoutError
        resolves = False
    return {"resolves": resolves, "took_ms": round(1000 * (time.monotonic() - began), 2)}


def _interfaces(host: Host) -> Any:
    """Return network cards, without bridges, bonds, virtual functions and interfaces of containers."""
    names = host.names(NET)
    if not isinstance(names, list):
        return names
    cards = [n for n in names if host.exists(f"{NET}/{n}/device") and not host.exists(f"{NET}/{n}/device/physfn")]
    if not cards:
        return Absent("no network card is visible here; a container needs the host's network")
    found = [_interface(host, name) for name in cards]
    alike: dict[Any, list[dict[str, Any]]] = {}
    for one in found:
        if one["is_up"] is True and one["state"] == "up":
            alike.setdefault(one["model"], []).append(one)
    for one in found:
        peers = [peer for peer in alike.get(one["model"], []) if peer is not one]
        one["peer_speed_gbit"] = agreed([peer["speed_gbit"] for peer in peers])
        one["peer_mtu"] = agreed([peer["mtu"] for peer in peers])
    return found


def agreed(figures: list[Any]) -> Any:
    """Return the value of all other cards of a kind. Of two that differ, or of two groups, none is the odd one."""
    first = figures[0] if len(figures) > 1 and len(set(map(str, figures))) == 1 else None
    return first if isinstance(first, (int, float)) else Absent("fewer than two others of this kind agree")


def _interface(host: Host, name: str) -> dict[str, Any]:
    folder = f"{NET}/{name}"
    flags, speed = host.number(f"{folder}/flags"), host.number(f"{folder}/speed")
    # The type separates InfiniBand from Ethernet, the subsystem separates vendors of cards with the same chip.
    model = [host.read(f"{folder}/{part}") for part in ("device/vendor", "device/device", "type")]
    subsystem = host.read(f"{folder}/device/subsystem_device")
    link = host.link(f"{folder}/device")
    errors = [host.number(f"{folder}/statistics/{way}_errors") for way in ("rx", "tx")]
    whole = [error for error in errors if isinstance(error, int)]
    return {
        "device": name,
        "model": ":".join(m for m in (*model, subsystem) if isinstance(m, str)),
        "address": link.rpartition("/")[2] if isinstance(link, str) else "",
        "is_up": bool(flags & IFF_UP) if isinstance(flags, int) else flags,
        "state": host.read(f"{folder}/operstate"),
        "carrier_changes": host.number(f"{folder}/carrier_changes"),
        "errors": sum(whole)
        if len(whole) == len(errors)
        else errors[0]
        if not isinstance(errors[0], int)
        else errors[1],
        "speed_gbit": _speed(speed),
        "duplex": host.read(f"{folder}/duplex"),
        "mtu": host.number(f"{folder}/mtu"),
    }


def _speed(speed: Any) -> Any:
    """Return Gb/s; virtual cards report -1, some as an unsigned number."""
    if isinstance(speed, int):
        return speed / 1000 if 0 < speed < 1 << 31 else Absent("the card reports no speed")
    return speed


def _has_default_route(host: Host) -> bool | Absent | Unknown:
    four, six = host.read("/proc/net/route"), host.read("/proc/net/ipv6_route")
    if not isinstance(four, str):
        return four
    lines = [line.split() for line in four.splitlines()[1:]]
    if any(len(line) > 7 and line[1] == line[7] == "00000000" for line in lines):
        return True
    lines = [line.split() for line in six.splitlines()] if isinstance(six, str) else []
    return any(len(line) > 9 and line[0] == "0" * 32 and line[1] == "00" and line[9] != "lo" for line in lines)


PROBES = (Probe("network", ("network",), collect),)
