"""Compare nodes with each other: differences from the majority, and outliers. Pure.

A healthy fleet of any size must have no findings. With a fixed limit of 3.5 robust standard deviations, one healthy
fleet of five would have an outlier with 5 nodes, and two of five with 1,000. The limit therefore depends on the number
of figures (`z_limit`), and is at least 3.5.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import NormalDist, median
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from aifx.core.facts import Absent, Unknown
from aifx.health.fleet.report import Node
from aifx.health.report import Finding
from aifx.health.rules import Severity
from aifx.health.scope import is_number
from aifx.health.tables import read_table

MIN_NODES = {"majority": 3, "bits": 2, "figure": 5}
MIN_Z = 3.5
FALSE_ALARMS = 0.01
"""The share of healthy fleets in which a figure may be an outlier by chance."""
MAX_TEXT = 160
MAX_FIGURE = 1e300


class Fact(BaseModel):
    """A fact that is compared: an entry of compare.toml, whose keys docs/doctor-fleet.md explains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    path: str
    kind: Literal["majority", "bits", "figure"]
    of: Literal["values", "count", "words", "items"] = "values"
    is_apart: bool = False
    among: str | None = None
    ignore: tuple[str, ...] = ()
    min_gap: float = 0.03
    worse: Literal["low", "high", "both"] = "both"
    severity: Severity = "warning"
    summary: str
    action: str
    source: str


@dataclass(frozen=True)
class Sample:
    """One figure of a node, or of one of its devices."""

    node: str
    device: str
    value: float


@cache
def load_facts() -> tuple[Fact, ...]:
    return tuple(Fact.model_validate(document) for document in read_table("fleet", "compare.toml")["fact"])


def light(document: Any) -> Any:
    """Return a node's document with only the compared facts: a thousand whole documents take a gigabyte."""
    snapshot = document.get("snapshot") if isinstance(document, dict) else None
    if not isinstance(snapshot, dict) or not isinstance(snapshot.get("facts"), dict):
        return document
    return {**document, "snapshot": {**snapshot, "facts": _light(snapshot["facts"], _tree()), "before": None}}


@cache
def _tree() -> dict[str, Any]:
    """Return the compared paths as a tree of names."""
    tree: dict[str, Any] = {}
    for path in (path for fact in load_facts() for path in (fact.path, fact.among) if path is not None):
        branch = tree
        for name in path.split("."):
            branch = branch.setdefault(name, {})
    return tree


def _light(value: Any, tree: Mapping[str, Any]) -> Any:
    if isinstance(value, list) and tree:
        return [_light(item, tree) for item in value]
    if not isinstance(value, dict) or not tree or "$absent" in value or "$unknown" in value:
        return value
    return {name: _light(value[name], tree.get(name, {})) for name in ("device", *tree) if name in value}


def compare(nodes: Sequence[Node], facts: Iterable[Fact] | None = None) -> list[Finding]:
    """Return findings across the nodes that sent a snapshot, by fact; `device` is the node."""
    seen = {node.name: node.snapshot.facts for node in nodes if node.snapshot is not None}
    found: list[Finding] = []
    for fact in load_facts() if facts is None else facts:
        for group in _groups(fact, seen):
            if len(group) >= MIN_NODES[fact.kind]:
                majority = _items if fact.of == "items" else _majority
                found += {"figure": _figures, "bits": _bits, "majority": majority}[fact.kind](fact, group)
    return _without_repeats(found)


def _groups(fact: Fact, seen: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Mapping[str, Any]]]:
    """Return groups of nodes that are comparable."""
    groups: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for name, facts in seen.items():
        key = "" if fact.among is None else _text([value for _, value in values_at(facts, fact.among)])
        if key or fact.kind != "bits":
            groups[key][name] = facts
    return list(groups.values())


def values_at(facts: Any, path: str, device: str = "") -> list[tuple[str, Any]]:
    """Return the values at a path, each with its device: several if a list is on the way, none if it is absent."""
    head, _, rest = path.partition(".")
    if isinstance(facts, list):
        tables = ((i, item) for i, item in enumerate(facts) if isinstance(item, Mapping))
        named = ((f"{device} {item.get('device', i)}".strip(), item) for i, item in tables)
        return [pair for name, item in named for pair in values_at(item, path, name)]
    if not isinstance(facts, Mapping) or head not in facts:
        return []
    value = facts[head]
    if rest and not isinstance(value, (Absent, Unknown)):
        return values_at(value, rest, device)
    return [] if value is None or isinstance(value, Absent) else [(device, value)]


def _known(fact: Fact, group: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the values of nodes where none is unknown: the node itself has a finding for that."""
    values = {name: [value for _, value in values_at(facts, fact.path)] for name, facts in group.items()}
    return {name: found for name, found in values.items() if not any(isinstance(value, Unknown) for value in found)}


def _majority(fact: Fact, group: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    texts = {name: _formatted(fact, values) if values else None for name, values in _known(fact, group).items()}
    counts = Counter(texts.values())
    if not counts:
        return []
    usual, held = counts.most_common(1)[0]
    total = len(texts)
    if held * 2 <= total:
        return [_mixed(fact, counts, total)] if None not in counts else []
    if usual is None:
        return []
    others = [(name, text) for name, text in texts.items() if text != usual]
    return [_other(fact, name, text, usual, f"{held} of {total} nodes") for name, text in others]


def _items(fact: Fact, group: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Return findings for nodes that lack an item of the majority."""
    held = {name: set(_text(values).split(", ")) for name, values in _known(fact, group).items() if values}
    if len(held) < MIN_NODES["majority"]:
        return []
    counts = Counter(item for items in held.values() for item in items)
    usual = {item for item, count in counts.items() if count * 2 > len(held)}
    lacking = ((name, sorted(usual - items)) for name, items in held.items())
    return [
        _other(fact, name, ", ".join(lacks), ", ".join(sorted(usual)), f"more than half of {len(held)} nodes")
        for name, lacks in lacking
        if lacks
    ]


def _bits(fact: Fact, group: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Return findings for nodes whose devices differ from devices of the same name on most nodes."""
    held: dict[str, dict[str, str]] = defaultdict(dict)
    for name, facts in group.items():
        for device, value in values_at(facts, fact.path):
            if isinstance(value, str):
                held[device][name] = value
    odd: dict[str, dict[str, str]] = defaultdict(dict)
    found: list[Finding] = []
    for device, values in held.items():
        counts = Counter(values.values())
        usual, count = counts.most_common(1)[0]
        if count * 2 > len(values):
            for name, value in values.items():
                if value != usual:
                    odd[name][device] = f"{value}, most: {usual}"
        elif not found:
            nodes = _cut(", ".join(values))
            action = (
                f"check more nodes of this kind: the majority shows which is wrong; until then, do not trust {nodes}"
            )
            found = [replace(_mixed(fact, counts, len(values)), severity="warning", action=action)]
    usual = f"as on most of {len(group)} nodes with the same devices and versions"
    for name, texts in odd.items():
        seen = _cut("; ".join(f"{device} {text}" for device, text in texts.items()))
        found.append(_finding(fact, name, f"{fact.path}: {seen}", usual, value=_cut(", ".join(texts))))
    return found


def _formatted(fact: Fact, values: list[Any]) -> str:
    if fact.of == "count":
        return str(sum(len(value) if isinstance(value, list) else 1 for value in values))
    text = _text(values)
    for pattern in fact.ignore:
        text = re.sub(pattern, "", text)
    return " ".join(sorted(text.split()) if fact.of == "words" else text.split())


def _text(values: Iterable[Any]) -> str:
    """Return the distinct values, sorted, whatever the order of the devices; for a table its names and values."""
    return ", ".join(sorted({word for value in values for word in _words(value)}))


def _words(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{name} {_word(item)}" for name, item in value.items()]
    return [_word(item) for item in (value if isinstance(value, list) else [value])]


def _word(item: Any) -> str:
    return str(item) if isinstance(item, (str, int, float)) else "?"


def _finding(fact: Fact, node: str, seen: str, limit: str, *, device: str = "", **words: str) -> Finding:
    """Return the finding of a node; `words` are those of the fact's summary and action."""
    summary, action = device + fact.summary.format(**words), fact.action.format(**words)
    return Finding(fact.id, fact.severity, node, summary, seen, limit, fact.source, action)


def _other(fact: Fact, node: str, text: str | None, usual: str, share: str) -> Finding:
    value = text or "nothing"
    if fact.of == "words" and text is not None:
        mine, theirs = set(text.split()), set(usual.split())
        value = " ".join([f"+{w}" for w in sorted(mine - theirs)] + [f"-{w}" for w in sorted(theirs - mine)])
    value, usual = _cut(value), _cut(usual)
    found = _finding(fact, node, f"{fact.path}: {value}", f"as {share}: {usual}", value=value, usual=usual)
    return found if text is not None else replace(found, summary=f"{fact.path} is not there; most nodes: {usual}")


def _mixed(fact: Fact, counts: Mapping[Any, int], total: int) -> Finding:
    frequent = ", ".join(f"{count} have {_cut(str(text), 40)}" for text, count in list(counts.items())[:3])
    more = f", and {len(counts) - 3} others" if len(counts) > 3 else ""
    what = f"no majority in {fact.path}: {frequent}{more}"
    seen = f"{fact.path}: {len(counts)} different in {total} nodes"
    action = "compare like with like: name nodes of one kind"
    return Finding(fact.id, "info", "", what, seen, "more than half alike", fact.source, action)


def _figures(fact: Fact, group: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    """Return a finding for the farthest outlier of each node."""
    kinds: dict[str, list[Sample]] = defaultdict(list)
    for name, facts in group.items():
        for device, value in values_at(facts, fact.path):
            if is_number(value) and abs(value) < MAX_FIGURE:  # not NaN, which would spoil the median
                kinds[device.split()[-1] if fact.is_apart and device else ""].append(Sample(name, device, float(value)))
    worst: dict[str, tuple[float, Finding]] = {}
    for samples in kinds.values():
        if len({sample.node for sample in samples}) < MIN_NODES["figure"]:
            continue
        middle, spread = middle_and_spread([sample.value for sample in samples])
        for sample in samples:
            off = sample.value - middle
            share = abs(off) / (abs(middle) or 1.0)
            is_bad = {"low": off < 0, "high": off > 0, "both": True}[fact.worse]
            is_worst = is_bad and worst.get(sample.node, (0.0,))[0] < share
            if is_worst and stands_out(off, middle, spread, len(samples), fact.min_gap):
                worst[sample.node] = share, _figure(fact, sample, middle, spread, len(samples))
    return [finding for _, finding in worst.values()]


def middle_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the median, and the standard deviation estimated from the median distance (1.4826 MAD)."""
    # The median of the distances from the median (MAD) ignores up to half of the nodes being bad, where a standard
    # deviation grows with the outliers that it should reveal. Times 1.4826, it estimates the standard deviation of
    # normal figures (Rousseeuw and Croux, Alternatives to the median absolute deviation, JASA 88, 1993). A distance in
    # this unit is the modified z-score, for which Iglewicz and Hoaglin recommend a limit of 3.5 (How to detect and
    # handle outliers, 1993).
    middle = median(values)
    return middle, 1.4826 * median(abs(value - middle) for value in values)


def stands_out(off: float, middle: float, spread: float, count: int, min_gap: float) -> bool:
    """Return whether a figure at distance `off` from the median is an outlier. Without a spread, the gap decides."""
    if abs(off) <= min_gap * abs(middle) or off == 0:
        return False
    return spread == 0 or abs(off) / spread > z_limit(count)


@cache
def z_limit(count: int) -> float:
    """Return the distance that the farthest of `count` figures reaches in one healthy fleet of a hundred, at least 3.5.

    For many figures, it is the quantile of the normal distribution. For few, the spread itself is uncertain, so a
    factor is fitted to simulated normal figures (17.9 at 5, 6.7 at 10, 5.3 at 20, 4.4 at 100).
    """
    # Bonferroni: each of `count` figures may exceed the limit, on both sides, with FALSE_ALARMS / count.
    normal = NormalDist().inv_cdf(1 - FALSE_ALARMS / (2 * count))
    return max(MIN_Z, normal * (1 + 10 / count + 350 / count**3))


def _figure(fact: Fact, sample: Sample, middle: float, spread: float, count: int) -> Finding:
    value, usual, off = f"{sample.value:.4g}", f"{middle:.4g}", sample.value - middle
    gap = f"{off / abs(middle):+.1%}" if middle else f"{off:+.4g}"
    z = f"{abs(off) / spread:.1f}" if spread else "the others are equal"
    device = f"{sample.device}: " if sample.device else ""
    seen = f"{device}{fact.path} = {value} ({gap}; robust z {z})"
    limits = f"within {fact.min_gap:.0%} or {z_limit(count):.1f} robust standard deviations"
    limit = f"{limits} of the median {usual} of {count}"
    return _finding(fact, sample.node, seen, limit, device=device, value=value, usual=usual, gap=gap)


def _without_repeats(found: list[Finding]) -> list[Finding]:
    """Remove findings of facts in a part that a node lacks as a whole."""
    kept, lacking = [], set()
    for finding in found:
        path, _, value = finding.evidence.partition(": ")
        key = (finding.device, path.partition(".")[0])
        if value == "nothing":
            if key in lacking:
                continue
            lacking.add(key)
        kept.append(finding)
    return kept


def _cut(text: str, limit: int = MAX_TEXT) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
