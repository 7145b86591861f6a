"""This host: its processor, its devices as JAX names them, and the versions that are installed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import socket
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from aifx.core.version import __version__
from aifx.machine.cpu import cpu_of

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "grain", "orbax-checkpoint", "tensorstore", "tokenizers")


class Device(Protocol):
    """The part of a `jax.Device` that provenance reads."""

    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...


@cache
def versions() -> dict[str, str]:
    """Installed versions, without importing anything."""
    found = {"python": platform.python_version(), "aifx": __version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(devices: Sequence[Device]) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "os": platform.platform(),
        **cpu_of(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": devices[0].platform if devices else None,
        "device_kind": devices[0].device_kind if devices else None,
        "num_devices": len(devices),
        "num_processes": len({getattr(device, "process_index", 0) for device in devices}),
    }
