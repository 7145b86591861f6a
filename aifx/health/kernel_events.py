"""Events of the kernel log except Xids, by the kinds of catalogues/kernel_events.toml."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from aifx.health.kernel_log import Line
from aifx.health.tables import read_table
from aifx.health.xids import DAY_S, excerpt

LINES_PER_CLOCK = 1000
MOST_DEVICES = 1000
"""Devices reported per kind."""
PCI = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"


class Kind(NamedTuple):
    """Attributes:
    name: the name of its list in `kernel_events`.
    holds: a text in every such line; searched first, because that is fast.
    pattern: matches such a line, with the groups `device` (that failed; none for the machine) and `what` (a detail).
    line: an example.
    """

    name: str
    holds: str
    pattern: re.Pattern[str]
    line: str


@cache
def kinds() -> tuple[Kind, ...]:
    """Return the kinds. A line is of the first that matches."""
    return tuple(
        Kind(event["kind"], event["holds"], re.compile(event["pattern"].replace("<pci>", PCI)), event["line"])
        for event in read_table("catalogues", "kernel_events.toml")["event"]
    )


def facts(lines: Sequence[Line], give_up_at: float = math.inf) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Return the failed devices for each kind, and the number of lines searched, from the last one.

    Args:
        lines: oldest first.
        give_up_at: the time, of `time.monotonic`, at which the search stops.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {kind.name: {} for kind in kinds()}
    searched = 0
    for line in reversed(lines):
        if searched and searched % LINES_PER_CLOCK == 0 and time.monotonic() >= give_up_at:
            break
        searched += 1
        kind, match = kind_of(line.text)
        if match is None:
            continue
        device, what = (match.groupdict().get(name) or "" for name in ("device", "what"))
        if device not in found[kind] and len(found[kind]) < MOST_DEVICES:
            # Only the last line of a device is searched for secrets, because that is slow.
            texts = {"device": excerpt(device), "what": excerpt(what)}
            ages = {"count": 0, "count_24h": 0, "last_age_s": int(line.age_s)}
            found[kind][device] = {**texts, **ages, "text": excerpt(line.text)}
        if event := found[kind].get(device):
            event["count"] += 1
            event["count_24h"] += line.age_s <= DAY_S
            event["last_age_s"] = min(event["last_age_s"], int(line.age_s))
    return {kind: list(events.values())[::-1] for kind, events in found.items()}, searched


def kind_of(text: str) -> tuple[str, re.Match[str] | None]:
    """Return the kind of a line's event and its match; ("", None) for any other line."""
    for kind in kinds():
        if kind.holds in text and (match := kind.pattern.search(text)):
            return kind.name, match
    return "", None
