"""A project of series: from rows of a file to a gate and a forecast, and a resume bit for bit."""

from __future__ import annotations

import json
import os
import re
import subprocess
from datetime import date, timedelta
from pathlib import Path

import inprocess
import numpy as np
import pytest
from pyarrow import parquet
from stopping import StopAt

import aifx
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.training.run import train

DAYS = 400
TOML = """\
[task]
kind = "series"
[data]
path = "data/sales.csv"
time = "day"
value = "sold"
series = "shop"
known = ["price"]
context = 21
horizon = 3
validation_steps = 40
test_steps = 40
[model]
embed_dim = 16
width = 32
pooling = [7, 1]
[train]
num_steps = 120
global_batch_size = 32
validate_every = 30
[optimizer]
learning_rate = 0.01
[checkpoint]
every = 60
[eval]
gates = ["mape <= 15", "coverage >= 0.4"]
"""


def sold(shop: int, day: int, price: float) -> float:
    """Sales with a week and an effect of the price."""
    rng = np.random.default_rng([shop, day])
    return round(float(100 * (shop + 1) + 30 * (shop + 1) * np.sin(2 * np.pi * day / 7)) * price + rng.normal(), 3)


def price_of(day: int) -> float:
    return 1.3 if day % 5 == 0 else 1.0


def week_before() -> float:
    """The error over the test of the sales seven days before."""
    values = np.array([[sold(shop, day, price_of(day)) for day in range(DAYS)] for shop in range(2)])
    return float(np.abs(values[:, -40:] - values[:, -47:-7]).mean())


def rows_of(days: range) -> str:
    """A .csv of two shops. After DAYS only the price is known."""
    lines = ["day,shop,price,sold"]
    for shop in range(2):
        for day in days:
            value = "" if day >= DAYS or (shop, day) == (1, 50) else sold(shop, day, price_of(day))
            lines.append(f"{date(2020, 1, 1) + timedelta(days=day)},shop-{shop},{price_of(day)},{value}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/sales.csv").write_text(rows_of(range(DAYS)))
    (tmp_path / "aifx.toml").write_text(TOML)
    return tmp_path


def command(project: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = inprocess.run(args, project, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    return done


@pytest.mark.representative("series of one's own")
def test_a_project_of_series_trains_passes_its_gates_and_forecasts(project: Path) -> None:
    command(project, "config", "check")
    trained = command(project, "train", "--json")
    assert re.search("2 series, 799 values.* 1 day.* weekday", trained.stderr)
    report = json.loads(command(project, "eval", "--json").stdout)
    assert report["metrics"]["examples"] == 2 * 14  # 40 days in windows of three
    assert [gate["passed"] for gate in report["gates"]] == [True, True]
    naive = report["baselines"]
    assert [name for name in naive if name != "boosted trees"] == ["7 steps before", "364 steps before"]
    assert naive["7 steps before"]["mean_absolute_error"] == pytest.approx(week_before(), rel=1e-3)
    (project / "data/sales.csv").unlink()  # from here on, the run is enough
    (project / "new.csv").write_text(rows_of(range(DAYS - 30, DAYS + 3)))
    command(project, "predict", "new.csv", "--output", "forecast.csv")
    header, *lines = (project / "forecast.csv").read_text().splitlines()
    assert header == "file,shop,day,value,quantiles.0.1,quantiles.0.5,quantiles.0.9,reason"
    assert [line.split(",")[1:3] for line in lines] == [
        [f"shop-{shop}", str(date(2020, 1, 1) + timedelta(days=DAYS + day))] for shop in range(2) for day in range(3)
    ]
    for line, (shop, day) in zip(lines, ((s, d) for s in range(2) for d in range(DAYS, DAYS + 3)), strict=True):
        value, low, median, high = map(float, line.split(",")[3:7])
        assert low <= median == value <= high
        assert value == pytest.approx(sold(shop, day, price_of(day)), rel=0.4)
    check_series_without_values(project, lines)
    (project / "new.csv").write_text(rows_of(range(DAYS - 30, DAYS)))
    failed = command(project, "predict", "new.csv", code=2)
    assert "new.csv: series 'shop-0'" in failed.stderr
    assert "'price' is missing" in failed.stderr
    measured = json.loads(command(project, "eval", "--data", "new.csv", "--json").stdout)
    assert measured["datasets"][0]["metrics"]["examples"] == 2 * 3


def check_series_without_values(project: Path, forecasts: list[str]) -> None:
    """Two series without values, before and behind the others, are named, and the others have their forecasts."""
    empty = {
        name: f"{date(2021, 1, 1)},{name},1.0,\n{date(2021, 1, 2)},{name},1.0,\n" for name in ("closed", "unopened")
    }
    (project / "new.csv").write_text(rows_of(range(DAYS - 30, DAYS + 3)) + "".join(empty.values()))
    partly = command(project, "predict", "new.csv", "--output", "forecast.csv", "--json", code=1)
    document = json.loads(partly.stdout)
    assert (document["predictions"], document["skipped"]) == (6, [f"new.csv: series {name!r}" for name in empty])
    assert all(f"series {name!r}" in partly.stderr for name in empty)
    _, first, *lines, last = (project / "forecast.csv").read_text().splitlines()
    assert lines == forecasts
    assert [first, last] == [f"new.csv,{name},,,,,,column 'sold' has no value" for name in empty]
    names = [f"a{number:02}" for number in range(70)]  # more than the records that are written at a time
    many = "".join(f"{date(2021, 1, 1)},{name},1.0,\n" for name in [*names, "z"])
    (project / "many.csv").write_text(rows_of(range(DAYS - 30, DAYS + 3)) + many)
    command(project, "predict", "many.csv", "--output", "forecast.parquet", code=1)
    rows = parquet.read_table(project / "forecast.parquet").to_pylist()
    assert [row["shop"] for row in rows if row["reason"]] == [*names, "z"]
    assert [row["value"] is None for row in rows] == [bool(row["reason"]) for row in rows]
    (project / "none.csv").write_text("day,shop,price,sold\n" + empty["closed"])
    assert "'closed'" in command(project, "predict", "none.csv", code=2).stderr
    days = [str(date(2021, 1, 1) + timedelta(days=day)) for day in range(24)]
    row = {"shop": "a", "day": days, "price": [1.0] * 24}
    first, second = aifx.load(project / "runs/main").predict(
        [row | {"sold": [None] * 24}, row | {"sold": [*map(float, range(21)), None, None, None]}]
    )
    assert (first["value"], list(first["quantiles"]), first["reason"]) == (
        [None] * 3, list(second["quantiles"]), "column 'sold' has no value",
    )  # fmt: skip
    assert np.isfinite(second["value"]).all()


@pytest.mark.slow
def test_the_last_steps_of_series_that_end_at_different_times_are_measured(project: Path) -> None:
    header, *lines = rows_of(range(DAYS)).splitlines()
    ended = [line for line in lines if not (",shop-1," in line and line >= "2020-10")]
    (project / "data/sales.csv").write_text("\n".join([header, *ended, "2021-01-01,shop-2,1.0,5"]) + "\n")
    toml = TOML.replace("validation_steps = 40\ntest_steps = 40\n", 'split = "last"\n')
    (project / "aifx.toml").write_text(toml.replace("horizon = 3", "horizon = 7"))
    command(project, "train", "--set", "train.num_steps=2", "--set", "train.validate_every=2", "--set", "eval.gates=[]")
    done = command(project, "eval", "--json", "--set", "eval.gates=[]")
    report = json.loads(done.stdout)
    assert report["metrics"]["examples"] == 2  # a forecast of the horizon for each series that is long enough
    last = [[sold(shop, day, price_of(day)) for day in range(end - 14, end)] for shop, end in ((0, DAYS), (1, 274))]
    error = np.abs(np.diff(np.reshape(last, (2, 2, 7)), axis=1)).mean()
    assert report["baselines"]["7 steps before"]["mean_absolute_error"] == pytest.approx(error, rel=1e-3)
    for split in ("train", "validation", "test"):
        assert re.search(f"1 of 3 series .* {split} .*: shop-2", done.stderr)


@pytest.mark.slow
def test_a_run_of_series_resumes_bit_for_bit(project: Path) -> None:
    found = Project(project)
    config = load_config(found, ["train.num_steps=20", "train.gradient_accumulation=2"], {})
    whole = train(found, config, "whole")
    observer = StopAt(7)
    assert train(found, config, "halved", hooks=[observer], stop=observer.signals).status == "preempted"
    second = train(found, config, "halved")
    assert second.state_digest == whole.state_digest
    assert second.best_validation_loss == whole.best_validation_loss


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.path='data/sale.csv'", ["no file 'data/sale.csv'", "sales.csv"]),
        ("data.known=['sold']", ["data.known names the column 'sold', which is data.value"]),
        ("objective.quantiles=[0.1,0.9]", ["objective.quantiles", "0.5 must be among them"]),
        ("data.validation_fraction=0.9", ["data.validation_fraction = 0.9"]),
        ("data.split='last'", ["data.test_fraction", "data.split = 'last'", "data.test_steps"]),
        ("eval.gates=['mse < 1']", ["mse", "mape"]),
        ("checkpoint.best_by='min maape'", ["did you mean 'mape'?"]),
    ],
)
def test_settings_that_cannot_be(project: Path, setting: str, words: list[str]) -> None:
    toml = TOML.replace("validation_steps = 40\ntest_steps = 40\n", "test_fraction = 0.1\n")
    (project / "aifx.toml").write_text(toml)
    done = command(project, "config", "check", "--set", setting, code=2)
    for word in words:
        assert word in done.stderr + done.stdout


def test_an_objective_that_weighs_whole_rows_refuses_series(project: Path) -> None:
    toml = TOML.replace("[data]", '[objective]\nkind = "regression"\n[data]').replace(
        '["mape <= 15", "coverage >= 0.4"]', "[]"
    )
    (project / "aifx.toml").write_text(toml)
    failed = command(project, "train", code=2)
    assert "one weight per example" in failed.stderr
    assert "objective.kind" in failed.stderr
