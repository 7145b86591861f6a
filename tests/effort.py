"""How much of what could be tried is tried: a sample in `make test` and `.ci/run`, everything in `make test-long`."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import settings

IS_LONG = os.environ.get("LONG") == "1"


def examples(count: int, **options: Any) -> settings:
    """Settings of a property each of whose examples compiles programs: `count` examples, ten times as many when long."""
    return settings(max_examples=10 * count if IS_LONG else count, deadline=None, **options)


def sample(count: int, share: float) -> int:
    """All of `count` when long, otherwise that share."""
    return count if IS_LONG else round(count * share)
