"""Compare two snapshots of a node: findings that came, went and changed, and facts that changed.

The same rules evaluate both, so a difference is one of the machine, never of the thresholds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aifx.core.facts import to_document
from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.report import SEVERITIES, Finding, Report
from aifx.health.rules import Rule, Site
from aifx.health.scope import RATE, is_number
from aifx.health.snapshot import Snapshot

SAME = 0.005
"""Two sizes within this share are equal: the kernel reserves another part of a total in each release."""

NOT_HELD = "the snapshot has no"
"""The message of `aifx.health.scope` if a snapshot has another version or was taken with `--only`."""

LIMIT = re.compile(
    r"(^|_)(limit|max|min|total|size|capacity|target|cap|rated|default|wanted|needed|expected|threshold|allowed|speed|"
    r"enforced|application|slowdown|shutdown)(_|$)"
)
"""Names of capabilities and settings, whatever their unit: never noise."""

MOMENT: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a temperature", re.compile(r"(_c|temperatures?)$")),
    ("power drawn at the time", re.compile(r"(_w|_watts|_mw)$")),
    ("a clock rate at the time", re.compile(r"_mhz$")),
    ("a link at rest runs at a lower one", re.compile(r"^generation$")),
    ("how busy it was", re.compile(r"(^|_)(load|utili[sz]ation|busy|running|blocked)(_|$)|_percent$")),
    (
        "space or memory in use",
        re.compile(r"(^|_)(used|free|available|unused|dirty|cached)(_|$)|(^|_)(handles|tasks|threads|checkpoints)$"),
    ),
    (
        "a rate measured at the time",
        re.compile(
            r"(_per_s|_per_min|_?mb_s|_?gb_s)$|^tflops|^of_|^(kept|samples|calls|seconds|throttled)$|_elements$"
        ),
    ),
    (
        "a time or a delay",
        re.compile(r"(_s|_ms|_us|_ns|_minutes|_hours|_days)$|(^|_)(days|uptime|age|time|since)(_|$)"),
    ),
    (
        "a counter",
        re.compile(
            r"(^|_)(errors?|counters?|events?|replays?|retries|drops?|dropped|discards?|packets|pages|kills|throttles|flaps|"
            r"downed|overruns|changes|recovered|recover(y|ies)|corrected|uncorrected|aggregate|volatile|failed|violations?|"
            r"resets|timeouts|writes|reads|periods|ber)$"
        ),
    ),
)
"""Numbers that change from minute to minute on a healthy machine, by the last name of their path. If one matters, a
rule evaluates it, and the change is a finding."""

PASSING: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("a new one with each boot", re.compile(r"^boot_id$")),
    ("who was at work", re.compile(r"\b(pids?|holders?|holder_names|processes|num_processes)\b")),
    ("what was logged", re.compile(r"\b(messages|events|kernel_log|kernel_events|xids|xid_gpus|sxids|crashes)\b")),
    ("what held the clocks at the time", re.compile(r"\bthrottle\.reasons$|^clock\.direction$")),
    ("read under load", re.compile(r"^stress\.sensors\b")),
)
"""Facts that always change, by a name on their path."""


@dataclass(frozen=True)
class FactChange:
    """Attributes:
    fact: its path, with an item of a list of devices in brackets.
    before: the value in the snapshot's JSON; None if there is no such device or name.
    after: likewise.
    noise: why it is left out; empty if it matters.
    """

    fact: str
    before: Any
    after: Any
    noise: str = ""


@dataclass(frozen=True)
class Difference:
    """Attributes:
    before: the report of the first snapshot.
    after: the report of the second.
    came: findings only in the second, worst first.
    went: findings only in the first.
    changed: pairs of findings of one rule and device whose severity or text changed.
    figures: pairs of findings in which only numbers changed.
    facts: changes of the machine, and the noise.
    not_compared: parts and rules that only one snapshot has (`--only`, or another version of aifx).
    rebooted: whether the machine was booted in between; None if that is unknown.
    """

    before: Report
    after: Report
    came: tuple[Finding, ...]
    went: tuple[Finding, ...]
    changed: tuple[tuple[Finding, Finding], ...]
    figures: tuple[tuple[Finding, Finding], ...]
    facts: tuple[FactChange, ...]
    not_compared: tuple[str, ...]
    rebooted: bool | None

    @property
    def new_critical(self) -> bool:
        """Whether a finding is critical that was not."""
        return any(f.severity == "critical" for f in self.came) or any(
            b.severity == "critical" != a.severity for a, b in self.changed
        )

    @property
    def worse(self) -> bool:
        """Whether there is a new finding, or one of higher severity."""
        rank = SEVERITIES.index
        return bool(self.came) or any(rank(b.severity) < rank(a.severity) for a, b in self.changed)

    def document(self) -> dict[str, Any]:
        """Return the differences for JSON; docs/doctor-diff.md documents them."""
        return {
            "came": [asdict(f) for f in self.came],
            "went": [asdict(f) for f in self.went],
            "changed": [{"before": asdict(a), "after": asdict(b)} for a, b in self.changed],
            "figures": [{"before": asdict(a), "after": asdict(b)} for a, b in self.figures],
            "facts": [asdict(f) for f in self.facts],
            "not_compared": list(self.not_compared),
            "rebooted": self.rebooted,
        }


def diff(before: Snapshot, after: Snapshot, rules: Iterable[Rule], site: Site | None = None) -> Difference:
    """Return the differences between two snapshots, of one node or of two that should be alike."""
    rules = list(rules)
    reports = [evaluate_rules(rules, snapshot, site) for snapshot in (before, after)]
    not_held = {
        f.id for report in reports for f in report.findings if f.severity == "unknown" and NOT_HELD in f.evidence
    }
    old, new = ({(f.id, f.device): f for f in report.findings if f.id not in not_held} for report in reports)
    pairs = [(old[key], new[key]) for key in new if key in old and old[key] != new[key]]
    facts = [to_document(snapshot.facts) for snapshot in (before, after)]
    shared = facts[0].keys() & facts[1].keys()
    counters = {p.removesuffix(RATE) for rule in rules for p in rule.paths() | {rule.signal} if p.endswith(RATE)}
    changes = _changes("", *({key: part[key] for key in part if key in shared} for part in facts))
    boots = [part.get("boot_id") for part in facts]
    return Difference(
        reports[0],
        reports[1],
        tuple(new[key] for key in new if key not in old),
        tuple(old[key] for key in old if key not in new),
        tuple(pair for pair in pairs if _words(pair[0]) != _words(pair[1])),
        tuple(pair for pair in pairs if _words(pair[0]) == _words(pair[1])),
        tuple(FactChange(path, a, b, _noise(path, a, b, counters)) for path, a, b in changes),
        tuple(sorted((facts[0].keys() | facts[1].keys()) - shared | not_held)),
        boots[0] != boots[1] if all(isinstance(boot, str) for boot in boots) and before.host == after.host else None,
    )


def _words(finding: Finding) -> tuple[str, ...]:
    """Return a finding without its numbers."""
    texts = (finding.severity, finding.summary, finding.evidence, finding.threshold, finding.action)
    return tuple(re.sub(r"\d[\d.,e+-]*", "#", text) for text in texts)


def _changes(path: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
    if _is_table(a) and _is_table(b):
        for key in dict.fromkeys((*a, *b)):
            yield from _changes(f"{path}.{key}" if path else key, a.get(key), b.get(key))
    elif isinstance(a, list) and isinstance(b, list) and any(map(_is_table, a + b)):
        old, new = _by_device(a), _by_device(b)
        for device in dict.fromkeys((*old, *new)):
            yield from _changes(f"{path}[{device}]", old.get(device), new.get(device))
    elif not _is_same(a, b):
        yield path, a, b


def _is_table(value: Any) -> bool:
    return isinstance(value, Mapping) and not is_nothing(value)


def is_nothing(value: Any) -> bool:
    """Return whether a value of a snapshot's JSON is an `Absent` or `Unknown`."""
    return isinstance(value, Mapping) and ("$absent" in value or "$unknown" in value)


def _by_device(items: list[Any]) -> dict[str, Any]:
    return {str(item.get("device", i) if _is_table(item) else i): item for i, item in enumerate(items)}


def _is_same(a: Any, b: Any) -> bool:
    if is_number(a) and is_number(b) and (isinstance(a, float) or isinstance(b, float)):
        return bool(a == b or abs(a - b) <= SAME * max(abs(a), abs(b)))
    if is_nothing(a) and is_nothing(b):
        return set(a) == set(b)  # the reason may name a process or a time
    return bool(a == b) and type(a) is type(b)


def _noise(path: str, a: Any, b: Any, counters: set[str]) -> str:
    """Return why a change is left out; empty if it matters. A value that can no longer be read always matters."""
    plain = re.sub(r"\[.*?\]", "", path)
    name = plain.rpartition(".")[2]
    for why, pattern in PASSING:
        if pattern.search(plain):
            return why
    if not (is_number(a) and is_number(b)) or LIMIT.search(name):
        return ""
    if any(f".{plain}".endswith(f".{counter}") for counter in counters):
        return "a counter"
    return next((why for why, pattern in MOMENT if pattern.search(name)), "")
