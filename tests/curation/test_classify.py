"""Models as filters: scores are those of `aifx predict`, the best rows stay, and lineage knows the checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from adding import rows_of
from inprocess import run
from pyarrow import parquet

import aifx
from aifx.core.errors import UsageError
from aifx.curation.classify import score_of
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version

pytestmark = [pytest.mark.slow, pytest.mark.representative("models as filters")]

TABLE = """
[task]
kind = "tabular"
[data]
path = "rows.csv"
target = "label"
validation_fraction = 0.25
test_fraction = 0.25
[model]
width = 8
num_layers = 1
[train]
num_steps = 6
global_batch_size = 32
[optimizer]
learning_rate = 0.01
[checkpoint]
every = 3
[eval]
checkpoint = "last"
"""
TEXT = """
[data]
train = ["book.txt"]
seq_len = 32
tokenizer = "byte"
[model]
num_layers = 1
embed_dim = 16
num_heads = 2
[train]
global_batch_size = 4
num_steps = 20
[optimizer]
learning_rate = 0.02
"""


def command(folder: Path, *args: str) -> CompletedProcess[str]:
    return run(args, folder, dict(os.environ))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    (folder / "aifx.toml").write_text(TABLE)
    chosen = np.random.default_rng(0)
    rows = [(x, y, "up" if x + y > 0 else "down") for x, y in chosen.normal(size=(160, 2)).round(4).tolist()]
    (folder / "rows.csv").write_text("x,y,label\n" + "".join(f"{x},{y},{label}\n" for x, y, label in rows))
    (folder / "other.csv").write_text("x,z\n1,2\n")
    done = command(folder, "train", "--run", "quality")
    assert done.returncode == 0, done.stderr
    for name in ("rows", "other"):
        added = command(folder, "data", "add", name, f"{name}.csv", "--kind", "table", "--license", "MIT")
        assert added.returncode == 0, added.stderr
    return folder


def version_of(folder: Path, reference: str) -> Version:
    return open_catalog(str(folder / "datasets")).open(reference)


def test_the_best_rows_of_a_table_are_kept(table: Path) -> None:
    base = version_of(table, "rows").reference
    args = ("data", "classify", base, "--run", "quality", "--label", "up", "--keep", "0.3", "--json")
    done = command(table, *args)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    before, made = rows_of(version_of(table, base)), version_of(table, found["reference"])
    values = [{name: row[name] for name in ("x", "y")} for row in before]
    expected = [one["probabilities"]["up"] for one in aifx.predict(table / "runs" / "quality", values)]
    best = sorted(range(160), key=lambda n: -expected[n])[:48]
    kept = rows_of(made)
    assert [row["_row"] for row in kept] == [before[n]["_row"] for n in sorted(best)]
    scores = {row["_row"]: row["score"] for row in kept}
    dropped = [row for path in made.dropped for row in parquet.read_table(path).to_pylist()]
    assert {row["rule"] for row in dropped} == {"score"}
    scores |= {row["_row"]: row["score"] for row in dropped}
    np.testing.assert_allclose([scores[row["_row"]] for row in before], expected, rtol=1e-5)
    assert found["facts"]["least_score"] == min(row["score"] for row in kept)
    settings = made.manifest.step.settings
    assert (settings["run"], settings["label"], len(settings["sha256"])) == ("quality@6", "up", 64)
    again = json.loads(command(table, *args).stdout)
    assert (again["reference"], again["is_new"]) == (found["reference"], False)
    another = json.loads(command(table, *args, "--step", "3").stdout)
    assert another["reference"] != found["reference"]
    exact = json.loads(command(table, *args[:-2], "0.55", "--json").stdout)
    assert exact["rows"] == 88  # 0.55 times 160 is more in binary numbers
    why = command(table, "data", "why", dropped[0]["_row"], "--dataset", found["reference"])
    assert "score" in why.stdout


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["rows", "--keep", "0.3"], "predicts classes, and none is named"),
        (["rows", "--label", "side", "--keep", "0.3"], "has no class 'side'"),
        (["other", "--label", "up", "--keep", "0.3"], "was trained on other columns"),
        (["rows", "--label", "up"], "either --keep or --at-least"),
        (["rows", "--label", "up", "--keep", "3"], "--keep 3 is no share"),
        (["rows", "--label", "up", "--keep", "nan"], "--keep nan is no share"),
        (["rows", "--label", "up", "--at-least", "-inf"], "--at-least -inf is no score"),
        (["rows", "--label", "up", "--keep", "0.3", "--column", "x"], "has a column 'x'"),
        (["rows", "--label", "up", "--keep", "0.3", "--column", "X"], "has a column 'x'"),
        (["rows", "--label", "up", "--keep", "0.3", "--column", " "], "--column ' ' is no name"),
    ],
)
def test_what_cannot_be_scored_is_named(table: Path, args: list[str], what: str) -> None:
    before = version_of(table, "rows").reference
    bad = command(table, "data", "classify", *args, "--run", "quality")
    assert bad.returncode == 2
    assert what in bad.stderr, bad.stderr
    assert version_of(table, "rows").reference == before


def test_a_language_model_in_a_recipe_keeps_texts_like_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aifx.toml").write_text(TEXT)
    own = "Call me Ishmael. Some years ago, never mind how long precisely. "
    (tmp_path / "book.txt").write_text(own * 60)
    texts = [own, own[:30], "~~##@@ 0110 ^^%%", "<<>>[]{}||\\\\//", own[17:]]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "recipe.toml").write_text(
        '[corpus]\nsteps = [{ add = { sources = ["texts.jsonl"], license = "MIT" } }, '
        '{ clean = { rules = [] } }, { classify = { run = "main", keep = 0.6, column = "quality" } }, { dedupe = {} }]'
    )
    done = command(tmp_path, "train", "--run", "main")
    assert done.returncode == 0, done.stderr
    done = command(tmp_path, "data", "make", "--json")
    assert done.returncode == 0, done.stderr
    kept = rows_of(version_of(tmp_path, "corpus"))
    assert [row["text"] for row in kept] == [texts[0], texts[1], texts[4]]
    made = version_of(tmp_path, "corpus")
    assert made.manifest.step.name == "make"
    left_out = [row for path in made.dropped for row in parquet.read_table(path).to_pylist() if row["rule"]]
    assert [row["rule"] for row in left_out] == ["score", "score"]
    assert max(row["score"] for row in left_out) < min(row["quality"] for row in kept)
    done = command(tmp_path, "data", "recipe", "corpus", "--output", "again.toml")
    assert done.returncode == 0, done.stderr
    again = command(tmp_path, "data", "make", "--recipe", "again.toml", "--json")
    assert [step["is_new"] for step in json.loads(again.stdout)["data_sets"][0]["steps"]] == [False] * 4
    predicted = aifx.predict(tmp_path / "runs" / "main", [{"text": row["text"]} for row in kept])
    np.testing.assert_allclose([-row["quality"] for row in kept], [p["bits_per_byte"] for p in predicted], rtol=1e-5)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="has no class"):
        aifx.data_classify("corpus", run="main", keep=0.5, label="up", column="other")


def test_a_recipe_names_the_checkpoint(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Path(shutil.copytree(table, tmp_path / "copy"))
    monkeypatch.chdir(project)
    args = ("--run", "quality", "--label", "down", "--at-least", "0", "--step", "3")
    for more in (args, (*args, "--column", "second", "--at-least", "0.4")):
        done = command(project, "data", "classify", "rows", *more)
        assert done.returncode == 0, done.stderr
    written = aifx.data_recipe("rows", output="again.toml")
    assert '{classify = {run = "quality", label = "down", at_least = 0.0, ' in written.recipe
    assert written.recipe.count("step = 3") == 2
    made = aifx.data_make("rows", recipe="again.toml", root=str(tmp_path / "root"))
    assert made.data_sets[0].reference == written.reference
    shutil.rmtree(project / "runs/quality")
    with pytest.raises(UsageError, match=r"no recipe says what made rows@\w+ \(step classify\)"):
        aifx.data_recipe("rows")
    done = command(project, "train", "--run", "quality", "--set", "optimizer.learning_rate=0.02")
    assert done.returncode == 0, done.stderr
    with pytest.raises(UsageError, match=r"the checkpoint of step \d of run quality is another one now"):
        aifx.data_recipe("rows")


def test_scores() -> None:
    assert score_of({"label": "a", "probabilities": {"a": 0.25, "b": 0.75}}, "b") == 0.75
    assert score_of({"value": 3}, None) == 3
    assert score_of({"value": [1, 2]}, None) is None
    assert score_of({"loss": 1.0, "bits_per_byte": 2.0}, None) == -2
