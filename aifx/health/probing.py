"""Probes: functions that read facts of a machine, and what they read them with. Those of aifx are in `probes/`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host

F = TypeVar("F", bound=Callable[[Host], Any])


@dataclass(frozen=True)
class Probe:
    """A function that reads facts."""

    name: str
    gives: tuple[str, ...]  # facts (first names of paths), all of them each time
    collect: Callable[[Host], dict[str, Any]]
    limit_s: float
    for_peers: bool  # whether nodes of a fleet are compared by it, so that it runs even if no rule needs it


_registered: dict[str, Probe] = {}


def probe(*gives: str, limit_s: float = 3.0, for_peers: bool = False) -> Callable[[F], F]:
    """Register the decorated function as the probe of a fact, which it returns, or of several, in a dictionary.

    The first names it in messages. A missing part is `Absent`, an unreadable one `Unknown`. An exception makes all of
    the facts `Unknown`.
    """

    def register(function: F) -> F:
        def collect(host: Host) -> dict[str, Any]:
            found = function(host)
            return found if len(gives) > 1 else {gives[0]: found}

        _registered[gives[0]] = Probe(gives[0], gives, collect, limit_s, for_peers)
        return function

    return register


def registered_probes() -> list[Probe]:
    """Return the probes of the modules that are imported."""
    return [_registered[name] for name in sorted(_registered)]


def listed(host: Host, folder: str, pattern: str = ".*") -> list[str]:
    """Return the names in a folder that match a pattern in full; none if the folder is missing or unreadable."""
    names = host.names(folder)
    return [name for name in names if re.fullmatch(pattern, name)] if isinstance(names, list) else []


def text_of(host: Host, path: str) -> str:
    """Return the text of a file; empty if it is missing or unreadable."""
    text = host.read(path)
    return text if isinstance(text, str) else ""


def search_file(host: Host, path: str, pattern: str) -> re.Match[str] | Absent | Unknown:
    """Return the first match of a pattern in a file; ^ and $ match at its lines."""
    text = host.read(path)
    if not isinstance(text, str):
        return text
    return re.search(pattern, text, re.MULTILINE) or Unknown(f"{path} has an unknown format: {text[:40]!r}")


def first_missing(*values: Any) -> Absent | Unknown | None:
    """Return the first value that is missing; None if all are there."""
    return next((value for value in values if isinstance(value, (Absent, Unknown))), None)


def counted(**lists: list[Any]) -> dict[str, Any]:
    """Return each list, and its length as `num_<name>`."""
    return {name: value for key, items in lists.items() for name, value in ((key, items), (f"num_{key}", len(items)))}
