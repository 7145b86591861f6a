"""Several data sets of text in turn: shares, epochs, and batches that depend on the step alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prose import prose
from stored_versions import LIMITS, make_version

from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project
from aifx.curation.execution import execute
from aifx.curation.mix import mix_of, parse_sets
from aifx.curation.step import Outcome, ShardStep
from aifx.data.order import CYCLE, Turns
from aifx.data.sections import TextSection
from aifx.data.text import MixedText
from aifx.data.versions.catalog import open_catalog

# Each set has a letter that no other has.
MARKS = {"web": "W", "books": "B", "code": "C"}
HELD_OUT = {"validation_fraction": 0.1, "test_fraction": 0.1}


@dataclass(frozen=True)
class Without(ShardStep):
    """Keeps all rows."""

    name, version, settings = "without", 1, {}

    def apply(self, rows: Any, work: Path) -> Outcome:
        return Outcome(rows)


def texts(name: str, count: int) -> list[str]:
    return [prose(30 + seed % 70, seed).replace("a", MARKS[name]) + MARKS[name] for seed in range(count)]


def make_mix(project: Project, *sets: str, epochs: tuple[str, ...] = ()) -> str:
    catalog = open_catalog(project.datasets, project)
    step = mix_of(parse_sets(sets, epochs), catalog)
    return execute(step, "blend", catalog, LIMITS).version.reference


@pytest.fixture
def sets(project: Project) -> Project:
    for name, count in {"web": 120, "books": 60, "code": 30}.items():
        make_version(project, name, {"text": texts(name, count)})
    return project


def drawn(data: MixedText, steps: int, batch_size: int = 8) -> Counter[str]:
    """Tokens of each set in batches of training, by the letter that marks it."""
    source, counts = data.source("train", batch_size, seed=1), Counter[str]()
    for step in range(steps):
        batch = source.read(step, slice(None))
        for row in range(batch_size):
            counted = batch["weights"][row] > 0
            text = data.parts[0].tokenizer.decode(batch["targets"][row][counted].tolist())
            (name,) = [name for name, mark in MARKS.items() if mark in text] or [None]
            if name is not None:
                counts[name] += int(counted.sum())
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["stream", "documents"])
def test_the_tokens_drawn_have_the_shares_of_the_weights(
    sets: Project, open_: Callable[..., MixedText], packing: str
) -> None:
    make_mix(sets, "web:0.5", "books:0.3", "code:0.2")
    data = open_(dataset="blend", packing=packing, seq_len=256, **HELD_OUT)
    counts = drawn(data, 250)
    whole = counts.total()
    for name, share in {"web": 0.5, "books": 0.3, "code": 0.2}.items():
        assert counts[name] / whole == pytest.approx(share, abs=0.01)


def test_a_batch_depends_on_the_step_alone(sets: Project, open_: Callable[..., MixedText]) -> None:
    make_mix(sets, "web:2", "books:1", epochs=("books:3",))
    data = open_(dataset="blend", **HELD_OUT)
    source, again = (data.source("train", 8, seed=5) for _ in range(2))
    in_order = [source.read(step, slice(None))["inputs"] for step in range(40)]
    for step in reversed(range(40)):
        parts = [again.read(step, rows)["inputs"] for rows in (slice(4, 8), slice(0, 4))]
        np.testing.assert_array_equal(np.concatenate(parts[::-1]), in_order[step])


@pytest.mark.slow
def test_each_sequence_of_a_set_comes_once_in_each_epoch(sets: Project, open_: Callable[..., MixedText]) -> None:
    make_mix(sets, "web:0.6", "books:0.4", epochs=("1",))
    data = open_(dataset="blend", packing="documents", **HELD_OUT)
    source = data.source("train", 1, seed=5)
    assert source.most_rows == sum(len(one.sequences) for one in source.sources)
    rows = [source.read(step, slice(None))["inputs"].tobytes() for step in range(source.most_rows)]
    whole = {
        data.source("train", 1, seed=0).sources[n].read(s, slice(None))["inputs"].tobytes()
        for n in range(2)
        for s in range(len(source.sources[n].sequences))
    }
    assert set(rows) == whole
    with pytest.raises(DataError, match="no row left"):
        source.read(source.most_rows, slice(None))


def test_an_evaluation_reads_each_token_of_each_set_once(sets: Project, open_: Callable[..., MixedText]) -> None:
    make_mix(sets, "web:0.9", "books:0.1")
    data = open_(dataset="blend", **HELD_OUT)
    source = data.source("test", 8, seed=None)
    batches = [source.read(step, slice(None)) for step in range(source.num_batches)]
    counted = sum(data.counts(batch)["tokens"] for batch in batches)
    assert counted == sum(part.store.splits["test"].num_targets for part in data.parts)


def test_one_tokenizer_of_all_training_splits(project: Project, open_: Callable[..., MixedText]) -> None:
    for name, mark in {"web": "Ω", "books": "Ж"}.items():
        held_out = "þ" * 3000
        make_version(
            project, name, {"text": [*texts(name, 20), mark * 3000, held_out], "_split": ["train"] * 21 + ["test"]}
        )
    make_mix(project, "web:1", "books:1")
    data = open_(dataset="blend", tokenizer="char", vocab_size=None, validation_fraction=0.0)
    assert [len(data.parts[0].tokenizer.encode(mark)) for mark in "ΩЖþ"] == [1, 1, 2]
    assert data.parts[0].tokenizer is data.parts[1].tokenizer


def test_turns_keep_to_the_shares_at_any_place() -> None:
    turns = Turns((0.7, 0.2, 0.1), (None, None, None))
    seen: Counter[int] = Counter()
    for place in range(3 * CYCLE):
        part, turn = turns(place)
        assert turn == seen[part]  # in order, none left out
        seen[part] += 1
        for part, share in enumerate(turns.shares):
            assert abs(seen[part] - share * (place + 1)) <= 1.5


@pytest.mark.parametrize("limits", [(5, 2500, None), (1700, 40, 3), (1, 1, 1)])
def test_turns_keep_to_the_limits(limits: tuple[int | None, ...]) -> None:
    turns = Turns((0.5, 0.3, 0.2), limits)
    seen: Counter[int] = Counter()
    for place in range(turns.num_places or 8000):
        part, turn = turns(place)
        assert turn == seen[part]
        seen[part] += 1
    for part, limit in enumerate(limits):
        assert limit is None or seen[part] == limit
    assert turns.num_places == (None if None in limits else sum(limits))


@pytest.mark.parametrize(
    ("sets_", "epochs", "message"),
    [
        (["web:1"], [], "two data sets"),
        (["web:1", "books"], [], "'books' has no weight"),
        (["web:1", "books:none"], [], "'none' cannot be used"),
        (["web:1", "books:-2"], [], "'-2' cannot be used"),
        (["web:1", "web:2"], [], "named twice"),
        (["web:1", "books:0.0001"], [], "too small"),
        (["web:1", "books:1"], ["code:2"], "no data set of the mix"),
        (["web:1", "books:1"], ["books:0"], "'0' cannot be used"),
    ],
)
def test_a_mix_that_cannot_be_meant(sets_: list[str], epochs: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_sets(sets_, epochs)


def test_what_cannot_be_mixed(sets: Project) -> None:
    mix = make_mix(sets, "web:1", "books:1")
    with pytest.raises(UsageError, match="is a mix itself"):
        make_mix(sets, f"{mix}:1", "code:1")
    make_version(sets, "points", {"x": [1, 2]}, "table")
    with pytest.raises(UsageError, match="holds table") as refused:
        make_mix(sets, "points:1", "code:1")
    assert "cannot be mixed" in refused.value.what
    with pytest.raises(DataError, match="mix of 2"):
        TextSection(dataset=mix).open_part(sets)


def test_the_version_has_no_rows_and_names_its_parents(sets: Project) -> None:
    mix = make_mix(sets, "web:0.7", "books:0.3", epochs=("books:4",))
    manifest = open_catalog(sets.datasets, sets).manifest(mix)
    assert (manifest.rows, manifest.shards) == (0, ())
    assert [parent.partition("@")[0] for parent in manifest.parents] == ["web", "books"]
    assert manifest.step.settings == {"weights": [0.7, 0.3], "epochs": [None, 4.0]}
    assert manifest.facts["mixed_rows"] == 180
    assert make_mix(sets, "web:0.7", "books:0.3", epochs=("books:4",)) == mix
    assert make_mix(sets, "web:0.7", "books:0.4", epochs=("books:4",)) != mix


def test_a_step_refuses_a_mix(sets: Project) -> None:
    make_mix(sets, "web:1", "books:1")
    catalog = open_catalog(sets.datasets, sets)
    with pytest.raises(UsageError, match=r"blend@.*no rows"):
        execute(Without((catalog.open("blend"),)), "other", catalog, LIMITS)
