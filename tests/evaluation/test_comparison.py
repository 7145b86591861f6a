"""`aifx eval --against`: two models on the same rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from trained_project import aifx, document

from aifx.core.project import open_run
from aifx.evaluation.against import Answers


@pytest.fixture
def compared(project: Path) -> Path:
    """A project of text in 350 documents, whose run has checkpoints of several steps."""
    lines = (project / "data/whale.txt").read_text().splitlines()
    rows = "".join(json.dumps({"text": line * (1 + number % 5)}) + "\n" for number, line in enumerate(lines[:120]))
    (project / "docs.jsonl").write_text(rows)
    return project


@pytest.mark.representative("an evaluation")
def test_a_later_checkpoint_is_better_on_the_documents_of_a_file(compared: Path) -> None:
    asked = ["eval", "--step", "12", "--against", "main:4", "--data", "docs.jsonl", "--json"]
    found = document(aifx(compared, *asked))
    assert (found["verdict"], found["metric"], found["direction"]) == ("better", "bits_per_byte", "min")
    assert (found["group"], found["groups"], found["look"]) == ("document", 120, 1)
    assert found["value"] < found["against_value"]
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert found["difference"] == pytest.approx(found["against_value"] - found["value"])
    assert found["against"] == found["incumbent"]["digest"] != found["subject"]["digest"]
    report = document(aifx(compared, "eval", "--step", "12", "--data", "docs.jsonl", "--json"))
    (measured,) = report["datasets"]
    assert found["value"] == pytest.approx(measured["metrics"]["bits_per_byte"], rel=1e-5)
    assert found["data_digest"] == measured["digest"]
    kept = json.loads((compared / "runs/main/eval/12.json").read_text())
    assert [one["verdict"] for one in kept["comparisons"]] == ["better"]
    assert found["different_settings"] == {}
    assert found["subject"]["settings"] == measured["settings"]
    assert found["settings_digest"] == measured["settings_digest"]


@pytest.mark.slow
def test_a_comparison_names_the_settings_that_were_others(compared: Path) -> None:
    other = ["--run", "other", "--set", "data.seq_len=16", "--set", "train.num_steps=4"]
    document(aifx(compared, "train", *other, "--json"))
    asked = ["eval", "--run", "main", "--against", "other", "--data", "docs.jsonl"]
    found = json.loads(aifx(compared, *asked, "--json").stdout)
    assert found["different_settings"] == {"data.seq_len": [32, 16]}
    assert "measured differently: data.seq_len is 32 for main, step 12, 16 for other" in aifx(compared, *asked).stdout
    alike = json.loads(aifx(compared, *asked, "--set", "data.seq_len=16", "--json").stdout)
    assert alike["different_settings"] == {}


@pytest.mark.slow
def test_a_worse_one_is_a_verdict_and_a_margin_may_take_it(compared: Path) -> None:
    asked = ["eval", "--step", "4", "--against", "main:12", "--data", "docs.jsonl"]
    worse = aifx(compared, *asked)
    assert worse.returncode == 1
    assert "verdict: worse" in worse.stdout
    found = document(aifx(compared, *asked, "--margin", "5", "--look", "2", "--json"))
    assert (found["verdict"], found["margin"], found["look"]) == ("not worse", 5, 2)
    assert found["alpha"] == pytest.approx(0.05 * 6 / (2 * np.pi) ** 2)


@pytest.mark.slow
def test_one_document_is_too_few_groups(compared: Path) -> None:
    done = aifx(compared, "eval", "--step", "12", "--against", "main:4", "--data", "data/whale.txt")
    assert done.returncode == 2
    assert "1 group of document, and an interval needs 30" in done.stderr
    by_row = ["--data=data/whale.txt", "--set", "eval.group=_row", "--json"]
    found = document(aifx(compared, "eval", "--step=12", "--against=main:4", *by_row))
    assert found["group"] == "row"
    assert found["groups"] > 30


@pytest.mark.slow
def test_other_rows_are_no_comparison(compared: Path) -> None:
    other = ["--run", "other", "--set", "data.test_fraction=0.3", "--set", "train.num_steps=4"]
    document(aifx(compared, "train", *other, "--json"))
    done = aifx(compared, "eval", "--run", "main", "--against", "other", "--set", "eval.group=_row")
    assert done.returncode == 2
    assert "did not answer the same rows" in done.stderr


@pytest.mark.slow
def test_mistakes_are_named(compared: Path) -> None:
    for options, text in {
        ("--margin", "1"): "--margin requires --against",
        ("--against", "man"): "did you mean",
        ("--against", "main", "--metric", "perplexity"): "expected",
        ("--against", "main", "--data", "docs.jsonl", "--metric", "min perplexity"): "is no ratio of sums",
        ("--against", "main", "--gate", "loss < 3"): "--gate cannot be used with --against",
        ("--against", "main", "--look", "101"): "collect new rows",
        ("--against", "main", "--data", "docs.jsonl", "--set", "eval.group=author"): "no column 'author'",
    }.items():
        done = aifx(compared, "eval", *options)
        assert done.returncode == 2, (options, done.stdout)
        assert text in done.stderr, done.stderr


@pytest.mark.slow
def test_scores_by_row_add_up_to_the_metrics_of_the_split(classified: Path) -> None:
    report = document(aifx(classified, "eval", "--json"))
    run, project = open_run(classified / "runs/main")
    answers = Answers.of(run, project, None, None, None, ())
    for name in ("loss", "accuracy", "brier"):
        total, weight = answers.sums(name).sum(axis=0)
        assert total / weight == pytest.approx(report["metrics"][name], rel=1e-5), name


@pytest.mark.slow
def test_versions_of_a_model_are_compared_by_their_digests(compared: Path) -> None:
    document(aifx(compared, "registry", "init", "--json"))
    digests = [
        document(aifx(compared, "registry", "push", "main", "whale", "--step", step, "--json"))["digest"]
        for step in ("4", "12")
    ]
    asked = ["eval", "--model", "whale@v2", "--against", "whale@v1", "--data", "docs.jsonl", "--json"]
    found = document(aifx(compared, *asked))
    assert (found["verdict"], found["data_name"]) == ("better", "docs.jsonl")
    assert [found["incumbent"]["digest"], found["subject"]["digest"]] == digests
    assert found["against"] == digests[0]
    by_run = document(aifx(compared, "eval", "--step=12", "--against", "main:4", "--data", "docs.jsonl", "--json"))
    assert (found["value"], found["low"]) == (by_run["value"], by_run["low"])
