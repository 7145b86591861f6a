"""Compare two snapshots of a node: findings that came, went and changed, and facts that changed.

The same rules evaluate both, so a difference is one of the machine, never of the thresholds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aifx.core.facts import to_document
from aifx.health.evaluate_rules import evaluate_rules
from aifx.health.report import SEVERITIES, Finding, Status
from aifx.health.rules import Rule, Site
from aifx.health.scope import RATE, is_number
from aifx.health.snapshot import Snapshot

SAME = 0.005
"""Two sizes within this share are equal: the kernel reserves another part of a total in each release."""

MISSING = "the snapshot has no"
"""The message of `aifx.health.scope` if a snapshot has another version or was taken with `--only`."""

LIMIT = re.compile(
    r"(^|_)(limit|max|min|total|size|capacity|target|cap|rated|default|wanted|needed|expected|threshold|allowed|speed|"
    r"enforced|application|slowdown|shutdown)(_|$)"
)
"""Names of capabilities and settings, whatever their unit: never noise."""

MOMENT = {
    "a temperature": r"(_c|temperatures?)$",
    "power drawn at the time": r"(_w|_watts|_mw)$",
    "a clock rate at the time": r"_mhz$",
    "a link at rest runs at a lower one": r"^generation$",
    "how busy it was": r"(^|_)(load|utili[sz]ation|busy|running|blocked)(_|$)|_percent$",
    "space or memory in use": r"(^|_)(used|free|available|unused|dirty|cached)(_|$)|"
    r"(^|_)(handles|tasks|threads|checkpoints)$",
    "a rate measured at the time": r"(_per_s|_per_min|_?mb_s|_?gb_s)$|^tflops|^of_|"
    r"^(kept|samples|calls|seconds|throttled)$|_elements$",
    "a time or a delay": r"(_s|_ms|_us|_ns|_minutes|_hours|_days)$|(^|_)(days|uptime|age|time|since)(_|$)",
    "a counter": r"(^|_)(errors?|counters?|events?|replays?|retries|drops?|dropped|discards?|packets|pages|kills|"
    r"throttles|flaps|downed|overruns|changes|recovered|recover(y|ies)|corrected|uncorrected|aggregate|volatile|failed|"
    r"violations?|resets|timeouts|writes|reads|periods|ber)$",
}
"""Numbers that change from minute to minute on a healthy machine: the reason, and the last names of their paths. If one
matters, a rule evaluates it, and the change is a finding."""

PASSING = {
    "a new one with each boot": r"^boot_id$",
    "who was at work": r"\b(pids?|holders?|holder_names|processes|num_processes)\b",
    "what was logged": r"\b(messages|events|kernel_log|kernel_events|xids|xid_gpus|sxids|crashes)\b",
    "what held the clocks at the time": r"\bthrottle\.reasons$|^clock\.direction$",
    "read under load": r"^stress\.sensors\b",
}
"""Facts that always change: the reason, and a name on their paths."""


@dataclass(frozen=True)
class SnapshotSide:
    host: str
    time: float
    aifx: str
    status: Status


@dataclass(frozen=True)
class FindingPair:
    before: Finding
    after: Finding


@dataclass(frozen=True)
class FactChange:
    """A fact that changed.

    Attributes:
        fact: its path, with an item of a list of devices in brackets.
        before, after: the value in the snapshot's JSON; null if there is no such device or name.
        noise: why it is left out; empty if it matters.
    """

    fact: str
    before: Any
    after: Any
    noise: str = ""


@dataclass(frozen=True)
class Difference:
    """Document of `aifx doctor diff --json`.

    Attributes:
        came: findings only in the second, worst first.
        went: findings only in the first.
        changed: findings of one rule and device whose severity or text changed.
        figures: findings in which only numbers changed.
        facts: changes of the machine, and the noise.
        not_compared: parts and rules that only one snapshot has (`--only`, or another version of aifx).
        rebooted: whether the machine was booted in between; null if that is unknown.
        worse: whether there is a new finding, or one of higher severity.
    """

    a: SnapshotSide
    b: SnapshotSide
    came: tuple[Finding, ...]
    went: tuple[Finding, ...]
    changed: tuple[FindingPair, ...]
    figures: tuple[FindingPair, ...]
    facts: tuple[FactChange, ...]
    not_compared: tuple[str, ...]
    rebooted: bool | None
    worse: bool

    @property
    def new_critical(self) -> bool:
        """Whether a finding is critical that was not."""
        became = [pair.after for pair in self.changed if pair.before.severity != "critical"]
        return any(finding.severity == "critical" for finding in (*self.came, *became))


def diff(before: Snapshot, after: Snapshot, rules: Iterable[Rule], site: Site | None = None) -> Difference:
    """Return the differences between two snapshots, of one node or of two that should be alike."""
    rules = list(rules)
    reports = [evaluate_rules(rules, snapshot, site) for snapshot in (before, after)]
    everything = [finding for report in reports for finding in report.findings]
    missing = {f.id for f in everything if f.severity == "unknown" and MISSING in f.evidence}
    old, new = ({(f.id, f.device): f for f in report.findings if f.id not in missing} for report in reports)
    pairs = [FindingPair(old[key], new[key]) for key in new if key in old and old[key] != new[key]]
    came = tuple(new[key] for key in new if key not in old)
    changed = tuple(pair for pair in pairs if _words(pair.before) != _words(pair.after))
    rank = SEVERITIES.index
    facts = [to_document(snapshot.facts) for snapshot in (before, after)]
    shared = facts[0].keys() & facts[1].keys()
    counters = {p.removesuffix(RATE) for rule in rules for p in rule.paths() | {rule.signal} if p.endswith(RATE)}
    changes = _changes("", *({key: part[key] for key in part if key in shared} for part in facts))
    boots = [part.get("boot_id") for part in facts]
    a, b = (SnapshotSide(s.host, s.time, s.version, r.status) for s, r in zip((before, after), reports, strict=True))
    return Difference(
        a,
        b,
        came,
        tuple(old[key] for key in old if key not in new),
        changed,
        tuple(pair for pair in pairs if pair not in changed),
        tuple(FactChange(path, x, y, _noise(path, x, y, counters)) for path, x, y in changes),
        tuple(sorted((facts[0].keys() | facts[1].keys()) - shared | missing)),
        boots[0] != boots[1] if all(isinstance(boot, str) for boot in boots) and a.host == b.host else None,
        bool(came) or any(rank(pair.after.severity) < rank(pair.before.severity) for pair in changed),
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
    for why, pattern in PASSING.items():
        if re.search(pattern, plain):
            return why
    if not (is_number(a) and is_number(b)) or LIMIT.search(name):
        return ""
    if any(f".{plain}".endswith(f".{counter}") for counter in counters):
        return "a counter"
    return next((why for why, pattern in MOMENT.items() if re.search(pattern, name)), "")
