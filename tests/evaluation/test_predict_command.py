"""`aifx predict` over a language model that was really trained: agreement with evaluation, bad rows, outputs."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from trained_project import CONFIG, SENTENCE, aifx, document

import aifx as library
from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project
from aifx.data.spec import keep_spec
from aifx.data.text import TextFormat
from aifx.evaluation.held_out import evaluate
from aifx.kinds import load_config
from aifx.tasks import load_task, open_task
from aifx.tasks.base import evaluation_source

TEXTS = ["It was the whiteness", "", SENTENCE * 9, "Æ🐋", "of the whale"]


an_evaluation = pytest.mark.representative("an evaluation")
"""The mark of tests that share a training, which costs seconds."""


@pytest.fixture
def alone(project: Path) -> Path:
    """The project without the text that its model learnt from."""
    (project / "data/whale.txt").unlink()
    (project / "new.jsonl").write_text("\n".join(json.dumps({"text": text, "id": 7}) for text in TEXTS))
    return project


def records(text: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in text.splitlines()]


@an_evaluation
def test_predictions_add_up_to_what_eval_reports(alone: Path) -> None:
    predicted = aifx(alone, "predict", "new.jsonl")
    assert predicted.returncode == 0, predicted.stderr
    rows = records(predicted.stdout)
    assert [(row["file"], row["row"]) for row in rows] == [("new.jsonl", n) for n in range(1, 6)]
    assert [row["bytes"] for row in rows] == [len(text.encode()) for text in TEXTS]
    assert rows[1]["bits_per_byte"] is None  # of no bytes
    options = ("--set", "data.packing=documents", "--set", "eval.gates=[]", "--json")  # each text by itself
    report = document(aifx(alone, "eval", "--data", "new.jsonl", *options))
    (data,) = report["datasets"]
    kept = [row for row in rows if row["bytes"]]  # evaluation leaves out empty documents
    assert data["metrics"]["tokens"] == sum(row["tokens"] for row in kept)
    assert data["metrics"]["bytes"] == sum(row["bytes"] for row in kept)
    nats = sum(row["loss"] * row["tokens"] for row in kept)
    assert data["metrics"]["loss"] * data["metrics"]["tokens"] == pytest.approx(nats, rel=1e-5)


@an_evaluation
def test_each_output_holds_the_same_and_is_named(alone: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    lines = aifx(alone, "predict", "-", stdin=(alone / "new.jsonl").read_text())
    expected = [{**row, "file": "new.jsonl"} for row in records(lines.stdout)]
    for name in ("o.jsonl", "o.csv", "o.parquet"):
        done = document(aifx(alone, "predict", "new.jsonl", "--output", name, "--json"))
        assert (done["run"], done["step"], done["predictions"], done["output"]) == ("main", 12, 5, name)
    assert records((alone / "o.jsonl").read_text()) == expected
    with (alone / "o.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in expected]
    assert rows[1]["bits_per_byte"] == ""
    table = pyarrow.parquet.read_table(alone / "o.parquet")
    assert table.column("loss").to_pylist() == [row["loss"] for row in expected]
    assert table.column("row").to_pylist() == [1, 2, 3, 4, 5]


@an_evaluation
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "a"}\n\n{"txt": "b"}\n', ["new.jsonl:3", "did you mean 'txt'"]),
        ('{"text": "a"}\n{"text": 3}\n', ["new.jsonl:2", "int, not text"]),
        ('{"text": "a"}\n{"text": \n', ["new.jsonl:2", "not JSON"]),
        ('["a"]\n', ["new.jsonl:1", "list"]),
        ('{"text": "\\ud800"}\n', ["new.jsonl:1", "surrogates"]),
    ],
)
def test_a_bad_row_is_named_and_leaves_no_output(alone: Path, content: str, words: list[str]) -> None:
    (alone / "new.jsonl").write_text(content)
    (alone / "o.jsonl").write_text("before")
    failed = aifx(alone, "predict", "new.jsonl", "-o", "o.jsonl")
    assert failed.returncode == 2
    assert failed.stdout == ""
    for word in words:
        assert word in failed.stderr
    assert (alone / "o.jsonl").read_text() == "before"
    assert not list(alone.glob(".o.jsonl*"))


@an_evaluation
@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["new.jsonl", "-o", "o.txt"], "o.jsonl"),
        (["new.jsonl", "-o", "no/o.csv"], "mkdir -p no"),
        (["new.jsonl", "--json"], "--output"),
        (["new.jsonl", "-o", "new.jsonl"], "is an input"),
        (["-", "-"], "once"),
        (["new.xyz"], ".jsonl"),
        (["absent.csv"], "No such file"),
        (["data"], "hint: aifx predict data/*.jsonl"),
        (["new.jsonl", "--run", "mian"], "main"),
        ([], "INPUT"),
    ],
)
def test_usage_of_predict(alone: Path, args: list[str], word: str) -> None:
    failed = aifx(alone, "predict", *args)
    assert failed.returncode == 2
    assert failed.stdout == "" or "--json" in args
    assert word in failed.stderr + failed.stdout
    assert "Traceback" not in failed.stderr


def test_import_aifx_is_light() -> None:
    code = "import sys, aifx; assert not {'jax', 'numpy', 'pydantic', 'typer'} & set(sys.modules), list(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@an_evaluation
def test_a_run_is_loaded_from_python(alone: Path) -> None:
    model = library.load(alone / "runs/main")
    rows = records(aifx(alone, "predict", "new.jsonl").stdout)
    found = list(model.predict({"text": text} for text in TEXTS))
    assert (model.run, model.step) == ("main", 12)
    assert [row["loss"] for row in found] == [row["loss"] for row in rows]
    assert found[0].keys() == rows[0].keys() - {"file", "row"}
    assert [row["loss"] for row in model.predict_files(alone / "new.jsonl")] == [row["loss"] for row in rows]
    with pytest.raises(DataError, match="row 2"):
        list(model.predict([{"text": "a"}, {}]))
    with pytest.raises(UsageError, match="no run"):
        library.load(alone / "runs/mian")


@an_evaluation
def test_other_data_is_measured_by_name_and_digest(alone: Path) -> None:
    (alone / "b.txt").write_text(SENTENCE * 20)
    failed = aifx(alone, "eval", "--data", "new.jsonl", "--data", "b.txt", "--gate", "loss < 0.1", "--json")
    report = document(failed, code=1)
    assert set(report) == {"schema_version", "run", "step", "quantize", "datasets", "model"}
    assert [data["name"] for data in report["datasets"]] == ["new.jsonl", "b.txt"]
    assert [[gate["passed"] for gate in data["gates"]] for data in report["datasets"]] == [[True, False]] * 2
    (alone / "b.txt").write_text(SENTENCE * 30)
    for _ in range(2):
        changed = document(aifx(alone, "eval", "--data", "b.txt", "--json"))["datasets"][0]
    assert changed["digest"] != report["datasets"][1]["digest"]
    kept = json.loads((alone / "runs/main/eval/12.json").read_text())
    assert [(d["name"], d["digest"]) for d in kept["datasets"]] == [
        (d["name"], d["digest"]) for d in [*report["datasets"], changed]
    ]
    evaluations = document(aifx(alone, "runs", "show", "--json"))["evaluations"]
    assert sorted(e["split"].split()[0] for e in evaluations) == ["b.txt", "b.txt", "new.jsonl"]
    people = aifx(alone, "eval", "--data", "b.txt")
    assert changed["digest"][:12] in people.stdout


@an_evaluation
def test_a_split_keeps_its_report_beside_those_of_data_sets(project: Path) -> None:
    (project / "b.txt").write_text(SENTENCE * 20)
    for args in (["--data", "b.txt"], []):
        document(aifx(project, "eval", *args, "--json"))
    kept = json.loads((project / "runs/main/eval/12.json").read_text())
    assert set(kept["splits"]) == {"test"}
    assert [d["name"] for d in kept["datasets"]] == ["b.txt"]


def test_a_split_with_files_of_its_own_needs_no_training_text(tmp_path: Path) -> None:
    """The task is asked directly: no run is needed to see which files it opens."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/whale.txt").write_text(SENTENCE * 50)
    (tmp_path / "held.txt").write_text("Call me Ishmael. " * 50)
    (tmp_path / "aifx.toml").write_text(CONFIG.replace("[data]", "[data]\ntest = ['held.txt']"))
    project = Project(tmp_path)
    config = load_config(project, [], {})
    whole = open_task(config, project, tmp_path / "assets")
    keep_spec(tmp_path / "assets", whole.data)
    (tmp_path / "data/whale.txt").unlink()
    loaded = load_task(config, project, tmp_path / "assets")
    assert loaded.format is not None
    alone = replace(loaded, dataset=loaded.format.open_split("test", project))
    expected = evaluation_source(whole, config, "test")
    source = evaluation_source(alone, config, "test")
    assert source.num_batches == expected.num_batches
    for name, values in expected.read(0, slice(0, 8)).items():
        assert (source.read(0, slice(0, 8))[name] == values).all()
    assert loaded.format.open_split("validation", project) is None


@an_evaluation
def test_eval_without_the_training_text(project: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    """The run's split is a part of the missing text, which stays the error, unless the split has files."""
    (project / "data/whale.txt").rename(project / "held.txt")
    failed = aifx(project, "eval")
    assert failed.returncode == 2
    assert "data.train" in failed.stderr
    monkeypatch.setattr(TextFormat, "open_split", lambda self, split, found: self.open_file(project / "held.txt"))
    found = Project(project)
    report = evaluate(found.existing_run(), found)
    assert report.metrics["bytes"] == (project / "held.txt").stat().st_size
    assert [line for line in logged if "trained on" in line]


@an_evaluation
@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--data", "absent.txt"], "No such file"),
        (["--data", "."], "directory"),
        (["--data", "aifx.toml"], ".txt"),
        (["--data", "new.jsonl", "--split", "test"], "--split cannot be used with --data"),
        (["--data", "new.jsonl", "--set", "data.text_field=body"], "text"),
        (["--data", "new.jsonl", "--set", "data.seq_len=8", "--set", "data.split=document"], "data.split"),
        (["--data", "new.jsonl", "--gate", "accuracy > 1"], "accuracy"),
    ],
)
def test_data_that_cannot_be_measured(alone: Path, args: list[str], word: str) -> None:
    failed = aifx(alone, "eval", *args)
    assert failed.returncode == 2
    assert word in failed.stderr
    assert "Traceback" not in failed.stderr
