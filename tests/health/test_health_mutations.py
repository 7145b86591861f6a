"""Snapshots that were damaged in thousands of ways: no traceback, and no rule that could not look says nothing."""

import copy
import operator
import random
from contextlib import suppress
from dataclasses import replace
from functools import reduce

import pytest
from effort import sample
from health_trees import cases, machines, report_of, snapshot_of, snapshot_of_case

from aifx.health.facts import to_document
from aifx.health.judge import judge
from aifx.health.rules import Site, load_rules
from aifx.health.snapshot import parse

NONSENSE = (None, "", "\x00 nonsense", [], {}, [1, [2]], {"a": 1}, float("nan"), -1e300, 1e300, "9" * 400)
SHARDS = 4


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
    """5,000 snapshots in `make test-long`, otherwise a fifth, each with up to three things damaged."""
    chance = random.Random(shard)
    there = {name: list(paths(document["facts"])) for name, document in documents.items()}
    for _ in range(sample(5000, share=0.2) // SHARDS):
        name = chance.choice(sorted(documents))
        document = documents[name]
        for _ in range(chance.choice((1, 1, 2, 3))):
            with suppress(LookupError, TypeError):  # what held it is damaged already
                document = mutated(document, ("facts", *chance.choice(there[name])), chance.choice((..., *NONSENSE)))
        report_of(parse(document, "damaged"))


@pytest.mark.parametrize("case", {case.rule: case for case in cases()}.values(), ids=lambda case: case.rule)
def test_what_is_gone_or_nonsense_is_unknown(case, tmp_path):
    """Each signal that a rule reads, where it fires: what it looks at, what makes it apply, what it compares with."""
    snapshot, site = snapshot_of_case(case, tmp_path), Site.model_validate(case.site)
    rule = load_rules(site)[case.rule]
    (fired, *_) = judge([rule], snapshot, site).findings
    limits = [limit["signal"] for limit in rule.fails_if.values() if isinstance(limit, dict)]
    device = next(way for way, name in devices(snapshot.facts, rule.for_each) if name == fired.device)
    for signal in (rule.signal, *rule.applies_if, *limits):
        if "expected." in signal:  # the site's own word
            continue
        for word in (..., None, {"a": 1}, [], "\x00 nonsense", float("nan"), -1e300):
            if word == [] and "lacks" in rule.applies_if.get(signal, {}):  # it does lack it
                continue
            damaged = mutated(snapshot.facts, _way(device, signal), word)
            found = judge([rule], replace(snapshot, facts=damaged), site).findings
            # What a site's file names may be any text, and another text is another.
            answers = {"unknown", rule.severity} if case.rule == "nvidia.driver.expected" else {"unknown"}
            assert answers & {f.severity for f in found if f.device == fired.device}, (signal, word)


def devices(facts, for_each):
    """The way to each device of a list, and what the judge calls it; lists on the way are gone through as well."""
    found = [((), "")]
    for key in for_each.split(".") if for_each else ():
        inner = [((*way, key), name, _at(facts, way)[key]) for way, name in found]
        lists = [(way, name, value) for way, name, value in inner if isinstance(value, list)]
        found = [(way, name) for way, name, value in inner if isinstance(value, dict)]
        found += [((*w, i), f"{n} {item['device']}".strip()) for w, n, v in lists for i, item in enumerate(v)]
    return found


def _at(facts, way):
    return reduce(operator.getitem, way, facts)


def _way(device, signal):
    """To a signal of a device."""
    signal = signal.removesuffix("_per_min") if signal != "pcie.replays_allowed_per_min" else signal
    if signal.startswith("node."):
        return tuple(signal.removeprefix("node.").split("."))
    # What a device is part of is one list and one place in it up.
    up = signal.startswith("^.")
    return (*(device[:-2] if up else device), *signal.removeprefix("^.").split("."))


def test_a_snapshot_is_the_same_after_json(documents):
    for document in documents.values():
        assert to_document(parse(document, "").facts) == document["facts"]
