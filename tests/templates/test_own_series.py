"""`aifx init --template series` with a file of one's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
import tomli

from aifx.scaffold.own_data import series_answers

SMALL = ("train.num_steps=120", "train.validate_every=60", "model.width=16", "model.embed_dim=4", "model.dropout=0")


def command(cwd: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = inprocess.run(args, cwd, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def days(count: int) -> list[str]:
    return [(date(2020, 1, 1) + timedelta(days=n)).isoformat() for n in range(count)]


def write(path: Path, header: str, rows: Sequence[Sequence[object]], bom: str = "") -> Path:
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    path.write_text(bom + "\n".join(lines) + "\n", "utf-8")
    return path


def settings(project: Path) -> dict[str, Any]:
    return tomli.loads((project / "aifx.toml").read_text())


@pytest.mark.slow
def test_a_file_of_ones_own_in_four_commands(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sold = [100 + 40 * (n % 7 == 5) + 20 * (n % 7 == 6) + rng.normal() * 3 for n in range(500)]
    file = write(tmp_path / "my shop.csv", "day,sold", list(zip(days(500), sold, strict=True)), bom="\ufeff")
    command(tmp_path, "init", "p", "--template", "series", "--answer", "data=my shop.csv")
    project = tmp_path / "p"
    data, (gate,) = settings(project)["data"], settings(project)["eval"]["gates"]
    assert (data["path"], data["time"], data["value"]) == ("../my shop.csv", "day", "sold")
    assert (data["horizon"], data["context"], settings(project)["model"]["pooling"]) == (7, 56, [7, 1])
    assert (settings(project)["train"]["num_steps"], settings(project)["checkpoint"]["every"]) == (200, 20)
    assert "series" not in data
    assert not (project / "data").exists()
    name, _, bound = gate.split()
    assert name == "mean_absolute_error"
    assert 2 < float(bound) < 4.5  # two draws of a deviation of 3 differ by 3.4 on average
    assert gate in (project / "ci/gate.sh").read_text()
    assert "`sold` of `../my shop.csv`" in (project / "README.md").read_text()
    assert "$ aifx predict '../my shop.csv' " in (project / "README.md").read_text()
    command(project, "config", "check")
    command(project, "train", *(word for setting in SMALL for word in ("--set", setting)))
    evaluated = command(project, "eval")
    assert "7 steps before" in evaluated.stdout
    predicted = command(project, "predict", "../my shop.csv").stdout.splitlines()
    assert [json.loads(line)["day"] for line in predicted] == days(507)[-7:]
    other = command(project, "eval", "--data", "../my shop.csv")
    assert "7 steps before" in other.stdout
    with open(file, "a") as stream:
        stream.write("2021-05-15,100\n")
    changed = command(project, "eval", "--set", "eval.gates=[]")
    assert "the data has changed" in changed.stderr
    assert changed.stderr.count("1 series") == 1


def test_columns_are_found_or_asked_for(tmp_path: Path) -> None:
    rows = [(day, n % 7, n % 5, n % 3) for n, day in enumerate(days(200))]
    write(tmp_path / "t.csv", "day,x,y,z", rows)
    failed = command(tmp_path, "init", "p", "-t", "series", "-a", "data=t.csv", code=2)
    assert "x, y, z" in failed.stderr
    command(tmp_path, "init", "p", "-t", "series", "-a", "data=t.csv", "-a", "target=y")
    assert settings(tmp_path / "p")["data"]["value"] == "y"


def test_parts_of_a_time_are_one(tmp_path: Path) -> None:
    parts = [day.split("-") for day in days(200)]
    write(tmp_path / "t.csv", "year,Month,day,births", [(*part, n % 7) for n, part in enumerate(parts)])
    command(tmp_path, "init", "p", "-t", "series", "-a", "data=t.csv")
    assert settings(tmp_path / "p")["data"]["time"] == ["year", "Month", "day"]
    write(tmp_path / "u.csv", "a,b,c,births", [(*part, n % 7) for n, part in enumerate(parts)])
    answers = ("-a", "data=u.csv", "-a", "time=a,b,c", "-a", "target=births")
    command(tmp_path, "init", "q", "-t", "series", *answers)
    assert settings(tmp_path / "q")["data"]["time"] == ["a", "b", "c"]


def test_a_column_of_texts_names_the_series_of_hours(tmp_path: Path) -> None:
    times = [datetime(2020, 1, 1) + timedelta(hours=n) for n in range(24 * 40)]
    rows = [(shop, at.isoformat(), at.hour + len(shop)) for shop in ("north", "east") for at in times]
    write(tmp_path / "t.csv", "shop,time,sold", rows)
    command(tmp_path, "init", "p", "-t", "series", "-a", "data=t.csv")
    data = settings(tmp_path / "p")["data"]
    assert (data["series"], data["horizon"], data["context"]) == ("shop", 24, 192)


def test_series_that_end_at_different_times_hold_out_their_last_steps(tmp_path: Path) -> None:
    quarters = [f"{1990 + n // 4} Q{n % 4 + 1}" for n in range(60)]
    rows = [(7, quarters[n], n % 4) for n in range(60)] + [(12, quarters[n], n % 4 + 5) for n in range(20, 50)]
    file = write(tmp_path / "t.csv", "store,quarter,sold", rows)
    found = series_answers(file, {"series": "store", "target": "sold", "horizon": "3"})
    assert (found["series"], found["time_columns"], found["step"]) == ("store", "quarter", "3 months")
    assert (found["split"], found["horizon"], found["context"]) == ("last", 3, 45 // 4)
    same = write(tmp_path / "u.csv", "store,quarter,sold", rows[:60] + [(12, *row[1:]) for row in rows[20:60]])
    assert series_answers(same, {"series": "store", "target": "sold"})["split"] == "date"
    command(tmp_path, "init", "p", "-t", "series", *"-a data=t.csv -a series=store -a target=sold -a horizon=3".split())
    data = settings(tmp_path / "p")["data"]
    assert (data["split"], data["series"], data["horizon"]) == ("last", "store", 3)
    assert not {"test_fraction", "validation_fraction"} & data.keys()
    checked = command(tmp_path / "p", "config", "check").stdout
    for split, last in ("train", "2003-04-01"), ("validation", "2004-01-01"), ("test", "2004-10-01"):
        assert re.search(rf"{split} .* to {last}, .* 2 series", checked)


def test_a_column_of_years_is_a_time(tmp_path: Path) -> None:
    file = write(tmp_path / "t.csv", "year,x", [(1900 + n, n % 7) for n in range(80)])
    found = series_answers(file, {})
    assert (found["time_columns"], found["target"], found["step"]) == ("year", "x", "12 months")


@pytest.mark.parametrize(
    ("text", "answers", "words"),
    [
        ("day,x\n2020-01-01,1\n", [], ["t.csv: too few rows"]),
        ("day,x\n31.12.2020,1\n30.12.2020,2\n", [], ["no column of times such as 1988-12-31", "time=COLUMN"]),
        ("day,x\n2020-01-01,1\n31.12.2020,2\n", ["time=day"], ["t.csv:3: no time in day", "'31.12.2020'"]),
        ("day,x\n2020-01-01,1\n", ["time=date"], ["no column 'date'", "--answer time"]),
        ("day,x\n2020-01-01,1\n2020-01-01,2\n", [], ["t.csv:3: the time 2020-01-01", "no column of texts"]),
        ("day,x\n2020-01-01,a\n2020-01-02,b\n", [], ["no other column of numbers"]),
        ("day;x\n2020-01-01;1,5\n", [], ["t.csv", "decimal commas"]),
        ("n,day,x\n1,2020-01-01,1\n2,2020-01-01,2\n", ["target=x"], ["t.csv:3", "--answer series=COLUMN"]),
        ("day,x\n2020-01-01,1\n", ["series=shop"], ["no column 'shop'", "--answer series"]),
        ("day,x\n2020-01-01,1\n", ["horizon=0"], ["--answer horizon=0"]),
        (None, ["time=day"], ["--answer time requires --answer data"]),
        (None, ["horizon=7"], ["--answer horizon requires --answer data"]),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, text: str | None, answers: list[str], words: list[str]) -> None:
    if text is not None:
        (tmp_path / "t.csv").write_text(text)
        answers = ["data=t.csv", *answers]
    args = [part for answer in answers for part in ("--answer", answer)]
    failed = command(tmp_path, "init", "p", "--template", "series", *args, code=2)
    for word in [*words, "hint:"]:
        assert word in failed.stderr
    assert not (tmp_path / "p").exists()
