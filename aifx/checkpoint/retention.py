"""Which checkpoints stay."""

from __future__ import annotations

import math
from collections.abc import Mapping


def kept(costs: Mapping[int, float | None], keep_last: int, keep_best: int) -> set[int]:
    """The steps that stay: the newest `keep_last`, and the `keep_best` of lowest cost.

    Args:
        costs: by step, less is better; None for a step that was not validated.
    """
    newest = sorted(costs)[-keep_last:] if keep_last > 0 else []
    return {*newest, *ranked(costs)[:keep_best]}


def ranked(costs: Mapping[int, float | None]) -> list[int]:
    """Validated steps, the best first; of equals the earlier."""
    validated = [(cost, step) for step, cost in costs.items() if cost is not None and math.isfinite(cost)]
    return [step for _, step in sorted(validated)]
