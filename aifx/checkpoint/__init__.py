"""Checkpoints: saved, verified, kept and named. docs/checkpoints.md describes the format.

What needs jax is imported when it is asked for, so that listing checkpoints stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifx.checkpoint.checkpoints import Checkpoints, Restored, Verification
    from aifx.checkpoint.digest import state_digest
    from aifx.checkpoint.listing import CheckpointInfo, list_checkpoints
    from aifx.checkpoint.manifest import Damaged
    from aifx.checkpoint.naming import from_named, to_named

_HOMES = {
    "Checkpoints": "checkpoints",
    "Restored": "checkpoints",
    "Verification": "checkpoints",
    "state_digest": "digest",
    "CheckpointInfo": "listing",
    "list_checkpoints": "listing",
    "Damaged": "manifest",
    "from_named": "naming",
    "to_named": "naming",
}

__all__ = [
    "CheckpointInfo",
    "Checkpoints",
    "Damaged",
    "Restored",
    "Verification",
    "from_named",
    "list_checkpoints",
    "state_digest",
    "to_named",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
