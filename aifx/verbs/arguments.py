"""Arguments that verbs share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

StrPath = str | PathLike[str]
Step = int | str | None
"""A step that has a checkpoint, "best", "last", or None for `eval.checkpoint`."""
Settings = Mapping[str, Any] | Sequence[str] | None
"""Values over those of `aifx.toml`, by key: `{"train.num_steps": 100}`, or `["train.num_steps=100"]` as `--set`."""


def overrides(settings: Settings) -> list[str]:
    """Settings as `--set` takes them."""
    from aifx.config.toml import literal

    if not isinstance(settings, Mapping):
        return list(settings or ())
    return [f"{key}={literal(value)}" for key, value in settings.items()]
