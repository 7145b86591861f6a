"""`aifx monitor` compares a table's rows and predictions with those of the training, and says so to a line."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
from made_once import made_once
from table_project import train_table_project

from aifx.core.project import Project
from aifx.lines.events import read_events
from aifx.lines.reports import leave_monitor_report
from aifx.registry.roots import open_root

START = datetime(2026, 11, 2, tzinfo=UTC)


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the run "main", which reads the numbers "x" and "y"."""
    root = tmp_path / "project"
    shutil.copytree(made_once(tmp_path_factory, "table-run", train_table_project) / "project", root, symlinks=True)
    return root


def rows_of(count: int, seed: int = 1, **more: Sequence[Any]) -> list[dict[str, Any]]:
    x, y = np.random.default_rng(seed).normal(size=(2, count))
    columns: Mapping[str, Sequence[Any]] = {"x": x.tolist(), "y": y.tolist(), "label": ["up"] * count, **more}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def monitor(project: Path, *args: str, code: int = 0) -> Any:
    done = inprocess.run(["monitor", "main", *args, "--json"], project, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    document = json.loads(done.stdout)
    return document["error"] if code == 2 else document


def test_rows_like_those_of_the_training_do_not_drift(project: Path) -> None:
    found = monitor(project, write(project / "now.jsonl", rows_of(200)), "--limit", "label <= 1")
    assert (found["rows"], found["reference_rows"], found["drifted"]) == (200, 229, [])
    assert found["left_out"] == {}
    assert {"x", "y", "label", "prediction.label", "prediction.probability"} == {
        one["column"] for one in found["columns"]
    }


def test_other_rows_drift_with_their_predictions_and_an_event_says_so_once(project: Path) -> None:
    rows = [{**row, "x": 3 + row["x"]} for row in rows_of(200)]
    found = monitor(project, write(project / "now.jsonl", rows), "--limit", "label <= 1", code=1)
    assert {"x", "prediction.label"} <= set(found["drifted"])
    assert not {"y", "label"} & set(found["drifted"])
    assert not (project / "line").exists()  # there is no line

    (project / "line.toml").write_text("")
    for _ in range(2):
        monitor(project, "now.jsonl", "--limit", "label <= 1", code=1)
    place = Project(project)
    (event,) = read_events(place, open_root(None, place), {}).events
    assert (event.type, event.subject, event.data["drifted"]) == ("drift", "main", found["drifted"])


def test_each_reference_has_its_own_last_comparison_and_damaged_records_are_none(tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text("")
    (tmp_path / "line").mkdir()
    records, fact = tmp_path / "line/monitor.jsonl", {"model": "m", "source": "s"}
    damaged = [{"model": ["m"]}, {**fact, "reference": "week", "drifted": 5}]
    records.write_text("".join(json.dumps(one) + "\n" for one in damaged))
    for _ in range(2):
        for reference, drifted in (("training", []), ("week", ["x"]), ("month", ["y"])):
            leave_monitor_report({**fact, "reference": reference, "drifted": drifted, "breached": []}, tmp_path)
    written = [json.loads(row) for row in records.read_text().splitlines()[len(damaged) :]]
    assert [(one["reference"], one["drifted"]) for one in written] == [("week", ["x"]), ("month", ["y"])]


def test_new_versions_of_rows_with_the_same_drift_are_one_event(tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text("")
    (tmp_path / "line").mkdir()
    for source, drifted in (("orders@1", ["x"]), ("orders@2", ["x"]), ("orders@3", []), ("orders@4", ["x"])):
        report = {"model": "m", "source": source, "reference": "base@1", "drifted": drifted, "breached": []}
        leave_monitor_report(report, tmp_path)
    written = [json.loads(row) for row in (tmp_path / "line/monitor.jsonl").read_text().splitlines()]
    assert [one["source"] for one in written] == ["orders@1", "orders@3", "orders@4"]


def test_files_whose_names_hold_an_at_sign_are_different_rows(tmp_path: Path) -> None:
    (tmp_path / "line.toml").write_text("")
    (tmp_path / "line").mkdir()
    for source in ("rows@east.csv", "rows@west.csv"):
        report = {"model": "m", "source": source, "reference": "base@1", "drifted": ["x"], "breached": []}
        leave_monitor_report(report, tmp_path)
    assert len((tmp_path / "line/monitor.jsonl").read_text().splitlines()) == 2


def test_the_page_and_the_metrics_say_what_the_report_says(project: Path) -> None:
    rows = [{**row, "x": 3 + row["x"], "<b>": 1} for row in rows_of(200)]
    name = write(project / "<i>.jsonl", rows)
    written = ["--html", "drift.html", "--prometheus", "aifx.prom"]
    found = monitor(project, name, "--set", 'monitor.shown=["y"]', *written, code=1)
    effect = next(one["effect"] for one in found["columns"] if one["column"] == "x")
    assert (
        f'aifx_monitor_effect{{column="x",model="main",of="numbers"}} {effect}' in (project / "aifx.prom").read_text()
    )
    page = (project / "drift.html").read_text()
    assert f"{effect:.3f}" in page
    medians = {one["column"]: one["medians"] for one in found["columns"]}
    assert medians["x"] is None
    assert f"{medians['y'][1]:.5g}" in page
    assert "<i>.jsonl" not in page


def test_a_weekend_is_compared_with_weekends(project: Path) -> None:
    times = [START + timedelta(minutes=20 * n) for n in range(5544)]
    weekend = [3.0 * (time.weekday() >= 5) for time in times]
    rows = [
        {**row, "x": row["x"] + w, "at": t.isoformat()} for row, w, t in zip(rows_of(5544), weekend, times, strict=True)
    ]
    old, new = write(project / "old.jsonl", rows[:5400]), write(project / "new.jsonl", rows[5400:])
    assert {datetime.fromisoformat(row["at"]).weekday() for row in rows[5400:]} == {5, 6}
    found = monitor(project, new, "--against", old, "--time", "at")
    assert (found["part"], found["drifted"]) == ("4 hours of a day of the week", [])
    assert "x" in monitor(project, new, "--against", old, code=1)["drifted"]


def test_a_window_leaves_out_what_is_older(project: Path) -> None:
    """Rows are the same at any time, so that chance cannot make an alarm at some hour of the clock."""
    now = datetime.now(UTC)
    rows = [{"x": 1.0, "y": 0.0, "at": (now - timedelta(minutes=20 * n)).isoformat()} for n in range(4000)]
    old, new = write(project / "old.jsonl", rows[1200:]), write(project / "new.jsonl", rows[:1200])
    found = monitor(project, new, "--against", old, "--time", "at", "--window", "2d")
    assert (found["rows"], found["rows_read"]) == (144, 144)
    monday = write(project / "monday.jsonl", [{**row, "at": START.isoformat()} for row in rows[:200]])
    rare = monitor(project, new, "--against", monday, "--time", "at", "--window", "2d")["part"]
    assert rare.startswith("none: the reference has fewer than 10 rows of ")
    ahead = {**rows[0], "at": (now + timedelta(days=3)).isoformat()}
    late = write(project / "ahead.jsonl", [*rows[:200], ahead])
    error = monitor(project, late, "--against", old, "--time", "at", "--window", "2d", code=2)
    assert error["what"] == "ahead.jsonl:201: the row is from the future"
    hint = monitor(project, new, "--against", old, "--window", "2d", code=2)
    assert "--time" in hint["what"]
    few = monitor(project, old, "--against", old, "--time", "at", "--window", "1h", code=2)
    assert "0 rows of the window" in few["what"]
    assert "newest row is of" in few["why"]


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["--limit", "z <= 1"], "no column 'z'"),
        (["--limit", "x >= 1"], "not a limit"),
        (["--time", "when"], "no column 'when'"),
        (["--time", "label"], "is no time"),
        (["--against", "bare.jsonl"], "bare.jsonl lacks 'y'"),
        (["--window", "soon"], "--window soon"),
        (["--against", "nothing@12"], "nothing"),
    ],
)
def test_bad_input_names_its_place(project: Path, args: list[str], what: str) -> None:
    write(project / "bare.jsonl", [{"x": row["x"]} for row in rows_of(120)])
    error = monitor(project, write(project / "now.jsonl", rows_of(120)), *args, code=2)
    assert what in error["what"]
    assert error["hint"]


def labelled_rows(count: int, seed: int, shift: float = 0.0) -> list[dict[str, Any]]:
    """Rows whose label depends on "x" and "y" as in the training; `shift` moves "x"."""
    draw = np.random.default_rng(seed)
    x, y = draw.normal(size=(2, count))
    labels = np.where(x + shift + y + draw.normal(size=count) > 0, "up", "down")
    return [{"x": a + shift, "y": b, "label": c} for a, b, c in zip(x.tolist(), y.tolist(), labels, strict=True)]


def test_outcomes_measure_the_metrics_beside_the_gates_and_the_reference(project: Path) -> None:
    rows = labelled_rows(400, seed=5)
    right = [{**row, "label": ""} for row in rows[:100]] + rows[100:]
    wrong = [{**row, "label": "up" if row["label"] == "down" else "down"} for row in rows]
    gates = ["--set", 'eval.gates=["accuracy >= 0.6", "per_class.up.recall >= 0.4"]', "--limit", "label <= 1"]
    files = [write(project / name, one) for name, one in (("right.jsonl", right), ("wrong.jsonl", wrong))]

    found = monitor(project, files[0], *gates)["performance"]
    assert (found["outcomes"], found["pending"], found["unknown"]) == (300, 100, 0)
    assert sum(one["weight"] for one in found["calibration"]) == 300
    assert [(one["expr"], one["passed"]) for one in found["limits"]] == [
        ("accuracy >= 0.6", True),
        ("per_class.up.recall >= 0.4", True),
    ]
    write(project / "own.jsonl", right[100:])
    done = inprocess.run(["eval", "--run", "main", "--data", "own.jsonl", "--json"], project, os.environ)
    measured = json.loads(done.stdout)["datasets"][0]["metrics"]
    for one in found["metrics"]:
        if one["of"] == "measured" and one["metric"] in measured:
            assert one["value"] == pytest.approx(measured[one["metric"]], abs=1e-5)
            assert one["reference"] is not None
    accuracy = next(one for one in found["metrics"] if one["metric"] == "accuracy")
    assert accuracy["low"] < accuracy["value"] < accuracy["high"]

    bad = monitor(project, files[1], *gates, code=1)
    assert bad["breached"] == ["accuracy >= 0.6", "per_class.up.recall >= 0.4"]
    assert bad["drifted"] == []


def test_before_outcomes_accuracy_is_estimated_and_only_a_limit_of_it_makes_a_verdict(project: Path) -> None:
    rows = labelled_rows(400, seed=6)
    name = write(project / "now.jsonl", [{"x": row["x"], "y": row["y"]} for row in rows])
    gates = ["--set", 'eval.gates=["accuracy >= 0.99"]']
    found = monitor(project, name, *gates)
    assert found["breached"] == []
    assert "accuracy >= 0.99" in found["unmeasured"]
    (one,) = found["performance"]["metrics"]
    assert (one["metric"], one["of"]) == ("accuracy", "estimated")
    assert found["performance"]["assumes"]
    known = write(project / "known.jsonl", rows)
    metrics = monitor(project, known, "--limit", "label <= 1")["performance"]["metrics"]
    assert one["low"] < next(each["value"] for each in metrics if each["metric"] == "accuracy") < one["high"]
    limit = "estimate.accuracy >= 0.99"
    assert monitor(project, name, "--limit", limit, code=1)["breached"] == [limit]


@pytest.mark.slow
def test_predictions_are_compared_with_those_for_rows_that_were_held_out(project: Path) -> None:
    """A model that knows its training rows is surer of them than of new ones, which is no drift."""
    settings = ["train.num_steps=400", "model.width=256", "model.dropout=0", "optimizer.learning_rate=0.02"]
    train = ["train", "--run", "sure", *(word for one in settings for word in ("--set", one))]
    done = inprocess.run(train, project, os.environ)
    assert done.returncode == 0, done.stderr
    name = write(project / "now.jsonl", rows_of(400))

    def effects(*args: str) -> dict[str, float]:
        done = inprocess.run(["monitor", "sure:last", name, "--json", *args], project, os.environ)
        return {one["column"]: one["effect"] for one in json.loads(done.stdout)["columns"]}

    held_out, all_rows = effects(), effects("--against", "rows.csv")  # which are taken as held out
    assert held_out["prediction.probability"] < all_rows["prediction.probability"]


def test_too_few_rows_are_not_compared(project: Path) -> None:
    error = monitor(project, write(project / "now.jsonl", rows_of(99)), code=2)
    assert error["what"].endswith("has 99 rows")
