"""Options of attention over scores, which training and decoding share."""

from __future__ import annotations

import math

import numpy as np


def check_score_options(window: int | None, scale: float | None, logit_softcap: float | None) -> None:
    """Raise ValueError naming the option that cannot be used."""
    if window is not None and (not isinstance(window, int | np.integer) or window < 1):
        raise ValueError(f"window: expected a positive integer or None, got {window!r}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"scale: expected a finite number, got {scale!r}")
    if logit_softcap is not None and not (math.isfinite(logit_softcap) and logit_softcap > 0):
        raise ValueError(f"logit_softcap: expected a positive number or None, got {logit_softcap!r}")
