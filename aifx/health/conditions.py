"""The condition of a rule: a table of comparisons, all of which must hold.

    fails_if = { above = 0 }
    fails_if = { below = { signal = "power.default_limit_w", times = 0.75 } }
    applies_if = { state = { equals = "up", known = ["up", "down"] } }

If a value has the wrong type for the comparison, or is not `known`, the answer is `Unknown`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.scope import Scope, formatted, is_number

ORDERINGS = {"above": operator.gt, "at_least": operator.ge, "below": operator.lt, "at_most": operator.le}
COMPARISONS = {
    "above": ">",
    "at_least": ">=",
    "below": "<",
    "at_most": "<=",
    "equals": "is",
    "not_equals": "is not",
    "any_of": "is one of",
    "none_of": "is none of",
    "matches": "matches",
    "contains": "contains",
    "lacks": "does not contain",
    "not_empty": "is not empty",
    "known": "is known:",
}


def holds(condition: Mapping[str, Any], value: Any, scope: Scope, least: float = -math.inf) -> bool | Absent | Unknown:
    """Return whether every comparison of `condition` holds for `value`; `Absent` if this machine has no such limit.

    A number below `least` is `Unknown`. A value that is `Absent` or `Unknown` is the answer.
    """
    if isinstance(value, (Absent, Unknown)):
        return value
    if "known" in condition and value not in condition["known"]:
        return Unknown(f"{formatted(value)} is unknown to this version of aifx")
    for name, asked in condition.items():
        limit = limit_of(asked, scope)
        if isinstance(limit, (Absent, Unknown)):
            return limit
        for number in filter(is_number, (value, limit)):
            if not (math.isfinite(number) and number >= least):
                return Unknown(f"it cannot be {number}")
        is_met = _is_met(name, value, limit)
        if is_met is not True:
            return is_met
    return True


def limit_of(asked: Any, scope: Scope) -> Any:
    """Return the limit: a value, or another signal times a factor plus a summand."""
    if not isinstance(asked, Mapping):
        return asked
    value = scope.look_up(asked["signal"])
    if isinstance(value, (Absent, Unknown)) or not asked.keys() - {"signal"}:
        return value
    if not is_number(value):
        return Unknown(f"{asked['signal']} is not a number but {formatted(value)}")
    return value * asked.get("times", 1) + asked.get("plus", 0)


def threshold_of(condition: Mapping[str, Any], scope: Scope | None = None) -> str:
    """Return a condition in words; with a scope, its limits as numbers."""
    parts = []
    for name, asked in condition.items():
        limit = asked if scope is None else limit_of(asked, scope)
        text = _asked(asked) if isinstance(limit, (Mapping, Absent, Unknown)) else _plain(limit, name in ORDERINGS)
        parts.append(COMPARISONS[name] if name == "not_empty" else f"{COMPARISONS[name]} {text}")
    return " and ".join(parts)


def _is_met(name: str, value: Any, limit: Any) -> bool | Unknown:
    if name in ORDERINGS:
        others = [one for one in (value, limit) if not is_number(one)]
        return Unknown(f"{formatted(others[0])} is not a number") if others else bool(ORDERINGS[name](value, limit))
    limits = limit if isinstance(limit, list) else [limit]
    if name in ("contains", "lacks", "not_empty"):
        if not isinstance(value, (list, str)):
            return Unknown(f"{formatted(value)} is neither a list nor a text")
        if name == "not_empty":
            return bool(value)
        if name == "lacks" and isinstance(value, str):  # almost every text lacks a given word
            return Unknown(f"{formatted(value)} is not a list")
        return any(item in value for item in limits) == (name == "contains")
    if name == "matches":
        is_text = isinstance(value, str)
        return re.search(limit, value) is not None if is_text else Unknown(f"{formatted(value)} is not a text")
    if name == "known":
        return True
    if not any(type(value) is type(item) or (is_number(value) and is_number(item)) for item in limits):
        return Unknown(f"{formatted(value)} has not the type of {formatted(limits[0] if limits else None)}")
    return (value in limits) == (name in ("equals", "any_of"))


def _asked(asked: Mapping[str, Any]) -> str:
    times = f"{asked['times']:g} x " if "times" in asked else ""
    plus = f" {'+' if asked['plus'] >= 0 else '-'} {abs(asked['plus']):g}" if "plus" in asked else ""
    return f"{times}{asked['signal']}{plus}"


def _plain(limit: Any, is_amount: bool) -> str:
    """Return a limit as text. Only amounts have separators of thousands: a code is not an amount."""
    if isinstance(limit, bool):
        return "true" if limit else "false"
    if is_number(limit) and is_amount:
        return f"{limit:,}" if isinstance(limit, int) else f"{limit:,.0f}" if abs(limit) >= 1000 else f"{limit:g}"
    return ", ".join(_plain(item, is_amount) for item in limit) if isinstance(limit, list) else str(limit)
