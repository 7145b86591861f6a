"""Numbers and times as people read them."""

from __future__ import annotations

import json
import time
from typing import Any

from aifx.core.plurals import mean_of


def figure(value: float | None) -> str | None:
    """A loss or another metric, to four places or digits; a count in full."""
    if value is None:
        return None
    if abs(value) >= 1000 and float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e4 or value == 0 else f"{value:.4g}"


def best(best_by: str | None, value: float | None, step: int | None, over: int | None) -> str | None:
    """The best validation of a run: "3.5197 at step 700", "accuracy 0.9120 at step 700 (mean of 3)"."""
    if value is None:
        return None
    metric = (best_by or "").partition(" ")[2]
    return f"{'' if metric in ('', 'loss') else f'{metric} '}{figure(value)} at step {step}{mean_of(over)}"


def signed(first: float | None, second: float | None) -> str | None:
    """Format a change from the first value to the second."""
    return None if first is None or second is None else f"{second - first:+.4f}"


def count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def rate(value: float | None, unit: str | None) -> str | None:
    """ "12,345 tokens/s"."""
    return None if value is None or unit is None else f"{value:,.0f} {unit}/s"


def literal(value: Any) -> str | None:
    """A setting's value."""
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


def clock(seconds: float) -> str:
    """ "3:07", "1:02:09"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def age(moment: float | None) -> str | None:
    """Format the time since a Unix time: "12 s ago", "3 h ago"."""
    if moment is None:
        return None
    seconds = max(time.time() - moment, 0.0)
    for limit, size, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds / 86400:.0f} days ago"


def date(moment: float | None) -> str | None:
    """A Unix time in this place's time."""
    try:
        return None if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
    except (ValueError, OverflowError, OSError):  # none that a calendar has
        return None
