"""Where a value of the configuration came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OriginKind = Literal["default", "preset", "file", "env", "set"]
"""In order of precedence, the lowest first."""


@dataclass(frozen=True)
class Origin:
    """Where a value came from. `where`: "default", "preset gpt2-124m", "aifx.toml:12", "AIFX_TRAIN__SEED", "--set"."""

    kind: OriginKind
    where: str


DEFAULT = Origin("default", "default")
