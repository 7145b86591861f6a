"""Decisions that last: earlier rows keep their place when files are added, and decide about the rows like them."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from adding import LIMITS, add, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import clusters_of, edited, jaccard, order_of, some_texts, words_of
from made_rows import rows_of as dropped_rows

import aifx
from aifx.curation import decontaminate
from aifx.curation.decontaminate import Decontaminate
from aifx.curation.duplicates import Dedupe, Split
from aifx.curation.execution import execute
from aifx.curation.history import ancestors
from aifx.curation.references import ReferenceFiles, held_out_references
from aifx.curation.row_history import explain_row
from aifx.curation.step import Step
from aifx.data.names import CLUSTER, ROW, SPLIT
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import CONTINUES, Version
from aifx.search.embedders import HashedNgrams
from aifx.search.semantic import SemanticDedupe

RANK = ("train", "validation", "test")


def write(folder: Path, name: str, texts: Sequence[str]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def made(folder: Path, step: Step) -> Version:
    return execute(step, "corpus", open_catalog(str(folder / "datasets")), LIMITS).version


def texts_of(version: Version) -> dict[str, str]:
    return {row[ROW]: row["text"] for row in rows_of(version)}


def grown(folder: Path, seed: int, generations: int) -> Iterator[Version]:
    """Versions that `add` made in turn: each has new files with edited copies of all texts so far, one changed."""
    dice, texts = random.Random(seed), list[str]()
    for generation in range(generations):
        for number in range(2):
            new = some_texts(8, dice.randrange(1 << 30), vocabulary=40, longest=25)
            copies = [edited(dice.choice(texts), dice.randrange(3), dice.randrange(99)) for _ in range(8) if texts]
            texts += [*new, *copies]
            write(folder, f"{generation}-{number}", [*new, *copies])
        if generation:
            write(folder, f"{generation - 1}-0", dice.sample(texts, 12))
        yield add(folder, "corpus", *sorted(path.name for path in folder.glob("*.jsonl"))).version


def expected_splits(
    texts: Mapping[str, str], near: float, before: Mapping[str, tuple[str, str]], step: Split
) -> dict[str, tuple[str, str]]:
    """The cluster and the split of each row, by comparing all pairs. `before`: those of earlier rows."""
    groups = defaultdict(list)
    for row, cluster in clusters_of(list(texts.items()), near).items():
        groups[cluster].append(row)
    found: dict[str, tuple[str, str]] = {}
    for cluster, rows in groups.items():
        known = [before[row] for row in rows if row in before]
        name = min((one for one, _ in known), key=order_of, default=cluster)
        split = min((split for _, split in known), key=RANK.index, default=step.split_of(name))
        found |= {row: (name, before[row][1] if row in before else split) for row in rows}
    return found


def check_splits(seed: int, near: float, generations: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        before: dict[str, tuple[str, str]] = {}
        for number, version in enumerate(grown(Path(name), seed, generations)):
            step = Split((version,), 0.3, 0.3, near)
            result = made(Path(name), step)
            texts = texts_of(version)
            now = {row[ROW]: (row[CLUSTER], row[SPLIT]) for row in rows_of(result)}
            assert now == expected_splits(texts, near, before, step)
            assert (CONTINUES in result.manifest.facts) == bool(number)
            for row in texts.keys() - before.keys():
                train = [other for other in texts if now[other][1] == "train"]
                assert now[row][1] == "train" or all(jaccard(texts[row], texts[other]) < near for other in train)
            before = now


def check_dropped(seed: int, near: float | None, generations: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        kept, twins = set[str](), dict[str, tuple[str, str]]()
        for version in grown(Path(name), seed, generations):
            result = made(Path(name), Dedupe((version,), near))
            texts, groups = texts_of(version), defaultdict(list)
            for row, cluster in clusters_of(list(texts.items()), near).items():
                groups[cluster].append(row)
            expected, keepers = set[str](), dict[str, set[str]]()
            for cluster, rows in groups.items():
                own = kept.intersection(rows) or {cluster}
                expected |= own
                keepers |= dict.fromkeys(rows, own)
            assert {row[ROW] for row in rows_of(result)} == expected
            dropped = {row[ROW]: (row["rule"], row["twin"]) for row in dropped_rows(result.dropped)}
            assert dropped.keys() == texts.keys() - expected
            for row, (rule, twin) in dropped.items():
                assert twin in keepers[row]
                if row in twins and twins[row][1] in keepers[row]:
                    assert (rule, twin) == twins[row]
                elif rule == "near":
                    assert all(texts[row] != texts[other] for other in keepers[row])
            assert result.manifest.dropped_by == {
                rule: count for rule in ("exact", "near") if (count := result.manifest.facts[rule])
            }
            kept, twins = expected, dropped


def runs_of(text: str) -> set[tuple[str, ...]]:
    words = words_of(text)
    return {tuple(words[at : at + 13]) for at in range(len(words) - 12)}


def with_fragments(folder: Path, seed: int, generations: int) -> Iterator[Version]:
    """Versions that `add` made in turn. Their texts share fragments of 9 to 20 words; one file changes each time."""
    dice, texts = random.Random(seed), list[str]()
    for generation in range(generations):
        for number in range(3):
            new = some_texts(10, dice.randrange(1 << 30), vocabulary=5000, longest=60)
            for at in range(0, 10, 2) if texts else ():
                words = dice.choice(texts).split()
                begin, length = dice.randrange(len(words)), dice.randint(9, 20)
                new[at] += " " + " ".join(words[begin : begin + length])
            texts += new
            write(folder, f"{generation}-{number}", new)
        if generation:
            write(folder, f"{generation - 1}-0", dice.sample(texts, 10))
        yield add(folder, "corpus", *sorted(path.name for path in folder.glob("*.jsonl"))).version


def check_overlaps(seed: int, generations: int) -> list[tuple[int, int]]:
    """Compare each version with its own test rows. Returns the numbers of rows that were read, and of all, for each."""
    compared, read = [], list[int]()
    real = decontaminate._hits
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(decontaminate, "_hits", lambda *given: read.append(len(given[1])) or real(*given))
        folder = Path(name)
        catalog = open_catalog(str(folder / "datasets"))
        for version in with_fragments(folder, seed, generations):
            split = made(folder, Split((version,), 0.2, 0.2, None))
            own = held_out_references(split, None, None, ReferenceFiles(folder, folder / "files", LIMITS))
            read.clear()
            result = made(folder, Decontaminate((split,), own))
            rows = rows_of(split)
            compared.append((sum(read), len(rows)))
            tests = set().union(*(runs_of(row["text"]) for row in rows if row[SPLIT] != "train"))
            training = [row for row in rows if row[SPLIT] == "train"]
            expected = {row[ROW] for row in training if not runs_of(row["text"]).isdisjoint(tests)}
            assert {row[ROW] for row in dropped_rows(result.dropped)} == expected
            assert {row[ROW] for row in rows_of(result)} == {row[ROW] for row in rows} - expected
            shutil.rmtree(folder / "datasets" / "whole", ignore_errors=True)
            whole = execute(Decontaminate((split,), own), "whole", catalog, LIMITS).version
            assert result.manifest.sha256 == whole.manifest.sha256
            assert dropped_rows(result.dropped) == dropped_rows(whole.dropped), "also with the same rules and twins"
    return compared


@pytest.mark.slow
def test_only_new_rows_are_compared_with_the_own_test_rows() -> None:
    (first, _), *others = check_overlaps(3, 2)
    assert first > 0
    for read, rows in others:
        assert read < 0.75 * rows


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_overlaps_with_the_own_test_rows_are_those_of_a_whole_run(seed: int) -> None:
    check_overlaps(seed, 4)


def test_an_earlier_row_like_a_new_test_row_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compared, and no other of its shard. Shards of others stay, with rules and twins."""
    shared = [" ".join(f"{name}{number}" for number in range(15)) for name in ("old", "new")]
    texts = [f"{text} {shared[0]}" for text in some_texts(60, 3, vocabulary=5000, longest=60)]
    files = {
        "a": texts,
        "b": [*some_texts(60, 4, vocabulary=5000, longest=60), f"alone {shared[1]}"],
        "c": [f"other {number} {shared[1]}" for number in range(30)],
    }
    read: list[int] = []
    real = decontaminate._hits
    monkeypatch.setattr(decontaminate, "_hits", lambda *given: read.append(len(given[1])) or real(*given))
    versions: list[Version] = []
    for name, rows in files.items():
        write(tmp_path, name, rows)
        version = add(tmp_path, "corpus", *sorted(path.name for path in tmp_path.glob("*.jsonl"))).version
        split = made(tmp_path, Split((version,), 0.3, 0.3, None))
        own = held_out_references(split, None, None, ReferenceFiles(tmp_path, tmp_path / "files", LIMITS))
        read.clear()
        versions.append(made(tmp_path, Decontaminate((split,), own)))
    _, before, after = (dropped_rows(version.dropped) for version in versions)
    assert {row["rule"] for row in after} == {"overlaps corpus"}
    assert all(row in after for row in before)
    new = {row[ROW] for row in after} - {row[ROW] for row in before}
    (single,) = (row for row, text in texts_of(version).items() if text.startswith("alone"))
    assert single in new
    assert sum(read) <= 1 + 30
    first = {file.name: file.holder for file in versions[2].manifest.files if "/00000-" in file.name}
    assert first == dict.fromkeys(
        ["shards/00000-000.parquet", "dropped/00000-000.parquet"], versions[0].manifest.sha256
    )


def test_earlier_rows_keep_their_split_and_decide_for_those_like_them() -> None:
    check_splits(5, 0.4, 2)


def test_rows_that_were_kept_stay_kept() -> None:
    check_dropped(1, 0.4, 2)
    check_dropped(1, None, 2)


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from([0.4, 0.6, 0.8]))
def test_earlier_rows_keep_their_split(seed: int, near: float) -> None:
    check_splits(seed, near, 4)


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from([None, 0.4, 0.8]))
def test_earlier_rows_stay_kept(seed: int, near: float | None) -> None:
    check_dropped(seed, near, 4)


def steps_of(version: Version) -> tuple[Step, ...]:
    return Dedupe((version,), 0.5), Split((version,), 0.3, 0.3, 0.5)


def test_the_same_again_is_the_same_version_and_lineage_names_what_it_continues(tmp_path: Path) -> None:
    found = set()
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        versions, every = [], []
        for version in grown(folder, 7, 2):
            versions.append(version)
            every.append([made(folder, step) for step in steps_of(version)])
        found.add(tuple(one.reference for each in every for one in each))
    assert len(found) == 1
    catalog = open_catalog(str(tmp_path / "two" / "datasets"))
    for version, each in zip(versions, every, strict=True):  # newer versions change nothing
        for step, before in zip(steps_of(version), each, strict=True):
            again = execute(step, "corpus", catalog, LIMITS)
            assert (again.version.reference, again.is_new) == (before.reference, False)
    for older, newer in pairwise(every):
        for one, two in zip(older, newer, strict=True):
            assert two.manifest.facts[CONTINUES] == two.manifest.parents[1] == one.manifest.whole_reference
    names = [manifest.step.name for manifest in ancestors(catalog, every[-1][1].manifest.whole_reference)]
    assert names == ["add", "add", "split"]
    first = texts_of(versions[0])
    row = next(row[ROW] for row in dropped_rows(every[-1][0].dropped) if row[ROW] in first)
    (history,) = explain_row(catalog, row, None, [every[-1][0].manifest.whole_reference]).histories
    assert [step.outcome for step in history.steps] == ["added", "kept", "dropped"]


def test_columns_may_have_the_names_of_the_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aifx.toml").write_text("")
    (tmp_path / "tables").mkdir()
    monkeypatch.chdir(tmp_path)
    names = ("first", "n", "copy", "cluster", "rule", "row", "id", "split", "is_kept")
    for number, rows in enumerate((range(20), range(15, 40))):
        lines = [",".join(names), *(",".join([str(row)] * len(names)) for row in rows)]
        (tmp_path / f"tables/{number}.csv").write_text("\n".join(lines) + "\n")
        aifx.data_add("rows", "tables", kind="table", license="MIT")
        deduped = aifx.data_dedupe("rows")
        split = aifx.data_split("rows", validation=0.2, test=0.2)
    assert (deduped.dropped, deduped.rows) == (5, 40)
    assert deduped.facts[CONTINUES] != split.facts[CONTINUES]


def test_new_rows_leave_the_shards_of_earlier_ones(tmp_path: Path) -> None:
    """Also if they resemble them, and whichever of them come first."""
    texts = some_texts(60, 3, vocabulary=60, longest=30)
    write(tmp_path, "old", texts)
    old = add(tmp_path, "corpus", "old.jsonl").version
    before = [made(tmp_path, step) for step in steps_of(old)]
    write(tmp_path, "new", [edited(text, 1, number) for number, text in enumerate(texts)])
    new = add(tmp_path, "corpus", "new.jsonl").version
    for step, one in zip(steps_of(new), before, strict=True):
        result = made(tmp_path, step)
        assert [file.holder for file in result.manifest.shards] == [one.manifest.sha256, ""]
        assert result.manifest.facts[CONTINUES] == one.manifest.whole_reference


def test_rows_of_files_that_stay_keep_their_place_when_others_are_removed(tmp_path: Path) -> None:
    """Also if no step ran on the files that stay while they were alone, and if files with rows like them are new."""
    texts = some_texts(40, 3, vocabulary=4000, longest=30)
    write(tmp_path, "gone", texts)
    for name in ("stays", "new"):
        write(tmp_path, name, [edited(text, 1, number) for number, text in enumerate(texts, len(name))])
    add(tmp_path, "corpus", "stays.jsonl")
    old = add(tmp_path, "corpus", "gone.jsonl").version
    before = [made(tmp_path, step) for step in steps_of(old)]
    new = add(tmp_path, "corpus", "stays.jsonl", "new.jsonl", only=True).version
    results = [made(tmp_path, step) for step in steps_of(new)]
    again = add(tmp_path, "corpus", "stays.jsonl", "new.jsonl", only=True)
    assert (again.version.reference, again.is_new) == (new.reference, False)
    assert [one.manifest.facts[CONTINUES] for one in results] == [one.manifest.whole_reference for one in before]
    stayed = texts_of(new).keys() & texts_of(old).keys()
    assert len(stayed) == len(texts)
    assert {row[ROW] for row in rows_of(before[0])} & stayed <= {row[ROW] for row in rows_of(results[0])}
    was, now = ({row[ROW]: (row[CLUSTER], row[SPLIT]) for row in rows_of(one)} for one in (before[1], results[1]))
    assert {row: now[row] for row in stayed} == {row: was[row] for row in stayed}
    everything = texts_of(new)
    train = [everything[row] for row, (_, split) in now.items() if split == "train"]
    others = [row for row, (_, split) in now.items() if split != "train" and row not in stayed]
    assert others
    assert all(jaccard(everything[row], text) < 0.5 for row in others for text in train)


def test_rows_that_mean_the_same_are_dropped_by_their_own_rule(tmp_path: Path) -> None:
    texts = some_texts(12, 3, vocabulary=500, longest=30)
    facts = []
    for name, number in (("old", 0), ("new", 1)):
        write(tmp_path, name, [*texts, *(edited(text, 1, number) for text in texts if len(text.split()) > 20)])
        version = add(tmp_path, "corpus", f"{name}.jsonl").version
        result = made(tmp_path, SemanticDedupe((version,), cosine=0.8, embedder=HashedNgrams()))
        facts.append(result.manifest.facts)
        assert result.manifest.dropped_by == {
            rule: count for rule in ("exact", "semantic") if (count := result.manifest.facts[rule])
        }
    assert facts[1]["exact"] == facts[0]["exact"] + len(texts)
    assert facts[1]["semantic"] > facts[0]["semantic"] > 0
