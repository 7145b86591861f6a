"""Snapshots that were damaged in thousands of ways: no traceback, and no rule that could not look says nothing."""

import copy
import random
from contextlib import suppress
from dataclasses import replace

import pytest
from health_trees import machines, report_of, snapshot_of

from aifx.health.conditions import holds
from aifx.health.facts import Absent, to_document
from aifx.health.judge import judge
from aifx.health.rules import load_rules
from aifx.health.snapshot import parse

NONSENSE = (None, "", "\x00 nonsense", [], {}, [1, [2]], {"a": 1}, float("nan"), -1e300, 1e300, "9" * 400)
RULES = load_rules()
SHARDS = 8


def paths(value, here=()):
    """The way to each value inside."""
    if isinstance(value, dict) and "$absent" not in value:
        for key, item in value.items():
            yield (*here, key)
            yield from paths(item, (*here, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield (*here, index)
            yield from paths(item, (*here, index))


def mutated(value, path, word):
    """A copy in which what stands at `path` is gone (`...`) or has become `word`; what is not on the way is shared."""
    value, (key, *rest) = copy.copy(value), path
    if rest:
        value[key] = mutated(value[key], rest, word)
    elif word is ...:
        del value[key]
    else:
        value[key] = word
    return value


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    return {name: snapshot_of(make(), folder / name).document() for name, make in machines().items()}


@pytest.mark.parametrize("shard", range(SHARDS))
def test_damage_is_survived(documents, shard):
    """5,000 snapshots in all, with up to three things damaged, and what was healthy is never said to be worse than
    unknown for a thing that is gone."""
    chance = random.Random(shard)
    there = {name: list(paths(document["facts"])) for name, document in documents.items()}
    for _ in range(5000 // SHARDS):
        name = chance.choice(sorted(documents))
        document = documents[name]
        for _ in range(chance.choice((1, 1, 2, 3))):
            with suppress(LookupError, TypeError):  # what held it is damaged already
                document = mutated(document, ("facts", *chance.choice(there[name])), chance.choice((..., *NONSENSE)))
        report_of(parse(document, "damaged"))


@pytest.mark.parametrize("name", machines())
def test_what_is_gone_or_nonsense_is_unknown(documents, name):
    """For each rule that was judged: its signal gone, or no value that it can be."""
    document = documents[name]
    healthy = report_of(parse(document, name))
    assert not healthy.findings
    judged = [rule for rule in RULES.values() if not _skipped(rule, healthy) and _reads(document, rule)]
    assert judged
    snapshot = parse(document, name)
    for rule in judged:
        for word in (..., None, {"a": 1}, "\x00 nonsense", float("nan")):
            _, *way = _way(document, rule)
            damaged = replace(snapshot, facts=mutated(snapshot.facts, way, word))
            found = judge([rule], damaged).findings
            assert any(f.severity == "unknown" for f in found), (rule.id, word)


def _skipped(rule, report):
    return any(s.id == rule.id or s.id == f"{rule.family}.*" for s in report.skipped)


def _way(document, rule):
    """To the rule's signal, on the first device for which it is there."""
    signal = rule.signal.removesuffix("_per_min")
    if signal.startswith("node."):
        return ("facts", *signal.removeprefix("node.").split("."))
    way: tuple = ("facts",)
    value = document["facts"]
    for key in rule.for_each.split(".") if rule.for_each else ():
        value = value[key]
        way = (*way, key)
        if isinstance(value, list):
            value, way = value[0], (*way, 0)
    return (*way, *signal.split("."))


def _reads(document, rule):
    """Whether the rule looks at a value there: its condition to apply may not hold on this machine."""
    node = parse(document, "").scope()
    scopes = list(node.items(rule.for_each)) if rule.for_each else [node]
    if not scopes or rule.signal.endswith("_per_min"):
        return False
    scope = scopes[0]
    if not hasattr(scope, "look_up") or isinstance(scope.look_up(rule.signal), Absent):
        return False
    limits = [limit["signal"] for limit in rule.fails_if.values() if isinstance(limit, dict)]
    if any(isinstance(scope.look_up(signal), Absent) for signal in limits):
        return False
    asked = [(scope.look_up(signal), condition) for signal, condition in rule.applies_if.items()]
    return all(not isinstance(value, Absent) and holds(condition, value, scope) is True for value, condition in asked)


def test_a_snapshot_is_the_same_after_json(documents):
    for document in documents.values():
        assert to_document(parse(document, "").facts) == document["facts"]
