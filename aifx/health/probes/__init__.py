"""The probes of a machine: one module per family, each with functions that `probe` registers."""

from __future__ import annotations

import importlib
import pkgutil

from aifx.health.probing import Probe, registered_probes


def all_probes() -> list[Probe]:
    """Return the probes of all modules."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return registered_probes()
