"""What is read of a machine: a module a family, each with its `PROBES`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aifx.health.host import Host


@dataclass(frozen=True)
class Probe:
    """One thing that reads.

    Attributes:
        name: what it is called in messages.
        gives: the facts (first names of paths) that it gives, all of them each time.
        collect: reads them. What is not there is `Absent`, what cannot be read `Unknown`; it need not catch anything:
            what it raises makes all of its facts `Unknown`.
        limit_s: after which it is given up.
        for_peers: whether nodes of a fleet are compared by it, so that it is read though no rule asks.
    """

    name: str
    gives: tuple[str, ...]
    collect: Callable[[Host], dict[str, Any]]
    limit_s: float = 3.0
    for_peers: bool = False


def all_probes() -> list[Probe]:
    """Those of every module here."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return [probe for module in modules for probe in getattr(module, "PROBES", ())]
