"""Recipes that make one version of several steps: the rows and the answers of `why` that separate steps give."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from prose import prose

import aifx
from aifx.config.toml import literal
from aifx.curation.row_history import explain_row
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version
from aifx.data.versions.shards import read_shard

RULES = [
    {"column": "text", "check": "matches", "pattern": "^[a-r]"},
    {"id": "short", "check": "length", "column": "text", "at_least": 20},
    {"column": "text", "check": "unique", "mostly": 0.1},
    {"check": "rows", "at_least": 3},
]
STEPS: dict[str, list[dict[str, Any]]] = {
    "clean": [{"rules": []}, {"rules": [], "unicode": "NFKC", "repair": False}],
    "dedupe": [{}, {"near": 0.7}, {"mark": True}],
    "pii": [{"mask": True}, {"drop": True}],
    "split": [{"validation": 0.3, "test": 0.3}],
    "decontaminate": [{"against": ["test.txt"]}, {}],
    "expect": [{"rules": RULES}],
    "label_apply": [{"column": "label"}],
}


def write_texts(folder: Path, dice: random.Random) -> None:
    """Texts with copies, near copies, addresses, wrongly decoded characters, one that is too short, and bad lines."""
    folder.mkdir()
    texts = [prose(150, seed) for seed in range(20)]
    texts += [texts[0], f"another {texts[1]}", "  ", f"{texts[2]} caf\u00c3\u00a9 there"]
    texts += [f"{prose(120, 100 + n)} write to ann{n % 2}@example.com" for n in range(4)]
    texts.append(texts[-1].replace("ann1", "bob"))  # a copy only when it is masked
    texts += [" ".join(reversed(text.split())) for text in texts[5:9]]  # the same words
    dice.shuffle(texts)
    for number in range(3):
        lines = [json.dumps({"text": text}) for text in texts[number::3]]
        (folder / f"{number}.jsonl").write_text("\n".join([*lines, "no json"]) + "\n")


def rows_and_answers(root: str) -> tuple[list[dict[str, Any]], dict[str, list[tuple[Any, ...]]]]:
    """The rows of the data set in order, and for each row that was added what each step did with it."""
    catalog = open_catalog(root)
    rows = [row for shard in catalog.open("corpus").shards for row in read_shard(shard).to_pylist()]
    (added,) = {one.reference for one in _added(root)}
    answers = {}
    for shard in catalog.open(added).shards:
        for row in read_shard(shard, ["_row"])["_row"].to_pylist():
            (history,) = explain_row(catalog, row, None, ["corpus"]).histories
            answers[row] = [
                (step.step, step.outcome, step.rule, step.twin.row if step.twin is not None else None)
                for step in history.steps
            ]
    return rows, answers


def _added(root: str) -> list[Any]:
    catalog = open_catalog(root)
    manifests = [catalog.manifest(f"corpus@{version}") for version in catalog.versions("corpus")]
    return [one for one in manifests if one.step.name == "add"]


def add_apart(folder: Path) -> str:
    """Add the texts to a root of their own, and label some. Returns the root."""
    root = str(folder / "apart")
    aifx.data_add("corpus", str(folder / "texts"), license="MIT", max_bad=10, root=root, workers=1)
    rows = aifx.data_query("corpus", "SELECT _row FROM data ORDER BY _row LIMIT 9", root=root).rows
    (folder / "labels.csv").write_text("row,label\n" + "".join(f"{row},good\n" for (row,) in rows))
    return root


def make_both(folder: Path, steps: list[tuple[str, dict[str, Any]]], keep: int | None = None) -> tuple[str, str]:
    """Do steps one by one, and as a recipe. Returns the roots.

    Args:
        keep: number of a step that keeps its version in the recipe.
    """
    (folder / "test.txt").write_text(" ".join(prose(150, 4).split()[20:60]))
    apart, together = add_apart(folder), str(folder / "together")
    aifx.data_label_import("corpus", folder / "labels.csv", root=apart)
    for name, settings in steps:
        settings = {"against": ["corpus"], **settings} if name == "decontaminate" else settings
        getattr(aifx, f"data_{name}")("corpus", root=apart, workers=1, **settings)
    aifx.data_add("corpus", str(folder / "texts"), license="MIT", max_bad=10, root=together, workers=1)
    aifx.data_label_import("corpus", folder / "labels.csv", root=together)
    write_recipe(folder, steps, keep)
    made = aifx.data_make(recipe=folder / "recipe.toml", root=together, workers=1)
    assert made.data_sets[0].is_accepted
    return apart, together


def write_recipe(folder: Path, steps: list[tuple[str, dict[str, Any]]], keep: int | None = None) -> None:
    add = '    { add = { sources = ["texts"], license = "MIT", max_bad = 10.0 } },'
    ends = [", keep = true" if number == keep else "" for number in range(len(steps))]
    lines = [
        f"    {{ {name} = {{ {settings_toml(settings)} }}{end} }},"
        for (name, settings), end in zip(steps, ends, strict=True)
    ]
    (folder / "recipe.toml").write_text("\n".join(["[corpus]", "steps = [", add, *lines, "]"]))


def check_same(folder: Path, seed: int, count: int) -> None:
    dice = random.Random(seed)
    write_texts(folder / "texts", dice)
    names = dice.sample(list(STEPS), count)  # a step changes nothing in its own result, so none is there twice
    steps = [(name, dice.choice(STEPS[name])) for name in names]
    if "decontaminate" in names and "split" not in names[: names.index("decontaminate")]:
        steps = [(name, STEPS[name][0] if name == "decontaminate" else settings) for name, settings in steps]
    apart, together = make_both(folder, steps)
    assert len(open_catalog(together).versions("corpus")) == 2, "no version in between"
    assert rows_and_answers(together) == rows_and_answers(apart), steps


def settings_toml(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {literal(value)}" for name, value in settings.items())


ALL = [("clean", {"rules": []}), ("label_apply", {"column": "label"}), ("dedupe", {"near": 0.7}),
       ("pii", {"mask": True}), ("expect", {"rules": RULES}), ("split", {"validation": 0.3, "test": 0.3}),
       ("decontaminate", {}), ("dedupe", {"semantic": 0.5}), ("decontaminate", {"against": ["test.txt"]})]  # fmt: skip


@pytest.mark.slow
@pytest.mark.representative("one version of several steps")
def test_one_version_has_the_rows_and_answers_of_separate_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path / "texts", random.Random(5))
    apart, together = make_both(tmp_path, ALL)
    rows, answers = rows_and_answers(together)
    assert (rows, answers) == rows_and_answers(apart)
    assert len(open_catalog(together).versions("corpus")) == 2, "no version in between"
    rules = {rule for steps in answers.values() for _, _, rule, _ in steps if rule is not None}
    assert {"exact", "near", "semantic", "text.matches", "overlaps test.txt"} <= rules


@pytest.mark.slow
def test_new_rows_alone_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task whose rows, decisions and settings are those of an earlier version refers to its files."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    split = "{ split = { near = 1.0, validation = 0.3, test = 0.3 } }"
    steps = f"{{ clean = {{ rules = [] }} }}, {{ dedupe = {{}} }}, {{ pii = {{ mask = true }} }}, {split}"
    recipe = tmp_path / "recipe.toml"

    def make(number: int, steps: str) -> Version:
        lines = [json.dumps({"text": f"{prose(30, number * 100 + row)} ann@example.com"}) for row in range(20)]
        (tmp_path / "texts" / f"{number}.jsonl").write_text("\n".join(lines))
        add = '{ add = { sources = ["texts"], license = "MIT" } }'
        recipe.write_text(f"[corpus]\nsteps = [{add}, {steps}]")
        aifx.data_make(recipe=recipe, root="sets", workers=1)
        return open_catalog("sets").open("corpus")

    first = make(0, steps)
    second = make(1, steps)
    assert second.manifest.holders == (first.manifest.sha256,)
    assert sum(file.rows for file in second.manifest.shards if not file.holder) == 20
    assert second.manifest.rows == 40
    assert make(2, steps.replace("0.3 }", "0.3, seed = 1 }")).manifest.holders == ()


def test_a_kept_step_has_a_version_of_its_own(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"{prose(20, row % 5)} ann@example.com"}) for row in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    add = '{ add = { sources = ["rows.jsonl"], license = "MIT" } }'
    steps = f"{add}, {{ dedupe = {{}}, keep = true }}, {{ pii = {{ mask = true }} }}, {{ clean = {{ rules = [] }} }}"
    (tmp_path / "recipe.toml").write_text(f"[corpus]\nsteps = [{steps}]")
    root = str(tmp_path / "sets")
    made = aifx.data_make(recipe=tmp_path / "recipe.toml", root=root, workers=1).data_sets[0].steps
    assert len(open_catalog(root).versions("corpus")) == len({one.reference for one in made}) == 3
    assert [(one.step, one.rows, one.dropped) for one in made][1] == ("dedupe", 5, 3)
    assert open_catalog(root).manifest(made[1].reference).step.name == "dedupe"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_random_recipes_have_the_rows_and_answers_of_separate_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.chdir(tmp_path)
    check_same(tmp_path, seed, count=2 + seed % 3)


@pytest.mark.slow
def test_new_files_leave_the_decisions_about_earlier_rows(tmp_path: Path) -> None:
    """As the separate steps do, of which each continues its own last version."""
    generations = 3
    steps: list[tuple[str, dict[str, Any]]] = [
        ("clean", {"rules": []}), ("dedupe", {"near": 0.8}), ("split", {"validation": 0.3, "test": 0.3, "near": 0.4}),
    ]  # fmt: skip
    (tmp_path / "texts").mkdir()
    apart, together = str(tmp_path / "apart"), str(tmp_path / "together")
    texts, versions = [prose(90, seed) for seed in range(30)], []
    for number in range(generations):
        if number == 2:  # an edited recipe goes on with the decisions, too
            steps.insert(2, ("pii", {"mask": True}))
        write_recipe(tmp_path, steps)
        words = [text.split() for text in texts]
        more = [" ".join([*own[: 30 * number], "new", *own[30 * number + 1 :]]) for own in words[number::3] * number]
        (tmp_path / "texts" / f"{9 - number}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in (more or texts))
        )
        aifx.data_add("corpus", str(tmp_path / "texts"), license="MIT", root=apart, workers=1)
        for name, settings in steps:
            getattr(aifx, f"data_{name}")("corpus", root=apart, workers=1, **settings)
        aifx.data_make(recipe=tmp_path / "recipe.toml", root=together, workers=1)
        catalogs = open_catalog(apart), open_catalog(together)
        found = [[r for path in one.open("corpus").shards for r in read_shard(path).to_pylist()] for one in catalogs]
        assert found[0] == found[1]
        versions.append(catalogs[1].manifest("corpus"))
        again = aifx.data_make(recipe=tmp_path / "recipe.toml", root=together, workers=1)
        assert not any(step.is_new for step in again.data_sets[0].steps)
    assert [one.facts.get("continues") for one in versions] == [None, *(one.whole_reference for one in versions[:-1])]
    assert versions[1].shards[0].holder == versions[0].sha256, "written once"
