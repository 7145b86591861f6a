"""Which checkpoints stay."""

from __future__ import annotations

import math
from collections.abc import Mapping


def kept(losses: Mapping[int, float | None], keep_last: int, keep_best: int) -> set[int]:
    """The steps that stay: the newest `keep_last`, and the `keep_best` of lowest validation loss.

    Args:
        losses: validation loss by step; None for a step that was not validated.
    """
    newest = sorted(losses)[-keep_last:] if keep_last > 0 else []
    return {*newest, *ranked(losses)[:keep_best]}


def ranked(losses: Mapping[int, float | None]) -> list[int]:
    """Validated steps, the best first; of equals the earlier."""
    validated = [(loss, step) for step, loss in losses.items() if loss is not None and math.isfinite(loss)]
    return [step for _, step in sorted(validated)]
