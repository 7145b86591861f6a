"""The probes of a machine: one module per family, each with its `PROBES`."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.host import Host


@dataclass(frozen=True)
class Probe:
    """A function that reads facts.

    Attributes:
        name: its name in messages.
        gives: the facts (first names of paths) that it returns each time.
        collect: reads them. A missing part is `Absent`, an unreadable one `Unknown`. An exception makes all of its
            facts `Unknown`.
        limit_s: the time limit.
        for_peers: whether nodes of a fleet are compared by it, so that it runs even if no rule needs it.
    """

    name: str
    gives: tuple[str, ...]
    collect: Callable[[Host], dict[str, Any]]
    limit_s: float = 3.0
    for_peers: bool = False


def all_probes() -> list[Probe]:
    """Return the probes of all modules."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return [probe for module in modules for probe in getattr(module, "PROBES", ())]


def listed(host: Host, folder: str, pattern: str = ".*") -> list[str]:
    """Return the names in a folder that match a pattern in full; none if the folder is missing or unreadable."""
    names = host.names(folder)
    return [name for name in names if re.fullmatch(pattern, name)] if isinstance(names, list) else []


def text_of(host: Host, path: str) -> str:
    """Return the text of a file; empty if it is missing or unreadable."""
    text = host.read(path)
    return text if isinstance(text, str) else ""


def first_number(host: Host, path: str) -> float | Absent | Unknown:
    """Return the number that begins a file of several."""
    text = host.read(path)
    if not isinstance(text, str):
        return text
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return Unknown(f"{path} has an unknown format: {text[:40]!r}")


def first_missing(*values: Any) -> Absent | Unknown | None:
    """Return the first value that is missing; None if all are there."""
    return next((value for value in values if isinstance(value, (Absent, Unknown))), None)
