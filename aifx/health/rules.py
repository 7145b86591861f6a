"""Health rules as TOML data: the rules of aifx, and a site's changes and additions.

Each file of `rules/` has the rules of a family; docs/doctor-rules.md documents the keys.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from aifx.core.errors import ConfigError, UsageError, did_you_mean, nearest
from aifx.core.parsing import parse_toml
from aifx.health.conditions import COMPARISONS, threshold_of
from aifx.health.tables import across_ids, read_table

Severity = Literal["critical", "warning", "info"]
RULE_ID = re.compile(r"[a-z0-9]+(_[a-z0-9]+)*(\.[a-z0-9]+(_[a-z0-9]+)*)+")


def _is_condition(condition: dict[str, Any]) -> dict[str, Any]:
    if not condition:
        raise ValueError("a condition needs a comparison")
    for name, limit in condition.items():
        if name not in COMPARISONS:
            raise ValueError(f"there is no comparison {name!r}: {did_you_mean(name, COMPARISONS)}")
        if isinstance(limit, dict) and ("signal" not in limit or limit.keys() - {"signal", "times", "plus"}):
            raise ValueError(f"{name}: a limit must be a value, or a table with signal, times and plus")
    return condition


Range = Annotated[
    tuple[float, float],
    WithJsonSchema({"type": "array", "prefixItems": [{"type": "number"}, {"type": ["number", "null"]}]}),
]
"""An infinite end is null in JSON."""

Condition = Annotated[dict[str, Any], AfterValidator(_is_condition)]


class TomlTable(BaseModel):
    """A table of TOML, with these keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rule(TomlTable):
    """A health rule.

    Attributes:
        id: `family.part.what`.
        signal: the dotted path of the fact that it evaluates, in the item of `for_each` if that is set.
        fails_if: the condition (`aifx.health.conditions`) for a finding.
        for_each: the list of devices that it evaluates, one by one.
        applies_if: other signals, and the conditions under which the rule applies.
        severity: critical: do not run jobs here; warning: look at it; info: worth knowing.
        summary: one line for people; `{name}` is a signal.
        action: what to do next.
        source: the source of the threshold.
        detail: more of the reason, for `aifx doctor rules ID`.
        evidence: other signals to show.
        range: the possible values of the signal; any other value is unknown.
        known: all texts that the signal can have; any other text is unknown.
        yields_to: rules that report the same fault of the same device in a worse form.
        explains: families or rules whose findings on the same device follow from this one.
    """

    id: str
    signal: str
    fails_if: Condition
    for_each: str | None = None
    applies_if: dict[str, Condition] = {}
    severity: Severity
    summary: str
    action: str
    source: str
    detail: str = ""
    evidence: tuple[str, ...] = ()
    range: Range = (0, float("inf"))
    known: tuple[str, ...] | None = None
    yields_to: tuple[str, ...] = ()
    explains: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if not RULE_ID.fullmatch(self.id):
            raise ValueError("an id must be family.part.what, in lower-case letters, digits and '_'")
        return self

    @property
    def family(self) -> str:
        return self.id.split(".", 1)[0]

    @property
    def failure(self) -> str:
        """The signal and the condition for a finding, in words."""
        return f"{self.signal} {threshold_of(self.fails_if)}"

    @property
    def precondition(self) -> str:
        """The conditions under which the rule applies, in words; empty if it always does."""
        return " and ".join(f"{signal} {threshold_of(condition)}" for signal, condition in self.applies_if.items())

    def paths(self) -> set[str]:
        """Return the facts that the rule reads, as paths from the node."""
        limits = [*self.fails_if.values(), *(limit for c in self.applies_if.values() for limit in c.values())]
        referred = [limit["signal"] for limit in limits if isinstance(limit, dict)]
        within = [self.signal, *self.applies_if, *referred, *self.evidence]
        paths = {p.removeprefix("node.") for p in within if p.startswith("node.")}
        inner = {p for p in within if not p.startswith(("node.", "^."))}
        return paths | ({self.for_each} if self.for_each else inner)


class Skip(TomlTable):
    """A site's decision to skip a rule or family."""

    id: str
    reason: str
    until: date | None = None


class FleetSite(TomlTable):
    """A site's numbers for the cost of a bad node (docs/doctor-fleet.md).

    Attributes:
        job_gpus: the GPUs of a job; None for all GPUs of the nodes that are asked.
        horizon_h: the time within which an interruption counts.
        hours_to_recover: the time that a job loses by an interruption.
        probability: of an interruption within a day, by rule, family or glob.
    """

    job_gpus: float | None = Field(default=None, gt=0)
    horizon_h: float | None = Field(default=None, gt=0)
    hours_to_recover: float | None = Field(default=None, gt=0)
    probability: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}


class Site(TomlTable):
    """A site's file.

    Attributes:
        expected: values that do not follow from the hardware (`gpus = 8`); rules read them as `node.expected.<name>`.
        skip: rules and families to skip, the reasons, and until when.
        rules: changed keys of rules, by id.
        rule: additional rules.
        fleet: the cost of an interruption.
    """

    expected: dict[str, bool | int | float | str] = {}
    skip: tuple[Skip, ...] = ()
    rules: dict[str, dict[str, Any]] = {}
    rule: tuple[dict[str, Any], ...] = ()
    fleet: FleetSite = FleetSite()


SITE_PATHS = (Path("~/.config/aifx/health.toml"), Path("/etc/aifx/health.toml"))


def read_site(path: Path | None) -> Site:
    """Read the site's file: `path`, or the first of `SITE_PATHS` that exists. Raises ConfigError with file and key."""
    found = path or next((p.expanduser() for p in SITE_PATHS if p.expanduser().is_file()), None)
    if found is None:
        return Site()
    hint = "docs/doctor-rules.md shows such a file"
    try:
        return Site.model_validate(parse_toml(found.read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"{found} cannot be read", error.strerror or str(error), f"ls -l {found}") from None
    except ValidationError as error:
        raise ConfigError(f"{found} cannot be used", _mistakes(error), hint) from None
    except ValueError as error:
        raise ConfigError(f"{found} is not TOML", str(error), hint) from None


def load_rules(site: Site | None = None) -> dict[str, Rule]:
    """Return the rules by id, with the site's changes. Raises ConfigError for a change that is not possible."""
    files = sorted(file.name for file in resources.files("aifx.health").joinpath("rules").iterdir())
    tables = [rule for name in files if name.endswith(".toml") for rule in read_table("rules", name)["rule"]]
    documents: dict[str, dict[str, Any]] = {rule["id"]: rule for rule in tables}
    assert len(documents) == len(tables), "two rules have the same id"
    site = site or Site()
    for name, changes in site.rules.items():
        if name not in documents:
            what = f"the site's file changes the rule {name!r}, which does not exist"
            raise ConfigError(what, did_you_mean(name, documents), "aifx doctor rules")
        documents[name] = documents[name] | changes
    documents |= {str(own.get("id")): own for own in site.rule}
    rules = {}
    for name, document in documents.items():
        try:
            rules[name] = Rule.model_validate(document)
        except ValidationError as error:
            raise ConfigError(f"rule {name!r} cannot be used", _mistakes(error), "aifx doctor rules ID") from None
    _check_used(site, list(rules.values()))
    return rules


def expected_names(rules: Iterable[Rule]) -> set[str]:
    """Return the names of the expected values that rules use."""
    return {p.removeprefix("expected.") for rule in rules for p in rule.paths() if p.startswith("expected.")}


def _check_used(site: Site, rules: list[Rule]) -> None:
    """Check that each expected value and each skip has an effect: that it fits a rule. Raises ConfigError."""
    asked = expected_names(rules)
    for name in site.expected.keys() - asked:
        what = f"the site's file expects {name!r}, which no rule uses"
        raise ConfigError(what, did_you_mean(name, asked), "docs/doctor-rules.md")
    ids = [*(rule.id for rule in rules), *across_ids()]
    for skip in site.skip:
        if not any(fits(name, skip.id) for name in ids):
            what = f"the site's file skips {skip.id!r}, which is not a rule or family"
            raise ConfigError(what, *_suggestion(skip.id, rules))


PLAIN = {"missing": "missing", "extra_forbidden": "unknown key"}


def _mistakes(error: ValidationError) -> str:
    lines = ((".".join(map(str, e["loc"])), PLAIN.get(e["type"], e["msg"])) for e in error.errors())
    lines = ((where, what.removeprefix("Value error, ")) for where, what in lines)
    return "\n".join(f"{where}: {what}" if where else what for where, what in lines)


def select(rules: Iterable[Rule], only: Iterable[str], skip: Iterable[str]) -> list[Rule]:
    """Return the rules that `only` names (all if empty) and `skip` does not. Raises UsageError for an unknown name."""
    rules, only, skip = list(rules), list(only), list(skip)
    for pattern in (*only, *skip):
        if not any(fits(rule.id, pattern) for rule in rules):
            raise UsageError(f"there is no rule or family {pattern!r}", *_suggestion(pattern, rules))
    wanted = (rule for rule in rules if not only or any(fits(rule.id, pattern) for pattern in only))
    return [rule for rule in wanted if not any(fits(rule.id, pattern) for pattern in skip)]


def _suggestion(pattern: str, rules: Iterable[Rule]) -> tuple[str, str]:
    """Return the nearest rule or family, or all families, as text, and the command that lists the rules."""
    families, ids = {rule.family for rule in rules}, {rule.id for rule in rules}
    family = pattern.split(".", 1)[0]
    listing = f"aifx doctor rules {family}" if family in families else "aifx doctor rules"
    if "," in pattern:
        return "name one per option; the option can be repeated", listing
    match = nearest(pattern, families | ids)
    return f"did you mean {match!r}?" if match else did_you_mean(pattern, families), listing


def fits(rule_id: str, pattern: str) -> bool:
    """Return whether a pattern fits a rule: its id, a part of it before a dot, or a glob (`nvidia.*.temperature`)."""
    return rule_id == pattern or rule_id.startswith(f"{pattern}.") or fnmatch.fnmatchcase(rule_id, pattern)
