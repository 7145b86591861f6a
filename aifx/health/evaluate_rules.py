"""Evaluate rules on a snapshot. This is pure, so a snapshot gives the same findings anywhere and at any time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.conditions import holds, threshold_of
from aifx.health.report import SEVERITIES, Finding, Report, Skipped
from aifx.health.rules import Rule, Site, fits
from aifx.health.scope import Scope, is_number, shown
from aifx.health.snapshot import Snapshot

NAME = re.compile(r"\{([\w.^]+)\}")
ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
PARTITION = re.compile(r"\b(?:((?:sd|vd|xvd)[a-z]+)\d+|((nvme\d+)n\d+)(?:p\d+)?)\b")
ONE = re.compile(r"(?<![\w.,])1 (time|line|report)s\b")
UNIT = re.compile(r"_(s|ms|us|c|w|mhz|mb_s|gb_s|mib|gib|bytes|percent)$")
UNITS = {"s": "s", "ms": "ms", "us": "us", "c": "C", "w": "W", "mhz": "MHz", "mb_s": "MB/s", "gb_s": "GB/s",
         "mib": "MiB", "gib": "GiB", "bytes": "B", "percent": "%"}  # fmt: skip


def evaluate_rules(rules: Iterable[Rule], snapshot: Snapshot, site: Site | None = None) -> Report:
    """Return the report: for each rule and device a finding, nothing, or the reason for skipping."""
    site, rules = site or Site(), list(rules)
    silent = Absent("neither the product nor the site's file sets the expected value")
    of_product = snapshot.facts.get("expected")
    known = of_product if isinstance(of_product, dict) else {}
    expected = {**dict.fromkeys(_expected(rules), silent), **known, **site.expected}
    node = replace(snapshot.scope(), now={**snapshot.facts, "expected": expected})
    findings = _ended_skips(site, snapshot, rules)
    skipped = [Skipped(rule.id, why) for rule in rules if (why := _site_skips(rule, site, snapshot))]
    left_out = {one.id for one in skipped}
    for outcome in (outcome for rule in rules if rule.id not in left_out for outcome in _evaluate_rule(rule, node)):
        if isinstance(outcome, Finding):
            findings.append(outcome)
        else:
            skipped.append(outcome)
    by_id = {rule.id: rule for rule in rules}
    findings = [f for f in findings if not _is_yielded(f, findings, by_id)]

    return Report(snapshot.host, tuple(_by_cause(findings, by_id, _addresses(node))), tuple(_folded(skipped, rules)))


def _addresses(node: Scope) -> dict[str, str]:
    """Return the PCI address of each device that has another name."""
    lists = [node.look_up(path) for path in ("infiniband.ports", "network.interfaces", "nvme")]
    tables = [one for devices in lists if isinstance(devices, list) for one in devices if isinstance(one, dict)]
    named = ((one.get("device"), one.get("address")) for one in tables)
    return {name: at for name, at in named if isinstance(name, str) and isinstance(at, str) and ADDRESS.fullmatch(at)}


def _by_cause(findings: list[Finding], by_id: dict[str, Rule], addresses: dict[str, str]) -> Iterator[Finding]:
    """Yield findings, worst first, each followed by its consequences. One worse than its cause is on its own."""
    order = {name: number for number, name in enumerate(by_id)}
    findings = sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), order.get(f.id, -1), f.device))

    def explains(one: int, other: int) -> bool:
        return _explains(by_id.get(findings[one].id), findings[one], findings[other], addresses)

    cause: dict[int, int] = {}
    for number, finding in enumerate(findings):
        for other, one in enumerate(findings):
            is_milder = SEVERITIES.index(one.severity) > SEVERITIES.index(finding.severity)
            if is_milder or other == number or not explains(other, number):
                continue
            # If two explain each other, the first is the cause.
            is_twin = other > number and explains(number, other)
            if not is_twin and number not in _causes(other, cause):
                cause[number] = other
                break

    def with_consequences(number: int) -> Iterator[Finding]:
        explained_by = findings[cause[number]].id if number in cause else ""
        yield replace(findings[number], explained_by=explained_by)
        for consequence in (n for n, its_cause in cause.items() if its_cause == number):
            yield from with_consequences(consequence)

    for number in range(len(findings)):
        if number not in cause:
            yield from with_consequences(number)


def _causes(number: int, cause: dict[int, int]) -> Iterator[int]:
    while number in cause:
        number = cause[number]
        yield number


def _expected(rules: Iterable[Rule]) -> set[str]:
    """Return the names of the expected values that rules use."""
    asked = (path for rule in rules for path in rule.paths() if path.startswith("expected."))
    return {path.removeprefix("expected.") for path in asked}


def _today(snapshot: Snapshot) -> date:
    return datetime.fromtimestamp(snapshot.time, UTC).date()


def _site_skips(rule: Rule, site: Site, snapshot: Snapshot) -> str:
    """Return why the site skips a rule; empty if it does not."""
    for skip in site.skip:
        if fits(rule.id, skip.id) and (skip.until is None or _today(snapshot) <= skip.until):
            return f"the site's file: {skip.reason}{f', until {skip.until}' if skip.until else ''}"
    return ""


def _ended_skips(site: Site, snapshot: Snapshot, rules: list[Rule]) -> list[Finding]:
    """Return a finding for each skip of these rules that has ended."""
    return [
        Finding(
            "site.skip.ended",
            "info",
            "",
            f"the site's skip of {skip.id} ended on {skip.until}: aifx evaluates it again",
            f"reason: {skip.reason}",
            f"until {skip.until}",
            "the site's file",
            "renew the skip or remove it",
        )
        for skip in site.skip
        if skip.until is not None and _today(snapshot) > skip.until and any(fits(rule.id, skip.id) for rule in rules)
    ]


def _evaluate_rule(rule: Rule, node: Scope) -> Iterator[Finding | Skipped]:
    for scope in node.items(rule.for_each) if rule.for_each else [node]:
        if isinstance(scope, Absent):
            yield Skipped(rule.id, scope.why)
        elif isinstance(scope, Unknown):
            yield _unknown(rule, "", scope)
        else:
            outcome = _evaluate_device(rule, scope)
            if outcome is not None:
                yield outcome


def _evaluate_device(rule: Rule, scope: Scope) -> Finding | Skipped | None:
    for signal, condition in rule.applies_if.items():
        value = scope.look_up(signal)
        applies = value if isinstance(value, (Absent, Unknown)) else holds(condition, value, scope, rule.range[0])
        if isinstance(applies, Unknown):
            return _unknown(rule, scope.device, applies, signal)
        if isinstance(applies, Absent):
            return Skipped(rule.id, applies.why)
        if not applies:
            return None
    value = scope.look_up(rule.signal)
    failed = value if isinstance(value, (Absent, Unknown)) else _makes_sense(rule, value)
    if failed is True:
        failed = holds(rule.fails_if, value, scope, rule.range[0])
    if isinstance(failed, Absent):
        return Skipped(rule.id, failed.why)
    if isinstance(failed, Unknown):
        return _unknown(rule, scope.device, failed, rule.signal)
    return _finding(rule, scope, value) if failed else None


def _makes_sense(rule: Rule, value: Any) -> bool | Unknown:
    if is_number(value) and not (math.isfinite(value) and rule.range[0] <= value <= rule.range[1]):
        return Unknown(f"{rule.signal} cannot be {value}")
    if rule.known is not None and value not in rule.known and not isinstance(value, list):
        return Unknown(f"{rule.signal} is {shown(value)}, which this version of aifx does not know")
    if rule.known is not None and value == []:
        return Unknown(f"{rule.signal} is empty")
    if rule.known is not None and isinstance(value, list) and (strange := [v for v in value if v not in rule.known]):
        return Unknown(f"{rule.signal} contains {shown(strange[0])}, which this version of aifx does not know")
    return True


def _finding(rule: Rule, scope: Scope, value: Any) -> Finding:
    limits = [limit["signal"] for limit in rule.fails_if.values() if isinstance(limit, dict)]
    seen = dict.fromkeys((rule.signal, *limits, *rule.evidence))
    return Finding(
        rule.id,
        rule.severity,
        scope.device,
        filled(rule.summary, scope),
        ", ".join(f"{_plain_name(name)} = {_shown(name, scope.look_up(name))}" for name in seen),
        threshold_of(rule.fails_if, scope),
        rule.source,
        filled(rule.action, scope, to_type=True),
    )


def _unknown(rule: Rule, device: str, unknown: Unknown, signal: str = "") -> Finding:
    return Finding(
        rule.id,
        "unknown",
        device,
        f"{rule.id} could not be evaluated: {unknown.why}",
        f"{signal or rule.for_each}: {unknown.why}",
        threshold_of(rule.fails_if),
        rule.source,
        unknown.remedy or "fix what prevents reading it, then run the check again",
    )


def filled(text: str, scope: Scope, to_type: bool = False) -> str:
    """Return a text with each `{signal}` replaced by its value. In a command to type, numbers have no unit."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "device":
            return scope.device
        found = scope.look_up(match[1])
        return f"{found:.12g}" if to_type and is_number(found) else _shown(match[1], found)

    return ONE.sub(r"1 \1", NAME.sub(value, text))


def _shown(name: str, value: Any) -> str:
    if isinstance(value, (Absent, Unknown)):
        return "?"
    unit = UNIT.search(name)
    end = ("" if unit[1] == "percent" else " ") + UNITS[unit[1]] if unit else ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit and unit[1] == "s" and is_number(value) and value >= 600:
        return f"{value / 3600:.1f} h" if value < 172_800 else f"{value / 86_400:.1f} days"
    if unit and unit[1] == "bytes" and is_number(value) and value >= 1 << 30:
        return f"{value / (1 << 30):,.4g} GiB"
    if isinstance(value, float):
        return f"{value:,.0f}{end}" if abs(value) >= 1000 else f"{value:.4g}{end}"
    if isinstance(value, int):
        return f"{value}" if name.endswith("code") else f"{value:,}{end}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain_name(name: str) -> str:
    return name.removeprefix("node.").removeprefix("^.")


def _is_yielded(finding: Finding, findings: list[Finding], by_id: dict[str, Rule]) -> bool:
    yields = by_id[finding.id].yields_to if finding.id in by_id else ()
    others = (o for o in findings if o.device == finding.device and o.severity not in ("unknown",))
    return finding.severity != "unknown" and any(other.id in yields for other in others)


def _explains(rule: Rule | None, other: Finding, finding: Finding, addresses: dict[str, str]) -> bool:
    """Return whether `other`, of `rule`, explains `finding`."""
    if rule is None or other.severity == "unknown":
        return False
    near = (
        not other.device
        or not finding.device
        or bool(_names(other.device, addresses) & _names(finding.device, addresses))
    )
    return near and any(fits(finding.id, pattern) for pattern in rule.explains)


def _names(device: str, addresses: dict[str, str]) -> set[str]:
    """Return the names of a device. NVML numbers GPUs, the kernel log has addresses: "GPU3 (0000:3b:00.0) link 4".

    A partition also has the name of its disk, and an NVMe disk that of its controller.
    """
    found = {*device.split()[:1], *ADDRESS.findall(device)}
    return (
        found
        | {addresses[name] for name in found if name in addresses}
        | {name for m in PARTITION.finditer(device) for name in m.groups() if name}
    )


def _folded(skipped: list[Skipped], rules: list[Rule]) -> Iterator[Skipped]:
    """Yield one line for a family if all of its rules are skipped for the same reason."""
    reasons: dict[str, dict[str, None]] = {}
    for one in skipped:
        reasons.setdefault(one.id, {})[one.why] = None
    by_family: dict[str, list[str]] = {}
    for rule in rules:
        by_family.setdefault(rule.family, []).append(rule.id)
    for family, ids in by_family.items():
        whys = {tuple(reasons.get(name, ())) for name in ids}
        if len(whys) == 1 and (only := whys.pop()):
            yield Skipped(f"{family}.*" if len(ids) > 1 else ids[0], "; ".join(only))
        else:
            yield from (Skipped(name, "; ".join(reasons[name])) for name in ids if name in reasons)
