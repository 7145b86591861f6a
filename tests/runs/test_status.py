from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from aifx.core.json_values import number
from aifx.core.project import RunDirectory
from aifx.core.statuses import ProcessStatus
from aifx.runs.comparison import MetricPair, SettingPair, StepRow, compare_runs
from aifx.runs.lock import hold_run
from aifx.runs.reading import changed_settings, read_evaluations
from aifx.runs.records import Ledger, MetricsWriter
from aifx.runs.status import run_status


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "main")
    run.path.mkdir()
    run.config.write_text(
        "[train]\nnum_steps = 100  # default\nseed = 7  # --set\n[task]\nkind = 'language'  # default\n"
    )
    return run


def train(run: RunDirectory, *, unit: str = "tokens", scale: float = 1.0) -> None:
    ledger, metrics = Ledger(run.events), MetricsWriter(run.metrics, 0)
    ledger.write("start", step=0)
    for step in (10, 20, 30, 40):
        record = {"step": step, "loss": scale / step, "unit": unit, "units": step * 5, "units_per_s": 100.0 + step}
        if step != 40:
            record["validation"] = {"loss": scale * abs(step - 20) + 1}
        metrics.write(record)


def test_a_run_that_has_nothing_yet(run: RunDirectory) -> None:
    status = run_status(run)
    assert (status.status, status.step, status.num_steps, status.loss) == ("killed", 0, 100, None)
    with hold_run(run):
        assert run_status(run).status == "running"


def test_alive_then_killed(run: RunDirectory) -> None:
    with hold_run(run):
        train(run)
        status = run_status(run)
        assert status.alive
        assert status.pid is not None
    status = run_status(run)
    assert status.status == "killed"
    assert status.pid is None
    assert (status.step, status.loss, status.units_per_s) == (40, 1 / 40, 140.0)
    assert (status.validation_loss, status.best_validation_loss, status.best_step) == (11.0, 1.0, 20)


@pytest.mark.parametrize("how", [*get_args(ProcessStatus), "failed"])
def test_ended(run: RunDirectory, how: str) -> None:
    train(run)
    Ledger(run.events).write("stop", status=how, step=43)
    assert run_status(run).status == how
    assert run_status(run).step == 43  # further than the last record
    Ledger(run.events).write("resume", step=20)
    assert run_status(run).status == "killed"  # and gone without a word
    assert run_status(run).step == 40


def test_images_are_counted_as_images(run: RunDirectory) -> None:
    train(run, unit="images")
    status = run_status(run)
    assert (status.unit, status.units_per_s) == ("images", 140.0)


def test_records_without_units_have_no_speed(run: RunDirectory) -> None:
    MetricsWriter(run.metrics, 0).write({"step": 10, "loss": 1.0, "tokens": 50, "tokens_per_s": 5.0})
    status = run_status(run)
    assert (status.step, status.loss, status.unit, status.units_per_s) == (10, 1.0, None, None)


def test_unreadable_files_are_no_obstacle(run: RunDirectory) -> None:
    for path in (run.config, run.metrics, run.events, run.provenance):
        path.write_bytes(b"\xff\0{{{")
    status = run_status(run)
    assert (status.status, status.step, status.num_steps) == ("killed", 0, None)
    assert changed_settings(run) == []


def test_settings_that_somebody_made(run: RunDirectory) -> None:
    assert [(s.key, s.value, s.origin) for s in changed_settings(run)] == [("train.seed", 7, "--set")]


def test_comparison(run: RunDirectory, tmp_path: Path) -> None:
    other = RunDirectory(tmp_path / "other")
    other.path.mkdir()
    other.config.write_text("[train]\nnum_steps = 200\nseed = 7\n")
    train(run)
    train(other, scale=2.0)
    for r, value in ((run, 1.5), (other, 1.25)):
        r.eval.mkdir()
        text = (
            '{"step": 40, "splits": {"test": {"metrics": {"loss": %s, "per_class": {}}, "gates": [], "passed": true}}}'
        )
        (r.eval / "40.json").write_text(text % value)
        (r.eval / "30.json").write_text("{torn")
    found = compare_runs(run, other)
    assert found.config == [SettingPair("train.num_steps", (100, 200)), SettingPair("task.kind", ("language", None))]
    assert found.rows[1] == StepRow(20, (1 / 20, 2 / 20), (1 / 20, 2 / 20), (1.0, 1.0))
    assert found.evaluations == [MetricPair("test", "loss", (1.5, 1.25))]
    assert [e.step for e in read_evaluations(run)] == [40]


def test_an_integer_beyond_all_floats_is_no_number() -> None:
    assert number(10**400) is None
    assert number(-3) == -3.0
