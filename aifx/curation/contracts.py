"""Contracts: the rules that the rows of a data set, and the data set as a whole, must keep, as TOML."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from aifx.core.errors import ConfigError, did_you_mean
from aifx.core.plurals import counted
from aifx.curation.rules import BOUNDS, check_rules, read_rule_tables
from aifx.data.versions.manifest import Manifest

REFERENCE = "docs/data-expect.md lists the checks and their keys"
MOST_IDS = 1000
"""Ids of rows that broke a rule, at most."""

Level: TypeAlias = Literal["error", "warn"]
Measure: TypeAlias = Literal["psi", "ks", "jensen_shannon"]


@dataclass(frozen=True)
class Check:
    """A kind of rule.

    Attributes:
        keys: that it requires.
        options: that it may have.
        is_bounded: whether it takes bounds, and requires one.
        judges_rows: whether it judges each row; otherwise the version as a whole.
    """

    keys: tuple[str, ...]
    options: tuple[str, ...] = ()
    is_bounded: bool = False
    judges_rows: bool = True


CHECKS: Mapping[str, Check] = {
    "not_null": Check(("column",)),
    "unique": Check(("column",)),
    "range": Check(("column",), is_bounded=True),
    "length": Check(("column",), is_bounded=True),
    "matches": Check(("column", "pattern")),
    "values": Check(("column", "values")),
    "references": Check(("column", "to"), ("to_column",)),
    "no_later_than": Check(("column", "other")),
    "sql": Check(("sql",)),
    "type": Check(("column", "type"), judges_rows=False),
    "rows": Check((), is_bounded=True, judges_rows=False),
    "aggregate": Check(("sql",), is_bounded=True, judges_rows=False),
    "freshness": Check(("column", "within"), judges_rows=False),
    "distribution": Check(("against", "measure", "at_most"), ("column", "sql"), judges_rows=False),
}
SEVERAL_COLUMNS = ("unique", "references")

TYPES: Mapping[str, tuple[str, ...]] = {
    "integer": ("int", "uint"),
    "number": ("int", "uint", "float", "double", "halffloat", "decimal"),
    "text": ("string", "large_string"),
    "boolean": ("bool",),
    "time": ("timestamp", "date"),
    "binary": ("binary", "large_binary"),
    "list": ("list", "large_list", "fixed_size_list"),
}
"""Beginnings of Arrow's names of types, by the name that a rule may give to all of them."""

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_WITHIN = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})")


def _names(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _time_text(value: Any) -> Any:
    """A date or time of TOML as text, which DuckDB reads."""
    return value.isoformat() if isinstance(value, date | datetime) else value


def _arrow_name(value: str) -> str:
    """A type by the name that a manifest gives to it, which for Arrow's `float64` is `double`."""
    import pyarrow as pa

    if not value or value in TYPES or any(mark in value for mark in "[<("):  # types with units or parts have no alias
        return value
    try:
        return str(pa.type_for_alias(value))
    except ValueError:
        known = [*TYPES, "double", "float", "int32", "int64", "string"]
        raise ValueError(f"{value!r} is no type; {did_you_mean(value, known)}") from None


def _bound(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a truth value is no bound; check = 'values' takes it")
    return _time_text(value)


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_names)]
Value: TypeAlias = Annotated[bool | int | float | str, BeforeValidator(_time_text)]
Bound: TypeAlias = Annotated[int | float | str | None, BeforeValidator(_bound)]
TypeName: TypeAlias = Annotated[str, AfterValidator(_arrow_name)]


class Expectation(BaseModel):
    """A rule of a contract.

    Attributes:
        id: by default made of the column and the check.
        check: a key of `CHECKS`.
        level: "error" keeps bad rows or the whole version out; "warn" reports alone.
        mostly: least share of rows that must keep a rule for rows. With it, no row is left out: the rule judges the
            whole version.
        column: one, or several that are a key together.
        to, against: "NAME" or "NAME@VERSION". In the settings of a step, always a whole reference.
        within: age of the newest value, at most.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(default="", max_length=200, pattern=r"^[^\s\x00-\x1f]*$")
    check: str
    level: Level = "error"
    mostly: float | None = Field(default=None, gt=0, le=1)
    column: Names = ()
    at_least: Bound = None
    at_most: Bound = None
    above: Bound = None
    below: Bound = None
    pattern: str = ""
    values: tuple[Value, ...] = ()
    to: str = ""
    to_column: Names = ()
    other: str = ""
    sql: str = ""
    type: TypeName = ""
    within: str = ""
    against: str = ""
    measure: Measure | Literal[""] = ""

    @model_validator(mode="after")
    def _check(self) -> Expectation:
        if self.check not in CHECKS:
            raise ValueError(f"check: {self.check!r} is not one; {did_you_mean(self.check, CHECKS)}")
        check = CHECKS[self.check]
        allowed = {"id", "check", "level", *check.keys, *check.options}
        allowed |= {"mostly"} if check.judges_rows else set()
        allowed |= set(BOUNDS) if check.is_bounded else set()
        given = [name for name in type(self).model_fields if getattr(self, name) not in ("", (), None)]
        if unused := [name for name in given if name not in allowed]:
            raise ValueError(f"{self.check} does not take {unused[0]!r}")
        if missing := [name for name in check.keys if name not in given]:
            raise ValueError(f"{self.check} requires {missing[0]!r}")
        if check.is_bounded and not self.bounds:
            raise ValueError(f"{self.check} requires a bound: one of {', '.join(BOUNDS)}")
        if self.check == "distribution" and bool(self.column) == bool(self.sql):
            raise ValueError("distribution requires either 'column' or 'sql'")
        if len(self.column) > 1 and self.check not in SEVERAL_COLUMNS:
            raise ValueError(f"column: {self.check} takes one column")
        if self.to_column and len(self.to_column) != len(self.column):
            raise ValueError(f"to_column: {len(self.to_column)} columns for {len(self.column)}")
        self._check_numbers()
        if self.within and not _WITHIN.fullmatch(self.within):
            raise ValueError(f"within: {self.within!r} is no time such as {', '.join(f'2{unit}' for unit in _UNITS)}")
        return self

    def _check_numbers(self) -> None:
        for value in self.values:
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"values: {value} cannot be compared; check = 'sql' finds it")
        for name, bound in self.bounds.items():
            if isinstance(bound, float) and not math.isfinite(bound):
                raise ValueError(f"{name}: {bound} is no bound")
            if isinstance(bound, str) and self.check != "range":
                raise ValueError(f"{name}: {bound!r} is not a number")
        for low, high in product(("at_least", "above"), ("at_most", "below")):
            least, most = getattr(self, low), getattr(self, high)
            if None in (least, most) or str in (type(least), type(most)):
                continue
            if least > most or (least == most and (low, high) != ("at_least", "at_most")):
                raise ValueError(f"no number is {low.replace('_', ' ')} {least} and {high.replace('_', ' ')} {most}")

    @property
    def name(self) -> str:
        """Its id."""
        return self.id or ".".join(filter(None, ["+".join(self.column), self.check]))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the judged version that it names, except in SQL."""
        return (*self.column, *([self.other] if self.other else ()))

    @property
    def bounds(self) -> dict[str, Any]:
        return {name: bound for name in BOUNDS if (bound := getattr(self, name)) is not None}

    @property
    def judges_rows(self) -> bool:
        return CHECKS[self.check].judges_rows

    @property
    def drops_rows(self) -> bool:
        """Whether rows that break it are left out."""
        return self.judges_rows and self.level == "error" and self.mostly is None

    @property
    def within_s(self) -> float:
        found = _WITHIN.fullmatch(self.within)
        assert found is not None
        return float(found[1]) * _UNITS[found[2]]

    @property
    def meaning(self) -> str:
        """The rule in a few words, for people."""
        bound = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in self.bounds.items())
        match self.check:
            case "matches":
                bound = self.pattern
            case "values":
                bound = counted(len(self.values), "value")
            case "references":
                bound = f"in {self.to.partition('@')[0]}"
            case "no_later_than":
                bound = self.other
            case "sql":
                bound = self.sql
            case "type":
                bound = self.type
            case "freshness":
                bound = f"within {self.within}"
            case "distribution":
                bound = f"{self.measure} {bound}"
            case _:
                pass
        return ", ".join(filter(None, [bound, f"mostly {self.mostly:g}" if self.mostly is not None else ""]))

    @property
    def settings(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_defaults=True)


def load_contract(given: Path | Sequence[Mapping[str, Any]]) -> tuple[Expectation, ...]:
    """The rules of a file or of tables, in order. Raises ConfigError, which names the file, the rule and the key."""
    if isinstance(given, Path):
        where, rules = str(given), read_rule_tables(given, Expectation, REFERENCE)
    else:
        where, rules = "rules", check_rules(given, "rules", Expectation, REFERENCE)
    names = [rule.name for rule in rules]
    for number, name in enumerate(names, 1):
        if name in names[: number - 1]:
            raise ConfigError(f"{where}: two rules have the id {name!r}", f"the second is rule {number}", 'id = "..."')
    if not rules:
        raise ConfigError(f"{where} has no rule", "there is nothing to judge", REFERENCE)
    return tuple(rules)


def named_data_sets(rules: Sequence[Expectation]) -> list[str]:
    """The data sets or versions that rules compare with, as they are written."""
    return list(dict.fromkeys(text for rule in rules for text in (rule.to, rule.against) if text))


def has_type(type: str, wanted: str) -> bool:
    """Whether a type, as a manifest names it, is a type or a family of `TYPES`."""
    return type == wanted or type.startswith(TYPES.get(wanted, ("\0",)))


Outcome: TypeAlias = Literal["kept", "not judged", "warned", "dropped", "refused"]


@dataclass(frozen=True)
class RuleOutcome:
    """The result of a rule for a version.

    Attributes:
        id, check, level, mostly: of the rule.
        meaning: its bound or condition.
        outcome: "dropped" if the rows that broke it were left out, "refused" if it keeps the version from being
            accepted, "warned" if it was broken and its level is "warn".
        rows: that a rule for rows judged; None for a rule about the whole.
        broken: rows that broke it; None for a rule about the whole.
        value: of a rule about the whole: what was measured.
        ids: of the first rows that broke it, at most 1,000.
        note: the reason of "not judged".
    """

    id: str
    check: str
    level: Level
    mostly: float | None
    meaning: str
    outcome: Outcome
    rows: int | None
    broken: int | None
    value: float | str | None
    ids: tuple[str, ...]
    note: str = ""


STEP = "expect"
FACT = "rules"


def outcomes_of(manifest: Manifest, now: datetime) -> list[RuleOutcome]:
    """The outcome of each rule for a version that `aifx data expect` made, with the age of its newest row at a time."""
    rules = [Expectation.model_validate(rule) for rule in manifest.step.settings["rules"]]
    return [_outcome(rule, fact, now) for rule, fact in zip(rules, manifest.facts[FACT], strict=True)]


def refusing(manifest: Manifest, now: datetime) -> list[RuleOutcome]:
    """The rules because of which a version is not accepted."""
    return [one for one in outcomes_of(manifest, now) if one.outcome == "refused"]


def _outcome(rule: Expectation, fact: Mapping[str, Any], now: datetime) -> RuleOutcome:
    rows, broken, value = fact.get("rows"), fact.get("broken"), fact.get("value")
    outcome: Outcome = "kept"
    if fact.get("note"):
        outcome = "not judged"
    elif not _is_kept(rule, fact, now):
        outcome = "warned" if rule.level == "warn" else "dropped" if rule.drops_rows else "refused"
    note, ids = fact.get("note", ""), tuple(fact.get("ids", ()))
    return RuleOutcome(
        rule.name, rule.check, rule.level, rule.mostly, rule.meaning, outcome, rows, broken, value, ids, note
    )


def _is_kept(rule: Expectation, fact: Mapping[str, Any], now: datetime) -> bool:
    if rule.judges_rows:
        rows, broken = fact["rows"], fact["broken"]
        return bool(not broken if rule.mostly is None else rows - broken >= Fraction(str(rule.mostly)) * rows)
    value = fact["value"]
    if value is None:  # of no row
        return False
    if rule.check == "type":
        return has_type(value, rule.type)
    if rule.check == "freshness":
        return (now - datetime.fromisoformat(value)).total_seconds() <= rule.within_s
    return all(BOUNDS[name](value, bound) for name, bound in rule.bounds.items())


def broken_rules(outcomes: Sequence[RuleOutcome]) -> Iterator[RuleOutcome]:
    """Those that were broken, the gravest first."""
    for wanted in ("refused", "dropped", "warned"):
        yield from (one for one in outcomes if one.outcome == wanted)
