"""Arguments that verbs share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from os import PathLike
from typing import Any

from aifx.core.errors import UsageError

StrPath = str | PathLike[str]
Step = int | str | None
"""A step that has a checkpoint, "best", "last", or None for `eval.checkpoint`."""
Settings = Mapping[str, Any] | Sequence[str] | None
"""Values over those of `aifx.toml`, by key: `{"train.num_steps": 100}`, or `["train.num_steps=100"]` as `--set`."""


def check_number(option: str, value: float, most: float = math.inf) -> None:
    """Raise UsageError for a number of an option that is below 0, above the largest one, infinite or no number."""
    if not (0 <= value <= most and math.isfinite(value)):
        why = "it is a finite number, at least 0" if most == math.inf else f"it is at least 0 and at most {most:g}"
        raise UsageError(f"{option} {value:g} cannot be used", why, f"{option} 0.5")


def overrides(settings: Settings) -> list[str]:
    """Settings as `--set` takes them."""
    from aifx.config.toml import literal

    if not isinstance(settings, Mapping):
        return list(settings or ())
    return [f"{key}={literal(value)}" for key, value in settings.items()]


def time_of(option: str, time: str | datetime | None) -> datetime:
    """The time of an option in ISO 8601, in UTC if it has no zone; now without one. Raises UsageError."""
    try:
        found = datetime.fromisoformat(time) if isinstance(time, str) else time or datetime.now(UTC)
    except ValueError as e:
        raise UsageError(f"{option} {time} is no time", str(e), f"{option} 2026-11-30T14:00:00+01:00") from e
    return found if found.tzinfo else found.replace(tzinfo=UTC)
