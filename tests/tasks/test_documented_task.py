"""The tabular regression of docs/tasks.md and the examples of the pages "Write your own", as they are there."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from documented import blocks
from own_tasks import FAMILY, OBJECTIVE, PARTS, ROOT, SCALED, SHORT, TASK, TASK_TOML, TOML, aifx, make_project

from aifx.config.parts import import_object
from aifx.core.project import Project
from aifx.data.spec import DataSpec


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
    own = blocks("own-objective", "toml")[0]
    toml = TOML.replace('[objective]\nkind = "regression"\n', own).replace("mean_absolute_error <= 0.3", "loss <= 99")
    project = make_project(tmp_path / "births", PARTS, toml)
    (project / "huber.py").write_text(OBJECTIVE)
    aifx(project, "train", "--set", "train.num_steps=20", "--set", "schedule.warmup_steps=0")
    metrics = json.loads(aifx(project, "eval", "--json", "--set", "eval.batch_size=7").stdout)["metrics"]
    assert set(metrics) == {"loss", "mean_absolute_error", "examples"}
    assert metrics["examples"] > 7, "the count of the split, not that of a batch"
    assert 0 < metrics["loss"] < 0.5 * metrics["mean_absolute_error"], "it is linear above delta, and square below"
    unknown = aifx(project, "config", "check", "--set", "eval.gates=['accuracy > 1']", code=2)
    assert "accuracy" in unknown.stderr


def test_the_documented_family_computes_its_recurrence(tmp_path: Path) -> None:
    (tmp_path / "my_rnn.py").write_text(FAMILY)
    family = import_object("model.family", "my_rnn:FAMILY", Project(tmp_path))
    model = family.make(family.section(width=3), DataSpec({}, vocab_size=5))
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=spec.shape), jnp.float32) for name, spec in model.specs().items()}
    inputs = rng.integers(0, 5, (2, 4))
    hidden = np.asarray(model.hidden(params, {"inputs": inputs}, None)).reshape(2, 4, 3)
    for row in range(2):
        state = np.zeros(3)
        for step in range(4):
            x = np.asarray(params["embedding"])[inputs[row, step]]
            update, candidate = np.split(x @ np.asarray(params["gates"]), 2)
            update = 1 / (1 + np.exp(-update))
            state = (1 - update) * state + update * candidate
            np.testing.assert_allclose(hidden[row, step], x + state, rtol=2e-5, atol=2e-6)


@pytest.mark.representative("parts of a project's own")
def test_the_documented_family_and_data_train(tmp_path: Path) -> None:
    """The language model learns; the kind of data reads its own rows after the training data is gone."""
    text = "Call me Ishmael. Some years ago, never mind how long precisely. " * 40
    own = blocks("own-family", "toml")[0].replace("128", "16")
    toml = f'{own}[data]\ntrain = ["data/text.txt"]\ntokenizer = "byte"\nseq_len = 32\n[train]\nnum_steps = 30\n'
    project = make_project(tmp_path / "rnn", PARTS, f"{toml}global_batch_size = 4\n[optimizer]\nlearning_rate = 0.02\n")
    (project / "my_rnn.py").write_text(FAMILY)
    (project / "data/text.txt").write_text(text)
    aifx(project, "train")
    metrics = json.loads(aifx(project, "eval", "--json").stdout)["metrics"]
    assert metrics["loss"] < 0.75 * np.log(257), "bytes of which it learned nothing take log(257) nats each"
    assert "cannot write text" in aifx(project, "generate", code=2).stderr

    toml = blocks("own-data", "toml")[0] + SHORT
    project = make_project(tmp_path / "days", PARTS, toml)
    (project / "days.py").write_text(SCALED)
    aifx(project, "train")
    (project / "data/births.csv").unlink()
    (project / "new.dat").write_text("1988 12 25 7\n1988 12 26 1\n")
    predicted = [json.loads(line) for line in aifx(project, "predict", "new.dat").stdout.splitlines()]
    assert [(one["row"], np.isfinite(one["value"])) for one in predicted] == [(1, True), (2, True)]
