"""The cost of a run, and how often it should save."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from aifx.config.sections import CostsSection
from aifx.core.errors import ConfigError
from aifx.core.project import Project, RunDirectory
from aifx.runs.bill import daly_interval_s, energy_bill, read_bill
from aifx.runs.goodput import Goodput
from aifx.runs.records import Ledger

RECORDS = [{"step": 1000, "units": 2_000_000, "unit": "tokens"}]


@pytest.fixture
def project(tmp_path: Any) -> Project:
    (tmp_path / "aifx.toml").write_text("")
    return Project(tmp_path)


def make_run(project: Project, *, ends: int = 0, settings: str = "", joules: float | None = None) -> RunDirectory:
    """1,000 steps of 1 s, ten checkpoints that stall 2 s each, and so many processes that were killed before."""
    run = project.run("main")
    run.path.mkdir(parents=True)
    run.config.write_text(settings or "[train]\nnum_steps = 100000\n[checkpoint]\nevery = 100\n")
    ledger = Ledger(run.events)
    for i in range(ends + 1):
        begin: dict[str, Any] = {"elapsed_s": 10.0, "seconds": {"setup": 10.0}}
        ledger.write("resume" if i else "start", step=0, account=begin)
        steps = [0, 1] if i < ends else [1, 1001]
        account: dict[str, Any] = {"elapsed_s": 12.0, "seconds": {"step": 2.0}, "steps": [0, 1]}
        if i == ends:
            account = {"elapsed_s": 1030.0, "seconds": {"step": 1000.0, "checkpoint": 20.0}, "steps": steps}
            if joules is not None:
                account["energy"] = {"joules": joules, "seconds": 1000.0, "basis": "measured"}
            for step in range(10):
                ledger.write("checkpoint", step=step)
        ledger.write("stop" if i == ends else "progress", account=account, status="completed")
    return run


def test_no_price_no_cost(project: Project) -> None:
    bill = read_bill(make_run(project), project, RECORDS)
    assert bill is not None
    assert (bill.cost, bill.price_per_hour, bill.energy) == (None, None, None)
    assert bill.goodput == pytest.approx(1000 / 1030)


def test_a_price_that_is_set_after_the_run(project: Project) -> None:
    run = make_run(project)
    project.config_path.write_text("[costs]\nprice_per_hour = 3.6\n")
    bill = read_bill(run, project, RECORDS)
    assert bill is not None
    assert bill.cost is not None
    assert bill.cost["step"] == pytest.approx(1.0)
    assert bill.cost["checkpoint"] == pytest.approx(0.02)
    assert "down" not in bill.cost


def test_the_costs_of_the_run_stand_where_the_project_says_nothing(project: Project) -> None:
    run = make_run(project, settings="[costs]\nprice_per_hour = 7.2\npue = 1.5\n")
    project.config_path.write_text("[costs]\nprice_per_hour = 3.6\n")
    bill = read_bill(run, project, RECORDS)
    assert bill is not None
    assert bill.price_per_hour == 3.6


def test_a_mistake_in_costs_is_named(project: Project) -> None:
    run = make_run(project)
    project.config_path.write_text("[costs]\nprice = 3\n")
    with pytest.raises(ConfigError, match=r"(?s)costs.*price: Extra inputs") as raised:
        read_bill(run, project, RECORDS)
    assert raised.value.hint == "aifx config check"
    project.config_path.write_text("costs = 3\n")
    with pytest.raises(ConfigError, match="costs = 3"):
        read_bill(run, project, RECORDS)


def test_emissions_are_those_of_the_specification() -> None:
    found = Goodput(joules=3.6e6, energy_s=3600.0, energy_bases=["measured"])
    found.seconds["step"] = 7200.0
    costs = CostsSection(pue=1.2, gco2e_per_kwh=300.0, embodied_gco2e_per_hour=20.0)
    energy = energy_bill(found, costs, 2e6, "tokens")
    assert energy is not None
    assert (energy.operational_gco2e, energy.embodied_gco2e) == (pytest.approx(360.0), pytest.approx(40.0))
    assert energy.gco2e_per_million == pytest.approx(200.0)
    assert (energy.joules_per_unit, energy.covered) == (pytest.approx(1.8), 0.5)


def test_what_is_not_declared_is_not_assumed() -> None:
    found = Goodput(joules=3.6e6, energy_s=3600.0, energy_bases=["nameplate"])
    found.seconds["step"] = 3600.0
    energy = energy_bill(found, CostsSection(embodied_gco2e_per_hour=20.0), None, None)
    assert energy is not None
    assert (energy.operational_gco2e, energy.gco2e_per_million, energy.joules_per_unit) == (None, None, None)
    assert energy_bill(Goodput(), CostsSection(gco2e_per_kwh=300.0), 1.0, "tokens") is None


def test_the_best_interval_loses_least() -> None:
    """Daly's formula, against the exact expected time of work with exponential failures (his equation 13)."""

    def time_per_work(interval_s: float, stall_s: float, mtbf_s: float) -> float:
        return mtbf_s * (math.exp((interval_s + stall_s) / mtbf_s) - 1) / interval_s

    for stall_s, mtbf_s in ((1.0, 1e4), (60.0, 3600.0), (300.0, 3600.0)):
        best = daly_interval_s(stall_s, mtbf_s)
        least = min(time_per_work(best * k / 100, stall_s, mtbf_s) for k in range(20, 500))
        assert time_per_work(best, stall_s, mtbf_s) <= least * 1.001
    assert daly_interval_s(100.0, 10.0) == 10.0


def test_advice_by_failures_that_were_measured(project: Project) -> None:
    bill = read_bill(make_run(project, ends=3), project, RECORDS)
    assert bill is not None
    advice = bill.advice
    assert advice is not None
    assert (bill.num_failures, advice.mtbf_source, advice.now) == (3, "measured", 100)
    assert advice.mtbf_s == pytest.approx(bill.running_s / 3)
    assert advice.stall_s == pytest.approx(2.0)
    assert advice.every == pytest.approx(daly_interval_s(2.0, advice.mtbf_s), rel=0.06)
    assert not advice.is_near
    assert advice.loss_now is not None
    assert advice.loss < advice.loss_now


def test_advice_without_failures_says_what_it_assumes(project: Project) -> None:
    bill = read_bill(make_run(project), project, RECORDS)
    assert bill is not None
    assert bill.advice is not None
    assert (bill.advice.mtbf_source, bill.advice.mtbf_s) == ("assumed", 50_000 * 3600)
    assert bill.advice.every == 27_000


@pytest.mark.parametrize("lacking", ["time", "checkpoints"])
def test_no_advice_without_evidence(project: Project, lacking: str) -> None:
    run = make_run(project)
    lines = [json.loads(line) for line in run.events.read_text().splitlines()]
    if lacking == "time":
        account = lines[-1]["account"]
        account |= {"elapsed_s": 103.0, "seconds": {"step": 100.0, "checkpoint": 2.0}, "steps": [0, 100]}
    else:
        lines = [lines[0], *lines[-3:]]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    bill = read_bill(run, project, RECORDS)
    assert bill is not None
    assert bill.goodput is not None
    assert bill.goodput > 0.8
    assert bill.advice is None


def test_advice_by_a_setting(project: Project) -> None:
    settings = "[train]\nnum_steps = 500\n[checkpoint]\nevery = 500\nmtbf_hours = 1000.0\n"
    bill = read_bill(make_run(project, ends=1, settings=settings), project, RECORDS)
    assert bill is not None
    assert bill.advice is not None
    assert (bill.advice.mtbf_source, bill.advice.mtbf_s) == ("given", 3.6e6)
    assert bill.advice.every == 500  # no more than the run has
    assert bill.advice.is_near
