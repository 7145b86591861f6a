"""Rules that a text must satisfy, as TOML: what each measures, the bound, and where the bound is from."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from aifx.core.errors import ConfigError, UsageError, did_you_mean
from aifx.core.parsing import parse_toml
from aifx.curation.measures import MEASURES, Texts

BOUNDS = {"at_least": operator.ge, "at_most": operator.le, "above": operator.gt, "below": operator.lt}
OPTIONS = ("phrases", "n", "length")
REFERENCE = "docs/data-clean.md lists the measures and the keys of a rule"


class Rule(BaseModel):
    """Keeps what is within all of its bounds.

    Attributes:
        measure: a name in `MEASURES`.
        unit: what the rule judges: each text, or each line of it that is not blank.
        languages: of the texts that it judges; by default of any language.
        phrases, n, length: options of the measure.
        source: of the bound.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"[a-z0-9][a-z0-9._-]*")
    measure: str
    unit: Literal["text", "line"] = "text"
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    phrases: tuple[str, ...] = ()
    n: int | None = Field(default=None, ge=2, le=100)
    length: int | None = Field(default=None, ge=1)
    languages: tuple[str, ...] = ()
    source: str = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if self.measure not in MEASURES:
            raise ValueError(f"measure: {self.measure!r} is not one; {did_you_mean(self.measure, MEASURES)}")
        option = MEASURES[self.measure].option
        if option and not getattr(self, option):
            raise ValueError(f"{self.measure} requires {option!r}")
        if unused := [name for name in OPTIONS if name != option and getattr(self, name)]:
            raise ValueError(f"{self.measure} does not take {unused[0]!r}")
        if all(getattr(self, bound) is None for bound in BOUNDS):
            raise ValueError(f"a rule requires a bound: one of {', '.join(BOUNDS)}")
        if "" in self.phrases:
            raise ValueError("phrases: a phrase is empty")
        if self.languages and self.unit == "line":
            raise ValueError("languages: a rule for lines judges all languages")
        return self

    @property
    def bound(self) -> str:
        """ "at least 50, at most 100000"."""
        given = [(bound.replace("_", " "), getattr(self, bound)) for bound in BOUNDS]
        return ", ".join(f"{bound} {value:g}" for bound, value in given if value is not None)

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that its verdicts depend on: all but the source."""
        return self.model_dump(exclude={"source"}, exclude_defaults=True)

    def keeps(self, texts: Texts) -> NDArray[np.bool_]:
        """Whether it keeps each text, of any language. A text is here what `unit` names."""
        measure = MEASURES[self.measure]
        values = measure.of(texts, getattr(self, measure.option) if measure.option else None)
        kept = np.ones(len(values), bool)
        for bound, keeps in BOUNDS.items():
            if (limit := getattr(self, bound)) is not None:
                kept &= keeps(values, limit)
        return kept | texts.is_unspaced if measure.counts_words else kept


def rule_sets() -> list[str]:
    """The names of the sets that aifx has."""
    folder = resources.files("aifx.curation").joinpath("rules")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load_rules(sets: Sequence[str], root: Path) -> tuple[Rule, ...]:
    """The rules of sets, in order: each a name in `rule_sets()`, or a path that ends with .toml, relative to `root`.

    Raises UsageError for a name that is not a set, ConfigError for a file that cannot be used.
    """
    rules: dict[str, Rule] = {}
    for name in dict.fromkeys(sets):
        for rule in _read_set(name, root):
            if rule.id in rules:
                raise ConfigError(
                    f"two rules have the id {rule.id!r}", f"the second is in {name}", "rename one of them"
                )
            rules[rule.id] = rule
    return tuple(rules.values())


def _read_set(name: str, root: Path) -> list[Rule]:
    if not name.endswith(".toml"):
        if name not in (known := rule_sets()):
            why = did_you_mean(name, [*known, "none"])
            raise UsageError(f"no set of rules {name!r}", why, f"--rules {','.join(known)}, or a path to a .toml file")
        text = resources.files("aifx.curation").joinpath("rules", f"{name}.toml").read_text("utf-8")
        return parse_rules(text, name)
    path = root / Path(name).expanduser()
    try:
        return parse_rules(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", error.strerror or str(error), f"ls -l {path}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML", f"it is not UTF-8: {error.reason}", REFERENCE) from None


def parse_rules(text: str, name: str) -> list[Rule]:
    """The rules in the text of a file. Raises ConfigError, which names the file, the rule and the key."""
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{name} is not TOML", str(error), REFERENCE) from None
    tables = document.get("rule")
    if not isinstance(tables, list) or not tables or document.keys() != {"rule"}:
        more = sorted(document.keys() - {"rule"})
        why = f"{more[0]!r} is not [[rule]]" if more else "it has no [[rule]]"
        raise ConfigError(f"{name} has other contents than rules", why, REFERENCE)
    return [_parse_rule(table, number, name) for number, table in enumerate(tables, 1)]


def _parse_rule(table: Any, number: int, name: str) -> Rule:
    try:
        return Rule.model_validate(table)
    except ValidationError as error:
        which = table["id"] if isinstance(table, dict) and isinstance(table.get("id"), str) else number
        faults = ((".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors())
        why = "; ".join(f"{where}: {what}" if where else what for where, what in faults)
        raise ConfigError(f"{name}: rule {which} cannot be used", why, REFERENCE) from None
