"""The clock: its daemon, its offset and its source."""

from __future__ import annotations

import re
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host
from aifx.health.probing import probe

SOURCE = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "min": 6e4, "h": 3.6e6, "d": 8.64e7}
NO_DAEMON = Absent("no daemon that sets the clock runs here; in a container, the host sets it")
FROM_DAEMON = ("daemon", "is_synchronized", "offset_ms", "direction", "error_ms")


@probe("clock", limit_s=4.0)
def collect(host: Host) -> dict[str, Any]:
    state = _chrony(host) or _timedatectl(host) or dict.fromkeys(FROM_DAEMON, NO_DAEMON)
    return {"source": host.read(SOURCE), **state, "ptp": _ptp(host)}


def _chrony(host: Host) -> dict[str, Any] | None:
    """Return the report of chronyd; None if it does not run."""
    text = host.run("chronyc", "-c", "tracking", limit_s=1.2)
    if isinstance(text, Absent) or (isinstance(text, Unknown) and "Cannot talk to daemon" in text.why):
        return None
    if isinstance(text, Unknown):
        return dict.fromkeys(FROM_DAEMON, text) | {"daemon": "chrony"}
    words = text.strip().split(",")
    try:
        offset, delay, dispersion = (float(words[at]) for at in (4, 10, 11))
        leap = words[13]
    except (IndexError, ValueError):
        return dict.fromkeys(FROM_DAEMON, Unknown(f"aifx does not understand the output of chronyc: {text[:60]!r}"))
    return {
        "daemon": "chrony",
        "is_synchronized": leap != "Not synchronised",
        "offset_ms": _rounded(abs(offset) * 1000),
        "direction": "behind" if offset > 0 else "ahead",
        # The largest possible offset of the clock (chronyc(1), tracking: root dispersion).
        "error_ms": _rounded((abs(offset) + dispersion + delay / 2) * 1000),
    }


def _timedatectl(host: Host) -> dict[str, Any] | None:
    """Return the report of systemd; None if it does not run, or nothing sets the clock through it."""
    text = host.run("timedatectl", "show", limit_s=1.2)
    if isinstance(text, Absent) or (isinstance(text, Unknown) and "gave no answer" not in text.why):
        return None  # it fails because systemd does not run
    if isinstance(text, Unknown):
        return dict.fromkeys(FROM_DAEMON, text)
    state = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    synchronized = {"yes": True, "no": False}.get(state.get("NTPSynchronized", ""))
    status = host.run("timedatectl", "timesync-status", limit_s=1.2)
    offset = re.search(r"^\s*Offset: ([+-]?)(.+)$", status, re.MULTILINE) if isinstance(status, str) else None
    not_reported = Absent("only chrony and systemd-timesyncd report the offset of the clock")
    unknown = Unknown("timedatectl does not report NTPSynchronized")
    return {
        "daemon": "systemd-timesyncd" if offset else "one that systemd does not name",
        "is_synchronized": unknown if synchronized is None else synchronized,
        "offset_ms": _milliseconds(offset[2]) if offset else not_reported,
        "direction": ("behind" if offset[1] != "-" else "ahead") if offset else not_reported,
        "error_ms": not_reported,
    }


def _milliseconds(text: str) -> float | Unknown:
    """Return milliseconds for systemd's "1min 2.003s" or "812us"."""
    parts = [float(number) * UNITS_MS[unit] for number, unit in re.findall(r"([\d.]+)(us|ms|min|s|h|d)\b", text)]
    return _rounded(sum(parts)) if parts else Unknown(f"{text[:40]!r} is not a time")


def _rounded(ms: float) -> float:
    return round(ms) if abs(ms) >= 1000 else round(ms, 6)


def _ptp(host: Host) -> Any:
    """Return the card's clock under ptp4l, through its socket."""
    if host.is_live and not host.exists("/var/run/ptp4l"):
        return Absent("ptp4l does not run here")
    text = host.run("pmc", "-u", "-b", "0", "GET TIME_STATUS_NP", limit_s=1.2)
    if not isinstance(text, str):
        return Absent("ptp4l does not run here") if isinstance(text, Absent) else text
    offset, present = (re.search(rf"^\s*{name}\s+(\S+)", text, re.MULTILINE) for name in ("master_offset", "gmPresent"))
    if not offset or not present or not re.fullmatch(r"-?\d+", offset[1]):
        return Unknown("ptp4l gave no answer to pmc", "run aifx doctor as root; check whether ptp4l hangs")
    return {"has_grandmaster": present[1] == "true", "offset_us": abs(int(offset[1])) / 1000}
