"""Evaluate rules on a snapshot. This is pure, so a snapshot gives the same findings anywhere and at any time."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

from aifx.core.facts import Absent, Unknown
from aifx.health.conditions import holds, threshold_of
from aifx.health.report import SEVERITIES, Finding, Report, Skipped
from aifx.health.rules import Rule, Site, expected_names, fits
from aifx.health.scope import Scope, formatted, is_number
from aifx.health.snapshot import Snapshot

NAME = re.compile(r"\{([\w.^]+)\}")
ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
PARTITION = re.compile(r"\b(?:((?:sd|vd|xvd)[a-z]+)\d+|((nvme\d+)n\d+)(?:p\d+)?)\b")
ONE = re.compile(r"(?<![\w.,])1 (time|line|report)s\b")
UNITS = {"s": " s", "ms": " ms", "us": " us", "c": " C", "w": " W", "mhz": " MHz", "mb_s": " MB/s", "gb_s": " GB/s",
         "mib": " MiB", "gib": " GiB", "bytes": " B", "percent": "%"}  # fmt: skip
UNIT = re.compile(rf"_({'|'.join(UNITS)})$")


def evaluate_rules(rules: Iterable[Rule], snapshot: Snapshot, site: Site | None = None) -> Report:
    """Return the report: for each rule and device a finding, nothing, or the reason for skipping."""
    site, rules = site or Site(), list(rules)
    by_id = {rule.id: rule for rule in rules}
    silent = Absent("neither the product nor the site's file sets the expected value")
    of_product = snapshot.facts.get("expected")
    known = of_product if isinstance(of_product, dict) else {}
    expected = {**dict.fromkeys(expected_names(rules), silent), **known, **site.expected}
    node = replace(snapshot.scope(), now={**snapshot.facts, "expected": expected})
    skips, ended = _site_skips(rules, site, datetime.fromtimestamp(snapshot.time, UTC).date())
    outcomes = [outcome for rule in rules if rule.id not in skips for outcome in _evaluate_rule(rule, node)]
    findings = ended + [one for one in outcomes if isinstance(one, Finding)]
    skipped = [*skips.values(), *(one for one in outcomes if isinstance(one, Skipped))]
    reported = {(f.id, f.device) for f in findings if f.severity != "unknown"}

    def is_yielded(finding: Finding) -> bool:
        worse = by_id[finding.id].yields_to if finding.id in by_id else ()
        return finding.severity != "unknown" and any((name, finding.device) in reported for name in worse)

    findings = list(itertools.filterfalse(is_yielded, findings))
    return Report(snapshot.host, tuple(_by_cause(findings, by_id, _addresses(node))), tuple(_folded(skipped, rules)))


def _addresses(node: Scope) -> dict[str, str]:
    """Return the PCI address of each device that has another name."""
    lists = [node.look_up(path) for path in ("infiniband.ports", "network.interfaces", "nvme")]
    tables = [one for devices in lists if isinstance(devices, list) for one in devices if isinstance(one, dict)]
    named = ((str(one.get("device")), str(one.get("address"))) for one in tables)
    return {name: address for name, address in named if ADDRESS.fullmatch(address)}


def _by_cause(findings: list[Finding], by_id: dict[str, Rule], addresses: dict[str, str]) -> Iterator[Finding]:
    """Yield findings, worst first, each followed by its consequences. One worse than its cause is on its own."""
    order = {name: number for number, name in enumerate(by_id)}
    findings = sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), order.get(f.id, -1), f.device))
    cause: dict[int, int] = {}

    def path(number: int) -> tuple[int, ...]:
        """Return a finding with its causes, the first cause first."""
        return (*path(cause[number]), number) if number in cause else (number,)

    for number, finding in enumerate(findings):
        for other, one in enumerate(findings):
            is_milder = SEVERITIES.index(one.severity) > SEVERITIES.index(finding.severity)
            if is_milder or other == number or not _explains(one, finding, by_id, addresses):
                continue
            # If two explain each other, the first is the cause.
            is_twin = other > number and _explains(finding, one, by_id, addresses)
            if not is_twin and number not in path(other):
                cause[number] = other
                break
    for number in sorted(range(len(findings)), key=path):
        yield replace(findings[number], explained_by=findings[cause[number]].id if number in cause else "")


def _site_skips(rules: Iterable[Rule], site: Site, today: date) -> tuple[dict[str, Skipped], list[Finding]]:
    """Return the rules that the site's file skips, and a finding for each skip of one of the rules that has ended."""
    skipped: dict[str, Skipped] = {}
    ended = []
    for skip in site.skip:
        ids = [rule.id for rule in rules if fits(rule.id, skip.id)]
        if skip.until is None or today <= skip.until:
            why = f"the site's file: {skip.reason}{f', until {skip.until}' if skip.until else ''}"
            skipped = {name: Skipped(name, why) for name in ids} | skipped
        elif ids:
            what = f"the site's skip of {skip.id} ended on {skip.until}: aifx evaluates it again"
            seen, limit, action = f"reason: {skip.reason}", f"until {skip.until}", "renew the skip or remove it"
            ended.append(Finding("site.skip.ended", "info", "", what, seen, limit, "the site's file", action))
    return skipped, ended


def _evaluate_rule(rule: Rule, node: Scope) -> Iterator[Finding | Skipped]:
    for scope in node.items(rule.for_each) if rule.for_each else [node]:
        signal, fails = _fails(rule, scope) if isinstance(scope, Scope) else (rule.for_each or "", scope)
        if isinstance(fails, Absent):
            yield Skipped(rule.id, fails.why)
        elif isinstance(fails, Unknown):
            yield _unknown(rule, scope.device if isinstance(scope, Scope) else "", fails, signal)
        elif fails and isinstance(scope, Scope):
            yield _finding(rule, scope)


def _fails(rule: Rule, scope: Scope) -> tuple[str, bool | Absent | Unknown]:
    """Return whether a rule fails, and the signal that decides it."""
    for signal, condition in rule.applies_if.items():
        applies = holds(condition, scope.look_up(signal), scope, rule.range[0])
        if applies is not True:
            return signal, applies
    value = scope.look_up(rule.signal)
    strange = _strange(rule, value)
    return rule.signal, Unknown(strange) if strange else holds(rule.fails_if, value, scope, rule.range[0])


def _strange(rule: Rule, value: Any) -> str:
    """Return why the rule's signal cannot have a value; empty if it can."""
    if is_number(value) and not (math.isfinite(value) and rule.range[0] <= value <= rule.range[1]):
        return f"{rule.signal} cannot be {value}"
    if rule.known is None or isinstance(value, (Absent, Unknown)):
        return ""
    if value == []:
        return f"{rule.signal} is empty"
    verb = "contains" if isinstance(value, list) else "is"
    others = [one for one in (value if isinstance(value, list) else [value]) if one not in rule.known]
    return f"{rule.signal} {verb} {formatted(others[0])}, which this version of aifx does not know" if others else ""


def _finding(rule: Rule, scope: Scope) -> Finding:
    limits = [limit["signal"] for limit in rule.fails_if.values() if isinstance(limit, dict)]
    seen = {name: _formatted_signal(name, scope.look_up(name)) for name in (rule.signal, *limits, *rule.evidence)}
    return Finding(
        rule.id,
        rule.severity,
        scope.device,
        filled(rule.summary, scope),
        ", ".join(f"{name.removeprefix('node.').removeprefix('^.')} = {text}" for name, text in seen.items()),
        threshold_of(rule.fails_if, scope),
        rule.source,
        filled(rule.action, scope, to_type=True),
    )


def _unknown(rule: Rule, device: str, unknown: Unknown, signal: str) -> Finding:
    what, seen = f"{rule.id} could not be evaluated: {unknown.why}", f"{signal}: {unknown.why}"
    action = unknown.remedy or "fix what prevents reading it, then run the check again"
    return Finding(rule.id, "unknown", device, what, seen, threshold_of(rule.fails_if), rule.source, action)


def filled(text: str, scope: Scope, to_type: bool = False) -> str:
    """Return a text with each `{signal}` replaced by its value. In a command to type, numbers have no unit."""

    def value(match: re.Match[str]) -> str:
        if match[1] == "device":
            return scope.device
        found = scope.look_up(match[1])
        return f"{found:.12g}" if to_type and is_number(found) else _formatted_signal(match[1], found)

    return ONE.sub(r"1 \1", NAME.sub(value, text))


def _formatted_signal(name: str, value: Any) -> str:
    if isinstance(value, (Absent, Unknown)):
        return "?"
    unit = UNIT.search(name)
    end = UNITS[unit[1]] if unit else ""
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


def _explains(one: Finding, other: Finding, by_id: Mapping[str, Rule], addresses: Mapping[str, str]) -> bool:
    """Return whether the first finding explains the second."""
    if one.severity == "unknown" or one.id not in by_id:
        return False
    is_near = not (one.device and other.device) or bool(_names(one.device, addresses) & _names(other.device, addresses))
    return is_near and any(fits(other.id, pattern) for pattern in by_id[one.id].explains)


def _names(device: str, addresses: Mapping[str, str]) -> set[str]:
    """Return the names of a device. NVML numbers GPUs, the kernel log has addresses: "GPU3 (0000:3b:00.0) link 4".

    A partition also has the name of its disk, and an NVMe disk that of its controller.
    """
    found = {*device.split()[:1], *ADDRESS.findall(device)}
    disks = {name for match in PARTITION.finditer(device) for name in match.groups() if name}
    return found | disks | {addresses[name] for name in found if name in addresses}


def _folded(skipped: list[Skipped], rules: list[Rule]) -> Iterator[Skipped]:
    """Yield one line for a family if all of its rules are skipped for the same reason."""
    reasons: dict[str, dict[str, None]] = {}
    for one in skipped:
        reasons.setdefault(one.id, {})[one.why] = None
    families: dict[str, dict[str, str]] = {}
    for rule in rules:
        families.setdefault(rule.family, {})[rule.id] = "; ".join(reasons.get(rule.id, ()))
    for family, whys in families.items():
        if len(whys) > 1 and len(set(whys.values())) == 1:
            whys = {f"{family}.*": next(iter(whys.values()))}
        yield from (Skipped(name, why) for name, why in whys.items() if why)
