"""The tabular regression of docs/tasks.md, as it is on the page: by its parts, as one class, with its own objective."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from own_tasks import OBJECTIVE, PARTS, ROOT, TASK, TASK_TOML, TOML, aifx, make_project


def test_the_page_shows_the_template_in_less_than_60_lines() -> None:
    assert (ROOT / "templates/custom-task/births.py").read_text() == PARTS
    assert len(PARTS.splitlines()) < 60


@pytest.mark.slow
def test_the_documented_parts_train_evaluate_and_predict(tmp_path: Path) -> None:
    project = make_project(tmp_path / "births", PARTS, TOML, days=7305)
    assert "valid" in aifx(project, "config", "check").stdout
    assert "did you mean 'width'?" in aifx(project, "config", "check", "--set", "model.widht=3", code=2).stderr
    aifx(project, "train", "--set", "train.num_steps=400")
    document = json.loads(aifx(project, "eval", "--json", "--set", "eval.gates=[]").stdout)
    error = document["metrics"]["mean_absolute_error"]
    assert error < 0.4, "the mean of each day of the week is wrong by 0.68"
    aifx(project, "eval", "--split", "train", "--set", "eval.gates=[]")
    assert 600 < document["metrics"]["examples"] < 860

    data = project / "data/births.csv"
    rows = list(csv.DictReader(data.read_text().splitlines()[:301]))
    (project / "some.csv").write_text("".join(data.read_text().splitlines(keepends=True)[:301]))
    data.unlink()  # a trained model needs none of it
    given = "".join(json.dumps({k: int(v) for k, v in row.items() if k != "births"}) + "\n" for row in rows)
    predicted = [json.loads(line)["value"] for line in aifx(project, "predict", "-", stdin=given).stdout.splitlines()]
    report = aifx(project, "eval", "--data", "some.csv", "--set", "eval.gates=[]", "--json")
    (measured,) = json.loads(report.stdout)["datasets"]
    errors = np.abs(np.array(predicted) - [int(row["births"]) / 1000 for row in rows])
    assert measured["metrics"]["mean_absolute_error"] == pytest.approx(errors.mean(), rel=1e-4)
    chatty = PARTS.replace(
        "    def encode(self, row):\n", "    def encode(self, row):\n        print('reading a row')\n"
    )
    (project / "births.py").write_text(chatty)
    again = aifx(project, "predict", "-", stdin=given)
    assert [json.loads(line)["value"] for line in again.stdout.splitlines()] == predicted
    assert "reading a row" in again.stderr
    for row, words in (
        ('{"year": 1970, "month": "May"}', ["-:1: the row cannot be used", "'May'"]),
        ('{"month": 5}', ["-:1", "no field 'year'"]),
        ('{"year": []}', ["-:1", "TypeError"]),
    ):
        failed = aifx(project, "predict", "-", stdin=row, code=2)
        for word in words:
            assert word in failed.stderr


@pytest.mark.slow
def test_the_documented_task_class(tmp_path: Path) -> None:
    project = make_project(tmp_path / "births", PARTS + TASK, TASK_TOML)
    aifx(project, "train")
    metrics = json.loads(aifx(project, "eval", "--json", "--gate", "mean_absolute_error <= 99").stdout)["metrics"]
    assert set(metrics) == {"loss", "mean_absolute_error", "examples"}
    wrong = aifx(project, "eval", "--gate", "mean_abs_error < 1", code=2)
    assert "mean_absolute_error" in wrong.stderr
    (project / "data/births.csv").rename(project / "june.csv")
    row = '{"year": 1988, "month": 12, "date_of_month": 25, "day_of_week": 7}'
    assert "value" in json.loads(aifx(project, "predict", "-", stdin=row).stdout)
    aifx(project, "eval", "--data", "june.csv")
    assert "cannot write text" in aifx(project, "generate", code=2).stderr


@pytest.mark.slow
def test_the_documented_objective(tmp_path: Path) -> None:
    toml = TOML.replace('"regression"', '"births:OBJECTIVE"').replace("mean_absolute_error <= 0.3", "loss <= 99")
    project = make_project(tmp_path / "births", PARTS + OBJECTIVE, toml)
    aifx(project, "train", "--set", "train.num_steps=20", "--set", "schedule.warmup_steps=0")
    metrics = json.loads(aifx(project, "eval", "--json", "--set", "eval.batch_size=7").stdout)["metrics"]
    assert set(metrics) == {"loss", "examples"}
    assert metrics["examples"] > 7, "the count of the split, not that of a batch"
    unknown = aifx(project, "config", "check", "--set", "eval.gates=['accuracy > 1']", code=2)
    assert "accuracy" in unknown.stderr
