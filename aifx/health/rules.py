"""Health rules as TOML data: the rules of aifx, and a site's changes and additions.

Each file of `rules/` has the rules of a family; docs/doctor-rules.md documents the keys.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from datetime import date
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from aifx.core.errors import ConfigError, UsageError, did_you_mean, nearest
from aifx.core.parsing import parse_toml
from aifx.health.across import across_ids
from aifx.health.conditions import COMPARISONS

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


class Rule(BaseModel):
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

    model_config = ConfigDict(extra="forbid", frozen=True)

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

    def paths(self) -> set[str]:
        """Return the facts that the rule reads, as paths from the node."""
        limits = [*self.fails_if.values(), *(limit for c in self.applies_if.values() for limit in c.values())]
        referred = [limit["signal"] for limit in limits if isinstance(limit, dict)]
        within = [self.signal, *self.applies_if, *referred, *self.evidence]
        paths = {p.removeprefix("node.") for p in within if p.startswith("node.")}
        inner = {p for p in within if not p.startswith(("node.", "^."))}
        return paths | ({self.for_each} if self.for_each else inner)


class Skip(BaseModel):
    """A site's decision to skip a rule or family."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    reason: str
    until: date | None = None


class FleetSite(BaseModel):
    """A site's numbers for the cost of a bad node (docs/doctor-fleet.md).

    Attributes:
        job_gpus: the GPUs of a job; None for all GPUs of the nodes that are asked.
        horizon_h: the time within which an interruption counts.
        hours_to_recover: the time that a job loses by an interruption.
        probability: of an interruption within a day, by rule, family or glob.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_gpus: float | None = Field(default=None, gt=0)
    horizon_h: float | None = Field(default=None, gt=0)
    hours_to_recover: float | None = Field(default=None, gt=0)
    probability: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}


class Site(BaseModel):
    """A site's file.

    Attributes:
        expected: values that do not follow from the hardware (`gpus = 8`); rules read them as `node.expected.<name>`.
        skip: rules and families to skip, the reasons, and until when.
        rules: changed keys of rules, by id.
        rule: additional rules.
        fleet: the cost of an interruption.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    expected: dict[str, bool | int | float | str] = {}
    skip: tuple[Skip, ...] = ()
    rules: dict[str, dict[str, Any]] = {}
    rule: tuple[dict[str, Any], ...] = ()
    fleet: FleetSite = FleetSite()

    def changed_rules(self) -> set[str]:
        """Return the ids of the rules that this file changes or adds."""
        return {*self.rules, *(str(own.get("id")) for own in self.rule)}


SITE_PATHS = (Path("~/.config/aifx/health.toml"), Path("/etc/aifx/health.toml"))


def read_site(path: Path | None) -> Site:
    """Read the site's file: `path`, or the first of `SITE_PATHS` that exists. Raises ConfigError with file and key."""
    found = path or next((p.expanduser() for p in SITE_PATHS if p.expanduser().is_file()), None)
    if found is None:
        return Site()
    try:
        return Site.model_validate(parse_toml(found.read_text("utf-8")))
    except OSError as error:
        raise ConfigError(f"{found} cannot be read", error.strerror or str(error), f"ls -l {found}") from None
    except ValidationError as error:
        raise ConfigError(
            f"{found} cannot be used", _mistakes(error), "docs/doctor-rules.md shows such a file"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{found} is not TOML", str(error), "docs/doctor-rules.md shows such a file") from None


def load_rules(site: Site | None = None) -> dict[str, Rule]:
    """Return the rules by id, with the site's changes. Raises ConfigError for a change that is not possible."""
    documents: dict[str, dict[str, Any]] = {}
    for file in sorted(resources.files("aifx.health").joinpath("rules").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            for document in tomli.loads(file.read_text("utf-8"))["rule"]:
                assert document["id"] not in documents, document["id"]
                documents[document["id"]] = document
    site = site or Site()
    for name, changes in site.rules.items():
        if name not in documents:
            raise ConfigError(
                f"the site's file changes the rule {name!r}, which does not exist",
                did_you_mean(name, documents),
                "aifx doctor rules",
            )
        documents[name] = documents[name] | changes
    for own in site.rule:
        documents[str(own.get("id"))] = own
    rules = {name: _rule(name, document) for name, document in documents.items()}
    _check_used(site, list(rules.values()))
    return rules


def _check_used(site: Site, rules: list[Rule]) -> None:
    """Raises ConfigError for an expected value or a skip that fits no rule, which would have no effect."""
    asked = {p.removeprefix("expected.") for rule in rules for p in rule.paths() if p.startswith("expected.")}
    for name in site.expected.keys() - asked:
        raise ConfigError(
            f"the site's file expects {name!r}, which no rule uses", did_you_mean(name, asked), "docs/doctor-rules.md"
        )
    for skip in site.skip:
        if not any(fits(rule.id, skip.id) for rule in rules) and not _is_across(skip.id):
            what = f"the site's file skips {skip.id!r}, which is not a rule or family"
            raise ConfigError(what, _near(skip.id, rules), _listing(skip.id, rules))


def _is_across(pattern: str) -> bool:
    """Return whether a pattern fits findings across nodes, which the rules of a node do not have."""
    return any(fits(name, pattern) for name in across_ids())


def _rule(name: str, document: Mapping[str, Any]) -> Rule:
    try:
        return Rule.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"rule {name!r} cannot be used", _mistakes(error), "aifx doctor rules ID") from None


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
            raise UsageError(f"there is no rule or family {pattern!r}", _near(pattern, rules), _listing(pattern, rules))
    wanted = (rule for rule in rules if not only or any(fits(rule.id, pattern) for pattern in only))
    return [rule for rule in wanted if not any(fits(rule.id, pattern) for pattern in skip)]


def _near(pattern: str, rules: Iterable[Rule]) -> str:
    """Suggest the nearest rule or family; otherwise list the families, because there are hundreds of rules."""
    if "," in pattern:
        return "name one per option; the option can be repeated"
    families, ids = {rule.family for rule in rules}, {rule.id for rule in rules}
    match = nearest(pattern, families | ids)
    return f"did you mean {match!r}?" if match else did_you_mean(pattern, families)


def _listing(pattern: str, rules: Iterable[Rule]) -> str:
    """Return the command that lists the rules, of the family if it exists."""
    family = pattern.split(".", 1)[0]
    return f"aifx doctor rules {family}" if any(rule.family == family for rule in rules) else "aifx doctor rules"


def fits(rule_id: str, pattern: str) -> bool:
    """Return whether a pattern fits a rule: its id, a part of it before a dot, or a glob (`nvidia.*.temperature`)."""
    return rule_id == pattern or rule_id.startswith(f"{pattern}.") or fnmatch.fnmatchcase(rule_id, pattern)
