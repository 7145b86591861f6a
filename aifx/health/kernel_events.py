"""Events of the kernel log except Xids, by the kinds of catalogues/kernel_events.toml."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import tomli

from aifx.health.kernel_log import Line
from aifx.health.xids import DAY_S, excerpt

LINES_PER_CLOCK = 1000
MOST_DEVICES = 1000
"""Events reported per kind."""
PCI = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"


@dataclass(frozen=True)
class Kind:
    """Attributes:
    name: the name of its list in `kernel_events`.
    holds: a text in every such line; searched first, because that is fast.
    pattern: matches such a line, with the groups `device` and `what`.
    line: an example.
    """

    name: str
    holds: str
    pattern: re.Pattern[str]
    line: str


class Event(NamedTuple):
    """A line that matches a kind.

    Attributes:
        kind: its name.
        device: the device that failed; empty for the machine.
        what: a detail.
    """

    kind: str
    device: str
    what: str
    line: Line


@cache
def kinds() -> tuple[Kind, ...]:
    """Return the kind of a line: the first that matches."""
    text = resources.files("aifx.health").joinpath("catalogues", "kernel_events.toml").read_text("utf-8")
    return tuple(
        Kind(event["kind"], event["holds"], re.compile(event["pattern"].replace("<pci>", PCI)), event["line"])
        for event in tomli.loads(text)["event"]
    )


def recognize(lines: Sequence[Line], give_up_at: float = math.inf) -> tuple[list[Event], int]:
    """Return the events among the lines, oldest first, and the number of lines searched, from the last one.

    Args:
        give_up_at: the time, of `time.monotonic`, at which the search stops.
    """
    events: list[Event] = []
    for number, line in enumerate(reversed(lines)):
        if number and number % LINES_PER_CLOCK == 0 and time.monotonic() >= give_up_at:
            return events[::-1], number
        name, match = kind_of(line.text)
        if match is not None:
            found = match.groupdict()
            events.append(Event(name, found.get("device") or "", found.get("what") or "", line))
    return events[::-1], len(lines)


def facts(events: Iterable[Event]) -> dict[str, list[dict[str, Any]]]:
    """Return the failed devices for each kind; an empty list for a kind without events."""
    groups: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        groups.setdefault((event.kind, event.device), []).append(event)
    found: dict[str, list[dict[str, Any]]] = {kind.name: [] for kind in kinds()}
    for (name, _), group in groups.items():
        if len(found[name]) < MOST_DEVICES:
            found[name].append(_facts_of(group))
    return found


def _facts_of(events: list[Event]) -> dict[str, Any]:
    """Return the facts of one kind and device. Only the last line is searched for secrets, because that is slow."""
    last = events[-1]
    ages = [event.line.age_s for event in events]
    return {
        "device": excerpt(last.device),
        "what": excerpt(last.what),
        "count": len(ages),
        "count_24h": sum(age <= DAY_S for age in ages),
        "last_age_s": int(min(ages)),
        "text": excerpt(last.line.text),
    }


def kind_of(text: str) -> tuple[str, re.Match[str] | None]:
    """Return the kind of a line's event and its match; ("", None) for any other line."""
    for kind in kinds():
        if kind.holds in text and (match := kind.pattern.search(text)):
            return kind.name, match
    return "", None
