"""What is wrong when: rules as TOML data, those that come with aifx and what a site says of them and adds.

Each file of `rules/` holds the rules of a family; docs/doctor-rules.md documents the keys.
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
    """One thing that can be wrong.

    Attributes:
        id: `family.part.what`.
        signal: dotted path of the fact that it looks at, in the item of `for_each` where that is given.
        fails_if: the condition (`aifx.health.conditions`) under which it is a finding.
        for_each: the list of devices that it looks at, one by one.
        applies_if: other signals and the conditions under which the rule means anything.
        severity: critical: do not run jobs here; warning: look at it; info: worth knowing.
        summary: one line for people; `{name}` is a signal.
        action: what to do next.
        source: where the threshold comes from.
        detail: more of why, for `aifx doctor rules ID`.
        evidence: further signals to show.
        range: what the signal can be at all; what lies outside was not read right.
        known: every text that the signal can be; another is not understood.
        yields_to: rules which say the same and worse of the same device.
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
        """The facts that it reads, as paths from the node."""
        limits = [*self.fails_if.values(), *(limit for c in self.applies_if.values() for limit in c.values())]
        referred = [limit["signal"] for limit in limits if isinstance(limit, dict)]
        within = [self.signal, *self.applies_if, *referred, *self.evidence]
        paths = {p.removeprefix("node.") for p in within if p.startswith("node.")}
        inner = {p for p in within if not p.startswith(("node.", "^."))}
        return paths | ({self.for_each} if self.for_each else inner)


class Skip(BaseModel):
    """A site's word that a rule or family is not to be looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    reason: str
    until: date | None = None


class FleetSite(BaseModel):
    """What a site knows of its jobs, to tell what a bad node costs (docs/doctor-fleet.md).

    Attributes:
        job_gpus: GPUs that a job holds; None: as many as the nodes that are asked have.
        horizon_h: within which an interruption counts.
        hours_to_recover: that a job loses by an interruption.
        probability: of an interruption within a day, by rule, family or glob.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    job_gpus: float | None = Field(default=None, gt=0)
    horizon_h: float | None = Field(default=None, gt=0)
    hours_to_recover: float | None = Field(default=None, gt=0)
    probability: dict[str, Annotated[float, Field(ge=0, le=1)]] = {}


class Site(BaseModel):
    """What a site's own file says.

    Attributes:
        expected: figures that the hardware alone cannot tell (`gpus = 8`); rules read them as `node.expected.<name>`.
        skip: what is not looked at, why, and until when.
        rules: keys of rules to change, by id.
        rule: rules of the site's own.
        fleet: what an interruption costs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    expected: dict[str, bool | int | float | str] = {}
    skip: tuple[Skip, ...] = ()
    rules: dict[str, dict[str, Any]] = {}
    rule: tuple[dict[str, Any], ...] = ()
    fleet: FleetSite = FleetSite()

    def changed_rules(self) -> set[str]:
        """The ids of the rules that this file changes or adds."""
        return {*self.rules, *(str(own.get("id")) for own in self.rule)}


SITE_PATHS = (Path("~/.config/aifx/health.toml"), Path("/etc/aifx/health.toml"))


def read_site(path: Path | None) -> Site:
    """The site's file: `path`, or the first of `SITE_PATHS` that exists. Raises ConfigError that names file and key."""
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
    """The rules by id, as the site has them. Raises ConfigError for what the site's file asks that cannot be."""
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
    _understand(site, list(rules.values()))
    return rules


def _understand(site: Site, rules: list[Rule]) -> None:
    """Raises ConfigError for a figure that no rule asks for and a skip that fits none: unseen, they do nothing."""
    asked = {p.removeprefix("expected.") for rule in rules for p in rule.paths() if p.startswith("expected.")}
    for name in site.expected.keys() - asked:
        raise ConfigError(
            f"the site's file expects {name!r}, which no rule uses",
            did_you_mean(name, asked),
            "docs/doctor-rules.md",
        )
    for skip in site.skip:
        if not any(fits(rule.id, skip.id) for rule in rules) and not _is_across(skip.id):
            what = f"the site's file skips {skip.id!r}, which is not a rule or family"
            raise ConfigError(what, _near(skip.id, rules), _listing(skip.id, rules))


def _is_across(pattern: str) -> bool:
    """Whether a pattern means findings across nodes, which no node's rules know."""
    return any(fits(name, pattern) for name in across_ids())


def _rule(name: str, document: Mapping[str, Any]) -> Rule:
    try:
        return Rule.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"rule {name!r} cannot be used", _mistakes(error), "aifx doctor rules ID") from None


PLAIN = {"missing": "missing", "extra_forbidden": "unknown key"}


def _mistakes(error: ValidationError) -> str:
    told = ((".".join(map(str, e["loc"])), PLAIN.get(e["type"], e["msg"])) for e in error.errors())
    told = ((where, what.removeprefix("Value error, ")) for where, what in told)
    return "\n".join(f"{where}: {what}" if where else what for where, what in told)


def select(rules: Iterable[Rule], only: Iterable[str], skip: Iterable[str]) -> list[Rule]:
    """Those that `only` names (all when empty) and `skip` does not. Raises UsageError for a name that fits none."""
    rules, only, skip = list(rules), list(only), list(skip)
    for pattern in (*only, *skip):
        if not any(fits(rule.id, pattern) for rule in rules):
            raise UsageError(f"there is no rule or family {pattern!r}", _near(pattern, rules), _listing(pattern, rules))
    wanted = (rule for rule in rules if not only or any(fits(rule.id, pattern) for pattern in only))
    return [rule for rule in wanted if not any(fits(rule.id, pattern) for pattern in skip)]


def _near(pattern: str, rules: Iterable[Rule]) -> str:
    """The rule or family that may have been meant; where none is near, the families: the rules are hundreds."""
    if "," in pattern:
        return "name one per option; the option can be repeated"
    families, ids = {rule.family for rule in rules}, {rule.id for rule in rules}
    match = nearest(pattern, families | ids)
    return f"did you mean {match!r}?" if match else did_you_mean(pattern, families)


def _listing(pattern: str, rules: Iterable[Rule]) -> str:
    """The command that lists what there is, of the family where that is known."""
    family = pattern.split(".", 1)[0]
    return f"aifx doctor rules {family}" if any(rule.family == family for rule in rules) else "aifx doctor rules"


def fits(rule_id: str, pattern: str) -> bool:
    """Whether a pattern means a rule: its id, a family or part before a dot, or a glob (`nvidia.*.temperature`)."""
    return rule_id == pattern or rule_id.startswith(f"{pattern}.") or fnmatch.fnmatchcase(rule_id, pattern)
