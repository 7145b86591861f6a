"""Network cards, the default route, and the machine's own name."""

from __future__ import annotations

import socket
import time
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host, within
from aifx.health.probing import first_missing, probe, text_of

NET = "/sys/class/net"
IFF_UP = 1
NAME_LIMIT_S = 1.5


@probe("network")
def collect(host: Host) -> dict[str, Any]:
    name = host.measure("own_name", own_name)
    return {
        "interfaces": _interfaces(host),
        "has_default_route": _has_default_route(host),
        "name_resolves": name.get("resolves") if isinstance(name, dict) else name,
        "name_took_ms": name.get("took_ms") if isinstance(name, dict) else name,
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
    up = [one for one in found if one["is_up"] is True and one["state"] == "up"]
    for one in found:
        peers = [peer for peer in up if peer["model"] == one["model"] and peer is not one]
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
    if isinstance(speed, int):  # in Mb/s; virtual cards report -1, some as an unsigned number
        speed = speed / 1000 if 0 < speed < 1 << 31 else Absent("the card reports no speed")
    # The type separates InfiniBand from Ethernet, the subsystem separates vendors of cards with the same chip.
    parts = ("device/vendor", "device/device", "type", "device/subsystem_device")
    model = [text_of(host, f"{folder}/{part}") for part in parts]
    link = host.link(f"{folder}/device")
    errors: list[Any] = [host.number(f"{folder}/statistics/{way}_errors") for way in ("rx", "tx")]
    return {
        "device": name,
        "model": ":".join(filter(None, model)),
        "address": link.rpartition("/")[2] if isinstance(link, str) else "",
        "is_up": bool(flags & IFF_UP) if isinstance(flags, int) else flags,
        "state": host.read(f"{folder}/operstate"),
        "carrier_changes": host.number(f"{folder}/carrier_changes"),
        "errors": first_missing(*errors) or sum(errors),
        "speed_gbit": speed,
        "duplex": host.read(f"{folder}/duplex"),
        "mtu": host.number(f"{folder}/mtu"),
    }


def _has_default_route(host: Host) -> bool | Absent | Unknown:
    four = host.read("/proc/net/route")
    if not isinstance(four, str):
        return four
    v4 = [line.split() for line in four.splitlines()[1:]]
    v6 = [line.split() for line in text_of(host, "/proc/net/ipv6_route").splitlines()]
    is_v4 = any(len(line) > 7 and line[1] == line[7] == "00000000" for line in v4)
    is_v6 = any(len(line) > 9 and line[0] == "0" * 32 and line[1] == "00" and line[9] != "lo" for line in v6)
    return is_v4 or is_v6
