"""When a rule fails: a table of comparisons, all of which must hold.

    fails_if = { above = 0 }
    fails_if = { below = { signal = "power.default_limit_w", times = 0.75 } }
    applies_if = { state = { equals = "up", known = ["up", "down"] } }

A value of another kind than the comparison asks for, or that is not `known`, is not compared: the answer is `Unknown`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.scope import Scope, is_number, shown

ORDERINGS = {"above": ">", "at_least": ">=", "below": "<", "at_most": "<="}
WORDS = {
    "equals": "is",
    "not_equals": "is not",
    "any_of": "is one of",
    "none_of": "is none of",
    "matches": "matches",
    "contains": "holds",
    "lacks": "does not hold",
    "not_empty": "is not empty",
    "known": "is known:",
}
COMPARISONS = ORDERINGS | WORDS


def holds(condition: Mapping[str, Any], value: Any, scope: Scope, least: float = -math.inf) -> bool | Absent | Unknown:
    """Whether every comparison of `condition` holds of `value`; `Absent` where a limit is not known here.

    No number that is compared can be below `least`.
    """
    if "known" in condition and value not in condition["known"]:
        return Unknown(f"{shown(value)} is not known to this version")
    for name, asked in condition.items():
        limit = limit_of(asked, scope)
        if isinstance(limit, (Absent, Unknown)):
            return limit
        strange = [n for n in (value, limit) if is_number(n) and not (math.isfinite(n) and n >= least)]
        if strange:
            return Unknown(f"it cannot be {strange[0]}")
        held = _number_holds(name, value, limit) if name in ORDERINGS else _word_holds(name, value, limit)
        if held is not True:
            return held
    return True


def limit_of(asked: Any, scope: Scope) -> Any:
    """What is compared with: itself, or another signal times a factor and plus a summand."""
    if not isinstance(asked, Mapping):
        return asked
    value = scope.look_up(asked["signal"])
    if isinstance(value, (Absent, Unknown)) or not asked.keys() - {"signal"}:
        return value
    if not is_number(value):
        return Unknown(f"{asked['signal']} is no number but {shown(value)}")
    return value * asked.get("times", 1) + asked.get("plus", 0)


def threshold_of(condition: Mapping[str, Any], scope: Scope | None = None) -> str:
    """A condition in words; with a scope, its limits in figures."""
    parts = []
    for name, asked in condition.items():
        limit = asked if scope is None else limit_of(asked, scope)
        text = _asked(asked) if isinstance(limit, (Mapping, Absent, Unknown)) else _plain(limit, name in ORDERINGS)
        parts.append(COMPARISONS[name] if name == "not_empty" else f"{COMPARISONS[name]} {text}")
    return " and ".join(parts)


def _number_holds(name: str, value: Any, limit: Any) -> bool | Unknown:
    for number in (value, limit):
        if not is_number(number) or not math.isfinite(number):
            return Unknown(f"{shown(number)} is no number")
    if name in ("above", "at_most"):
        return bool(value > limit) == (name == "above")
    return bool(value >= limit) == (name == "at_least")


def _word_holds(name: str, value: Any, limit: Any) -> bool | Unknown:
    if name in ("contains", "lacks", "not_empty"):
        if not isinstance(value, (list, str)):
            return Unknown(f"{shown(value)} is neither a list nor text")
        if name == "not_empty":
            return bool(value)
        if name == "lacks" and isinstance(value, str):  # most texts lack a word, nonsense does
            return Unknown(f"{shown(value)} is no list")
        return any(item in value for item in _list(limit)) == (name == "contains")
    if name == "matches":
        if not isinstance(value, str):
            return Unknown(f"{shown(value)} is no text")
        return re.search(limit, value) is not None
    if name == "known":
        return True
    among = _list(limit)
    if not any(_alike(value, item) for item in among):
        return Unknown(f"{shown(value)} is not of the kind of {shown(among[0] if among else None)}")
    return (value in among) == (name in ("equals", "any_of"))


def _alike(value: Any, other: Any) -> bool:
    return type(value) is type(other) or (is_number(value) and is_number(other))


def _list(limit: Any) -> list[Any]:
    return limit if isinstance(limit, list) else [limit]


def _asked(asked: Mapping[str, Any]) -> str:
    times = f"{asked['times']:g} x " if "times" in asked else ""
    plus = f" {'+' if asked['plus'] >= 0 else '-'} {abs(asked['plus']):g}" if "plus" in asked else ""
    return f"{times}{asked['signal']}{plus}"


def _plain(limit: Any, is_amount: bool) -> str:
    """A code is no amount: its thousands are not set apart."""
    if isinstance(limit, bool):
        return "true" if limit else "false"
    if is_number(limit) and is_amount:
        return f"{limit:,}" if isinstance(limit, int) else f"{limit:,.0f}" if abs(limit) >= 1000 else f"{limit:g}"
    return ", ".join(_plain(item, is_amount) for item in limit) if isinstance(limit, list) else str(limit)
