"""What the kernel log tells of a machine besides Xids, by kind of event, as catalogues/kernel_events.toml has them."""

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
"""Of a kind that are reported."""
PCI = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"


@dataclass(frozen=True)
class Kind:
    """Attributes:
    name: of the list in `kernel_events`.
    holds: what every such line holds; looked for first because that is quick.
    pattern: which line is one, with the groups `device` and `what`.
    line: an example.
    """

    name: str
    holds: str
    pattern: re.Pattern[str]
    line: str


class Event(NamedTuple):
    """A line that is of a kind.

    Attributes:
        kind: its name.
        device: what it happened to; empty for the machine.
        what: a word more.
    """

    kind: str
    device: str
    what: str
    line: Line


@cache
def kinds() -> tuple[Kind, ...]:
    """The first that fits has a line."""
    text = resources.files("aifx.health").joinpath("catalogues", "kernel_events.toml").read_text("utf-8")
    return tuple(
        Kind(event["kind"], event["holds"], re.compile(event["pattern"].replace("<pci>", PCI)), event["line"])
        for event in tomli.loads(text)["event"]
    )


def recognize(lines: Sequence[Line], give_up_at: float = math.inf) -> tuple[list[Event], int]:
    """The events among the lines, oldest first, and how many lines were looked at, from the last one on.

    Args:
        give_up_at: the time, of `time.monotonic`, from which no further line is looked at.
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
    """For each kind the things that it happened to; none where it did not happen."""
    groups: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        groups.setdefault((event.kind, event.device), []).append(event)
    found: dict[str, list[dict[str, Any]]] = {kind.name: [] for kind in kinds()}
    for (name, _), group in groups.items():
        if len(found[name]) < MOST_DEVICES:
            found[name].append(_facts_of(group))
    return found


def _facts_of(events: list[Event]) -> dict[str, Any]:
    """Of one kind and device. Secrets are looked for in the last line alone, because that takes long."""
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
    """The kind of event that a line tells of, and how it was recognized; ("", None) for any other line."""
    for kind in kinds():
        if kind.holds in text and (match := kind.pattern.search(text)):
            return kind.name, match
    return "", None
