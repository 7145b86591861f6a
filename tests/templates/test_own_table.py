"""`aifx init --template tabular` with a file of one's own, and what the template reaches with its own data."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from pathlib import Path

import inprocess
import numpy as np
import pytest
import tomli

from aifx.core.project import Project
from aifx.data.sections import TableSection
from aifx.data.table import read_splits
from aifx.scaffold.own_data import class_balance, table_settings


def command(cwd: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = inprocess.run(args, cwd, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def write_rows(path: Path, **columns: list[object]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


@pytest.mark.slow
def test_a_file_of_ones_own_in_four_commands(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 800)).round(3)
    write_rows(
        tmp_path / "a b.csv", x=[*x], y=[*y], kind=["far" if a * b > 0.5 else "near" for a, b in zip(x, y, strict=True)]
    )
    made = command(
        tmp_path, "init", "p", "--template", "tabular", "--answer", "data=a b.csv", "--answer", "target=kind"
    )
    assert "wsn_single_hop" not in made.stdout
    project = tmp_path / "p"
    assert not (project / "data").exists()
    toml = tomli.loads((project / "aifx.toml").read_text())
    assert (toml["data"]["path"], toml["data"]["target"]) == ("../a b.csv", "kind")
    assert toml["objective"]["kind"] == "classification"
    assert "kind" in toml["project"]["description"]
    (gate,) = toml["eval"]["gates"]
    assert gate.startswith("macro_f1 >= 0.4")
    assert gate in (project / "ci/gate.sh").read_text()
    assert "`../a b.csv`" in (project / "README.md").read_text()
    small = ("train.num_steps=300", "train.global_batch_size=64", "model.width=64", "optimizer.learning_rate=0.003")
    command(project, "train", *(word for setting in small for word in ("--set", setting)))
    command(project, "eval")
    failed = command(project, "eval", "--gate", "macro_f1 > 1", code=1)
    assert "FAILED" in failed.stdout
    command(project, "predict", "../a b.csv", "--output", "out.csv")
    rows = list(csv.DictReader((project / "out.csv").read_text().splitlines()))
    assert np.mean([row["prediction"] == row["kind"] for row in rows]) > 0.9


def test_the_gate_of_numbers_is_below_the_error_of_the_mean(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=500)
    write_rows(tmp_path / "t.csv", x=[*values], price=[*(values * 1000)])
    own = ("-t", "tabular", "-a", "data=t.csv", "-a", "target=price", "-a", "project_name=houses")
    made = command(tmp_path, "init", "p", *own)
    toml = tomli.loads((tmp_path / "p/aifx.toml").read_text())
    assert (toml["objective"]["kind"], toml["project"]["name"]) == ("regression", "houses")
    name, _, limit = toml["eval"]["gates"][0].split()
    assert name == "mean_absolute_error"
    assert 600 < float(limit) < 0.96 * 1000 * np.abs(values).mean() * 1.2
    checked = command(tmp_path / "p", "config", "check")
    counts = [re.findall(r"from (\d+) training rows", done.stdout + done.stderr) for done in (made, checked)]
    assert counts[0] == counts[1] != []
    train = toml["train"]
    assert train["num_steps"] > train["early_stopping"] * train["validate_every"] >= 5 * 10
    sections = (toml["model"], train, toml["optimizer"], toml["schedule"], toml["checkpoint"])
    written = {key: value for section in sections for key, value in section.items()}
    written = {**written, "batch_size": train["global_batch_size"]}
    assert written.items() >= table_settings(int(counts[0][0])).items()
    command(tmp_path, "init", "q", "-t", "tabular", "-a", f"data={tmp_path / 't.csv'}", "-a", "target=price")
    assert tomli.loads((tmp_path / "q/aifx.toml").read_text())["data"]["path"] == str(tmp_path / "t.csv")


def test_the_training_of_a_table_follows_its_rows() -> None:
    small, medium, large = (table_settings(round(0.65 * rows)) for rows in (75, 2_000, 50_000))
    for chosen in (small, medium, large):
        assert 5 <= chosen["early_stopping"] < chosen["num_steps"] // chosen["validate_every"]
        assert chosen["num_steps"] % chosen["validate_every"] == 0
        assert chosen["weight_decay"] * chosen["num_steps"] == pytest.approx(100, rel=0.02)
    for key in ("num_steps", "batch_size", "width"):
        assert small[key] < medium[key] < large[key]
    assert small["dropout"] > medium["dropout"] > large["dropout"]
    assert small["batch_size"] < 49


@pytest.mark.parametrize(
    ("counts", "balance"),
    [([50, 50], 1.0), ([30, 30, 30], 1.0), ([90, 10], 0.36), ([5, 0, 5], 0.75), ([98, 1, 1], 0.0591)],
)
def test_the_balance_of_classes(counts: list[int], balance: float) -> None:
    assert class_balance(counts) == pytest.approx(balance)


def test_a_rare_class_gets_the_settings_of_fewer_rows_and_the_batches_of_all(tmp_path: Path) -> None:
    rare = np.arange(2_000) % 25 == 0
    write_rows(tmp_path / "t.csv", x=[*range(2_000)], kind=["ill" if is_ill else "well" for is_ill in rare])
    made = command(tmp_path, "init", "p", "-t", "tabular", "-a", "data=t.csv", "-a", "target=kind")
    (rows,) = re.findall(r"from (\d[\d,]*) training rows", made.stdout + made.stderr)
    toml = tomli.loads((tmp_path / "p/aifx.toml").read_text())
    count = int(rows.replace(",", ""))
    many, few = table_settings(count), table_settings(round(0.1536 * count))  # 1 - 0.04**2 - 0.96**2, of 1 / 2
    assert toml["train"]["global_batch_size"] == many["batch_size"] > few["batch_size"]
    assert toml["model"]["width"] == few["width"] < many["width"]
    assert toml["optimizer"]["learning_rate"] < many["learning_rate"]  # which is for numbers
    assert toml["train"]["num_steps"] == pytest.approx(few["num_steps"], rel=0.1)


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        (["data=t.csv"], ["--answer data requires --answer target", "target=COLUMN"]),
        (["target=x"], ["--answer target requires --answer data"]),
        (["data=none.csv", "target=x"], ["none.csv"]),
        (["data=t.csv", "target=prize"], ["no column 'prize'", "did you mean 'price'"]),
    ],
)
def test_answers_that_do_not_fit_the_file(tmp_path: Path, answers: list[str], words: list[str]) -> None:
    write_rows(tmp_path / "t.csv", x=[1, 2, 3], price=[1.5, 2.5, 3.5])
    args = [part for answer in answers for part in ("--answer", answer)]
    failed = command(tmp_path, "init", "p", "--template", "tabular", *args, code=2)
    for word in words:
        assert word in failed.stderr
    assert not (tmp_path / "p").exists()


def robust_z_scores(rows: dict[str, np.ndarray], known: np.ndarray) -> np.ndarray:
    """The sum of |value - median| / median deviation of humidity and temperature, by mote; of the rows `known`."""
    score = np.zeros(len(known))
    for mote in np.unique(rows["mote_id"]):
        here = rows["mote_id"] == mote
        for name in ("humidity", "temperature"):
            median = np.median(rows[name][here & known])
            score[here] += np.abs(rows[name][here] - median) / np.median(np.abs(rows[name][here & known] - median))
    return score


def average_precision(score: np.ndarray, is_event: np.ndarray) -> float:
    """Without equal scores."""
    events = is_event[np.argsort(-score, kind="stable")]
    return float((np.cumsum(events) / np.arange(1, len(events) + 1))[events].mean())


@pytest.mark.slow
def test_the_template_beats_robust_z_scores_on_the_same_rows(tmp_path: Path) -> None:
    command(tmp_path, "init", "p", "--template", "tabular", "--yes")
    project = tmp_path / "p"
    settings = tomli.loads((project / "aifx.toml").read_text())["data"]
    table, splits = read_splits(TableSection(**settings), Project(project))
    rows = {name: np.array(values, float) for name, values in table.values.items()}
    is_test, is_event = splits["test"], rows["label"] == 1
    z_scores = average_precision(robust_z_scores(rows, splits["train"])[is_test], is_event[is_test])
    assert is_event[is_test].sum() > 30
    found = []
    for seed in range(3):
        command(project, "train", "--run", f"seed-{seed}", "--set", f"train.seed={seed}")
        report = json.loads(command(project, "eval", "--run", f"seed-{seed}", "--json").stdout)
        assert report["metrics"]["examples"] == is_test.sum()
        found.append(report["metrics"]["per_class"]["1"]["average_precision"])
    assert np.mean(found) > max(z_scores, 0.679), (found, z_scores)
