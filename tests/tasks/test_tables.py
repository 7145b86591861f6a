"""A table from a file to predictions, by the real commands."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest

import aifx
from aifx.data.spec import DataSpec
from aifx.data.table import TableFormat
from aifx.loading import prediction
from aifx.objectives.classification import Classification

TOML = """\
[task]
kind = "tabular"
[data]
path = "rows.csv"
target = "{target}"
ignore = {ignore}
[objective]
kind = "{objective}"
[model]
width = 32
num_layers = 2
[train]
num_steps = {steps}
global_batch_size = 64
validate_every = 50
[optimizer]
learning_rate = 0.01
[checkpoint]
every = 50
[log]
every = 50
"""


def command(project: Path, *args: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    done = inprocess.run(args, project, os.environ, stdin=stdin)
    assert done.returncode == code, done.stderr + done.stdout
    return done


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Rows whose price and label no linear model predicts: a product, and missing sizes."""
    rng = np.random.default_rng(0)
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["size", "site", "price", "label"])
        for _ in range(1200):
            size, site = rng.uniform(-1, 1), rng.integers(2)
            price = 1e6 + 1e5 * abs(size) * (1 if site else -1)
            writer.writerow([f"{size:.4f}" if rng.random() < 0.95 else "", "ab"[site], f"{price:.0f}", price > 1.03e6])
    return tmp_path


def decode_alone(objective: Classification, predictions: Mapping[str, np.ndarray], data: DataSpec) -> dict[str, Any]:
    """What a classifier answers for one example, by the thresholds that it keeps."""
    (values,) = predictions["probabilities"]
    label = data.classes[int(np.argmax(values / np.array(list(objective.decides_by(data).values()))))]
    by_class = {name: float(value) for name, value in zip(data.classes, values, strict=True)}
    return {"label": label, "probability": by_class[label], "probabilities": by_class}


def write_toml(project: Path, target: str, ignore: str, objective: str, steps: int = 100) -> None:
    toml = TOML.format(target=target, ignore=json.dumps([ignore]), objective=objective, steps=steps)
    (project / "aifx.toml").write_text(toml)


@pytest.mark.representative("a table of one's own")
def test_classes_from_a_file_to_predictions(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toml(project, "label", "price", "classification")
    checked = command(project, "config", "check")
    assert "size   numeric      -0.99" in checked.stdout
    assert re.search("label +target .*2 classes: False, True", checked.stdout)
    document = json.loads(command(project, "config", "check", "--json").stdout)
    assert document["data"] == checked.stdout.splitlines()[1:]
    trained = command(project, "train", "--set", "objective.threshold_by=f1")
    for line in document["data"]:
        assert line in trained.stderr + (project / "runs/main/train.log").read_text()
    report = json.loads(command(project, "eval", "--json").stdout)
    model, others = report["metrics"], report["baselines"]
    assert set(others) >= {"majority", "logistic"}
    assert model["accuracy"] > 0.9 > others["logistic"]["accuracy"] + 0.02
    assert others["majority"]["loss"] > others["logistic"]["loss"] > model["loss"]
    assert "per_class.True.recall" in others["majority"]
    assert "threshold" in model["per_class"]["True"]
    plain = json.loads(command(project, "eval", "--set", "objective.threshold_by=none", "--json").stdout)
    for name, metrics in plain["baselines"].items():  # the thresholds are those of the model
        assert metrics.items() <= others[name].items()
    printed = command(project, "eval", "--gate", "per_class.True.recall >= 0.5").stdout
    assert printed.splitlines()[1].split()[:4] == ["metric", "model", "majority", "logistic"]
    assert [line.split() for line in printed.splitlines() if line.split()[:1] == ["examples"]] == [
        ["examples", str(model["examples"])]
    ]

    lines = (project / "rows.csv").read_text().splitlines()
    (project / "new.csv").write_text(
        "\n".join(["note," + lines[0], *(f"n{n}," + line for n, line in enumerate(lines[1:50]))])
    )
    command(project, "predict", "new.csv", "--output", "out.csv")
    rows = list(csv.DictReader((project / "out.csv").read_text().splitlines()))
    assert [",".join(list(row.values())[:5]) for row in rows] == [f"n{n},{line}" for n, line in enumerate(lines[1:50])]
    assert list(rows[0])[5:] == [
        "prediction",
        "prediction.probability",
        *(f"prediction.probabilities.{c}" for c in ("False", "True")),
    ]
    assert np.mean([row["prediction"] == row["label"] for row in rows]) > 0.8
    asked = command(project, "predict", "-", stdin='{"size": null, "site": "elsewhere"}\n').stdout
    assert json.loads(asked)["prediction"] in ("False", "True")
    assert re.search("-:1: .*\n.*'site'", command(project, "predict", "-", stdin='{"size": 1}\n', code=2).stderr)
    again = command(project, "predict", "out.csv", code=2)
    assert re.search("out.csv:2: .*'prediction'", again.stderr)
    loaded = aifx.load(project / "runs/main")
    asked = [*rows[:40], {"size": 0.25, "site": "a"}, {"size": None, "site": None}, {"size": " 1e-3 ", "site": True}]
    at_once = list(loaded.predict(asked))
    for owner, name in ((TableFormat, "encode_rows"), (Classification, "decode_rows")):
        monkeypatch.setattr(owner, name, None)  # never called
    monkeypatch.setattr(prediction, "_defines_both", lambda *_: False)
    monkeypatch.setattr(Classification, "decode", decode_alone)
    assert list(loaded.predict(asked)) == at_once
    measured = json.loads(command(project, "eval", "--data", "rows.csv", "--json").stdout)["datasets"][0]
    assert measured["metrics"]["examples"] == 1200


@pytest.mark.slow
def test_numbers_are_reported_in_the_unit_of_the_column(project: Path) -> None:
    write_toml(project, "price", "label", "regression")
    command(project, "train")
    report = json.loads(command(project, "eval", "--json", "--gate", "mean_absolute_error < 30000").stdout)
    error, others = report["metrics"]["mean_absolute_error"], report["baselines"]
    assert 40_000 < others["mean"]["mean_absolute_error"] < 60_000, "the mean of a uniform 1e5"
    assert error < others["linear"]["mean_absolute_error"] < others["mean"]["mean_absolute_error"]
    prices = {
        line.split(",")[0]: float(line.split(",")[2]) for line in (project / "rows.csv").read_text().splitlines()[1:]
    }
    predicted = [json.loads(line) for line in command(project, "predict", "rows.csv").stdout.splitlines()]
    assert set(predicted[0]) == {"size", "site", "price", "label", "prediction"}
    errors = [abs(row["prediction"] - prices[row["size"]]) for row in predicted if row["size"]]
    assert np.mean(errors) < 30_000


@pytest.mark.slow
def test_quantiles_of_a_column_are_in_its_unit(project: Path) -> None:
    write_toml(project, "price", "label", "quantile")
    command(project, "train")
    report = json.loads(command(project, "eval", "--json", "--gate", "mape < 3", "--gate", "coverage > 0.5").stdout)
    metrics, others = report["metrics"], report["baselines"]
    assert metrics["mean_absolute_error"] < 30_000
    assert metrics["mape"] == pytest.approx(metrics["mean_absolute_error"] / 1e6 * 100, rel=0.1)
    assert 4 < others["mean"]["mape"] < 6
    predicted = [json.loads(line) for line in command(project, "predict", "rows.csv").stdout.splitlines()[:50]]
    for row in predicted:
        low, median, high = row["prediction.quantiles"].values()
        assert 8e5 < low <= median == row["prediction"] <= high < 1.2e6


@pytest.mark.slow
def test_an_objective_that_does_not_fit_the_target(project: Path) -> None:
    write_toml(project, "price", "label", "classification")
    wrong = command(project, "train", code=2)
    assert "data with classes" in wrong.stderr
    write_toml(project, "label", "price", "regression")
    wrong = command(project, "train", code=2)
    assert "regression" in wrong.stderr


@pytest.mark.slow
def test_columns_from_the_command_line(project: Path) -> None:
    write_toml(project, "label", "price", "classification", steps=3)
    printed = command(project, "config", "check", "--set", 'data.columns={size = "categorical"}').stdout
    assert "size   categorical" in printed
    wrong = command(project, "config", "check", "--set", 'data.columns={size = "number"}', code=2).stderr
    assert '"numeric", "categorical", "boolean", "date"' in wrong
    both = command(project, "config", "check", "--set", "data.ignore=['label']", code=2).stderr
    assert re.search("data.ignore .*'label'.*data.target", both)
    command(project, "train", "--set", 'data.columns={size = "categorical"}')
    command(project, "train", "--set", 'data.columns={size = "categorical"}', "--set", "train.num_steps=3")
    assert "size" in (project / "runs/main/config.toml").read_text()
