"""Training: the loop, its state on disk, divergence, signals. `train` is the way in.

Imported lazily, so that signals can be heard before jax is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifx.training.records import Observer, Record, RunInfo, TrainResult
    from aifx.training.run import train
    from aifx.training.signals import StopSignals

_HOMES = {
    "Observer": "records",
    "Record": "records",
    "RunInfo": "records",
    "StopSignals": "signals",
    "TrainResult": "records",
    "train": "run",
}

__all__ = ["Observer", "Record", "RunInfo", "StopSignals", "TrainResult", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
