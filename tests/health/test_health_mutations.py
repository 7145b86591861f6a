"""Snapshots that were damaged in thousands of ways: and none gives a traceback."""

import random
from contextlib import suppress

import pytest
from effort import sample
from health_trees import machines, mutated, report_of, snapshot_of

from aifx.core.facts import to_document
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


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machines")
    return {name: snapshot_of(make(), folder / name).document() for name, make in machines().items()}


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_damage_is_survived(documents, shard):
    """5,000 snapshots with LONG=1, otherwise a fifth, each with up to three things damaged."""
    chance = random.Random(shard)
    there = {name: list(paths(document["facts"])) for name, document in documents.items()}
    for _ in range(sample(5000, share=0.2) // SHARDS):
        name = chance.choice(sorted(documents))
        document = documents[name]
        for _ in range(chance.choice((1, 1, 2, 3))):
            with suppress(LookupError, TypeError):  # what held it is damaged already
                document = mutated(document, ("facts", *chance.choice(there[name])), chance.choice((..., *NONSENSE)))
        report_of(parse(document, "damaged"))


def test_a_snapshot_is_the_same_after_json(documents):
    for document in documents.values():
        assert to_document(parse(document, "").facts) == document["facts"]
