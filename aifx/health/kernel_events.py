"""What the kernel log tells of a machine besides Xids, by kind of event, as catalogues/kernel_events.toml has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

import tomli

from aifx.health.kernel_log import Line
from aifx.health.xids import DAY_S, excerpt

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


@dataclass
class Group:
    """Attributes:
    ages: of the lines, seconds.
    what: a word more of the last.
    text: the last.
    """

    ages: list[float] = field(default_factory=list)
    what: str = ""
    text: str = ""


@cache
def kinds() -> tuple[Kind, ...]:
    """The first that fits has a line."""
    text = resources.files("aifx.health").joinpath("catalogues", "kernel_events.toml").read_text("utf-8")
    return tuple(
        Kind(event["kind"], event["holds"], re.compile(event["pattern"].replace("<pci>", PCI)), event["line"])
        for event in tomli.loads(text)["event"]
    )


def facts(lines: Iterable[Line]) -> dict[str, list[dict[str, Any]]]:
    """For each kind the things that it happened to; none where it did not happen."""
    groups: dict[tuple[str, str], Group] = {}
    for line in lines:
        name, match = kind_of(line.text)
        if match is not None:
            found = match.groupdict()
            group = groups.setdefault((name, excerpt(found.get("device") or "")), Group())
            group.ages.append(line.age_s)
            group.what, group.text = excerpt(found.get("what") or ""), excerpt(line.text)
    told: dict[str, list[dict[str, Any]]] = {kind.name: [] for kind in kinds()}
    for (name, device), group in groups.items():
        told[name].append(
            {
                "device": device,
                "what": group.what,
                "count": len(group.ages),
                "count_24h": sum(age <= DAY_S for age in group.ages),
                "last_age_s": int(min(group.ages)),
                "text": group.text,
            }
        )
    return told


def kind_of(text: str) -> tuple[str, re.Match[str] | None]:
    """The kind of event that a line tells of, and how it was recognized; ("", None) for any other line."""
    for kind in kinds():
        if kind.holds in text and (match := kind.pattern.search(text)):
            return kind.name, match
    return "", None
