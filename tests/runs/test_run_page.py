"""`aifx runs report`: the page of a run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

import aifx
from aifx.commands.console import format
from aifx.commands.main import run as run_command
from aifx.core import pages
from aifx.core.project import Project, RunDirectory
from aifx.runs.page import figure, run_page
from aifx.runs.records import Ledger, MetricsWriter

EVIL = "</p><script>alert(1)</script>"


def make_run(root: Path, steps: int, name: str = "main") -> RunDirectory:
    (root / "aifx.toml").touch()
    run = Project(root).run(name)
    run.path.mkdir(parents=True)
    run.config.write_text("[train]\nnum_steps = 40  # default\nseed = 7  # --set\n")
    ledger, metrics = Ledger(run.events), MetricsWriter(run.metrics, 0)
    ledger.write("start", step=0)
    seconds = {"setup": 2.0, "step": 7.0, "checkpoint": 0.5}
    ledger.append(
        {"time": 1e9, "event": "time", "account": {"elapsed_s": 10.0, "seconds": seconds, "steps": [0, steps]}}
    )
    for step in range(1, steps + 1):
        record = {"step": step, "loss": 5 / step, "unit": "tokens", "units_per_s": 1000.0 + step, "step_time_s": 0.1}
        metrics.write({**record, "validation": {"loss": 6 / step, "accuracy": step / 99}} if step % 10 == 0 else record)
    ledger.write("sample", step=steps, prompt="Once", text=EVIL)
    ledger.write("warning", text=EVIL)
    ledger.write("stop", status="completed", step=steps, peak_memory_bytes=5_000_000)
    return run


def test_a_page_has_what_the_run_has(tmp_path: Path) -> None:
    run = make_run(tmp_path, 40)
    run.eval.mkdir()
    metrics = {
        "accuracy": 0.75,
        "per_class": {"cat": {"recall": 0.5}, "dog": {"recall": 1.0}},
        "confusion": [[17, 23], [0, 41]],
    }
    gates = [{"expr": "accuracy >= 0.9", "value": 0.75, "passed": False}]
    entry = {"metrics": metrics, "gates": gates, "passed": False}
    (run.eval / "40.json").write_text(json.dumps({"step": 40, "splits": {"test": entry}}))
    page = run_page(run, Project(tmp_path))
    for title in ("Loss", "Throughput, in tokens per second", "Step time, in seconds", "accuracy"):
        assert f"<b>{title}</b>" in page
    assert page.count('<svg class="picture"') == 4, "the learning rate and others have no record"
    assert "accuracy &gt;= 0.9" in page
    assert ">failed<" in page
    assert re.search(r">cat<.*>17<.*>23<", page)
    assert "completed" in page
    assert re.search(r"steps<.*>7.0 s<.*>70.0%<", page)
    assert re.search(r"unknown<.*>0.5 s<.*>5.0%<", page)
    assert "goodput 70.0% of 10 s" in page
    assert "train.seed" in page
    assert "--set" in page
    assert "5.0 MB" in page
    assert EVIL not in page
    assert page.count("&lt;script&gt;") == 2
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"http", page)


def test_the_page_of_a_long_run_stays_small(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1)
    lines = [
        {"step": n, "loss": 3 + math.sin(n / 50), "unit": "tokens", "units_per_s": 9.0 + n % 7, "grad_norm": n % 11}
        for n in range(2, 20_000)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = run_page(run, Project(tmp_path))
    assert page.count('<svg class="picture"') == 3
    assert len(page) < 400_000


def test_a_run_that_has_just_started(tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").touch()
    run = Project(tmp_path).run("new")
    run.path.mkdir(parents=True)
    run.config.write_text("")
    assert "no two steps" in run_page(run, Project(tmp_path))
    assert "no two steps" in run_page(make_run(tmp_path, 1), Project(tmp_path))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    assert run_command(["runs", "report"]) == 0
    assert capsys.readouterr().out == "main.html\n"
    assert "run main" in Path("main.html").read_text()
    assert run_command(["runs", "report", "main", "--html", "none/here.html"]) == 2
    assert "none/here.html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"), [(12000, "12,000"), (0.5, "0.5000"), (1e-7, "1e-07"), (None, "-"), (math.nan, "-"), (0.0, "0")]
)
def test_figures(value: float | None, text: str) -> None:
    assert figure(value) == text


HUGE = 10**400


@pytest.mark.parametrize(
    "event",
    [
        {"event": "sample"},
        {"event": "sample", "step": [1], "prompt": None, "text": {"a": 1}},
        {"event": ["sample"]},
        {"time": 1.0},
        {"event": "warning", "time": 1e308, "text": "\ud800"},
        {"event": "warning", "time": -1e15, "text": HUGE},
        {"event": "start", "time": 1e308, "step": HUGE},
        {"event": "validation", "step": HUGE, "loss": HUGE},
    ],
)
def test_a_damaged_line_of_the_ledger_breaks_no_page(tmp_path: Path, event: dict[str, object]) -> None:
    run = make_run(tmp_path, 10)
    text = run.events.read_text()
    run.events.write_text(json.dumps(event) + "\n" + text + json.dumps(event) + "\n")
    assert "completed" in run_page(run, Project(tmp_path))
    aifx.runs_show(run.name, project=tmp_path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "record",
    [
        {},
        {"step": "x", "loss": 1.0},
        {"step": HUGE, "loss": 1.0, "validation": {"loss": 1.0}},
        {"step": 11, "validation": 1},
        {"step": 11, "loss": 1e308, "validation": {"loss": 1e308, "accuracy": -1e308}},
        {"step": 11, "loss": 1e90, "validation": {"loss": HUGE}},
        {"step": None, "validation": {"loss": 0.0}},
    ],
)
def test_a_damaged_record_breaks_no_page(tmp_path: Path, record: dict[str, object]) -> None:
    run = make_run(tmp_path, 10)
    text = run.metrics.read_text()
    run.metrics.write_text(json.dumps(record) + "\n" + text + json.dumps(record) + "\n")
    assert "<b>Loss</b>" in run_page(run, Project(tmp_path))
    aifx.runs_show(run.name, project=tmp_path)


@pytest.mark.parametrize(
    ("base", "text"), [("main", "run main, step 7"), (f"fox@{'3' * 64}", "model fox@333333333333\n")]
)
def test_what_a_run_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], base: str, text: str
) -> None:
    run = make_run(tmp_path, 10, "tuned")
    run.provenance.write_text(json.dumps({"finetuned_from": {"run": base, "step": 7, "digest": "4" * 64}}))
    monkeypatch.chdir(tmp_path)
    assert run_command(["runs", "show", "tuned"]) == 0
    assert f"begun with  {text}" in re.sub(" {2,}", "  ", capsys.readouterr().out)


def test_times_that_no_calendar_has(tmp_path: Path) -> None:
    for moment in (1e308, -1e308, 1e17, -1e17):
        assert pages.date(moment) == "-"
        assert format.date(moment) is None
