"""KPIs as numbers: each with its unit, what it rests on, and what is not in it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aifx.accounting.groups import By
from aifx.accounting.reading import Period, ProjectUse, RunUse
from aifx.accounting.served import Served
from aifx.core.plurals import counted, some_names
from aifx.core.results import Result
from aifx.runs.bill import EnergyBill, energy_bill
from aifx.runs.goodput import CATEGORIES, Category

DAY_S = 86400.0


@dataclass(frozen=True)
class Kpi:
    """A number.

    Attributes:
        name: such as "accelerator_hours".
        value: None if nothing of it is known.
        unit: such as "h"; "currency" is that of `costs.price_per_hour`.
        basis: what it was counted from.
        missing: what is not in it, such as "2 of 3 runs have no price".
    """

    name: str
    value: float | None
    unit: str
    basis: str
    missing: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The value for people; a dash if it is not known."""
        if self.value is None:
            return "-"
        return f"{self.value:.1%}" if self.unit == "share" else f"{self.value:,.6g}"


@dataclass(frozen=True)
class DeviceHours:
    """Hours of devices, by what a run's time went to.

    Attributes:
        devices: "accelerator", or "cpu" if runs have no other devices. A device counts while a process of its run ran.
        categories: the hours by category of docs/goodput.md, without down time.
    """

    devices: Literal["accelerator", "cpu"]
    hours: float
    categories: dict[Category, float]


@dataclass(frozen=True)
class CostPart:
    """A part of the money.

    Attributes:
        name: "training", steps that count of runs whose model was promoted; "failed trials", those of other runs;
            "idle", all other time of both while a process ran.
    """

    name: Literal["training", "failed trials", "idle"]
    cost: float


@dataclass(frozen=True)
class Group:
    """The KPIs of a team, tag, model or month; see `Kpis`."""

    name: str
    kpis: list[Kpi]
    hours: list[DeviceHours]
    costs: list[CostPart]


@dataclass(frozen=True)
class Kpis(Result):
    """The document of `aifx kpis --json`.

    Attributes:
        projects: their folders.
        begin, end: Unix times; `begin` is None without a limit.
        hours: of devices, by what the time went to.
        costs: the parts of `money`; empty if no run has a price.
        problems: what could not be read.
        by: what `groups` are.
        groups: the same numbers of each group. A run with two tags is in two groups.
    """

    projects: list[str]
    begin: float | None
    end: float
    kpis: list[Kpi]
    hours: list[DeviceHours]
    costs: list[CostPart]
    problems: list[str]
    by: By | None = None
    groups: list[Group] = field(default_factory=list)


def make_report(uses: Sequence[ProjectUse], period: Period) -> Kpis:
    """The KPIs of some projects together."""
    runs = [run for use in uses for run in use.runs]
    hours = [_hours(runs, "accelerator"), _hours(runs, "cpu")]
    kpis = [*_run_kpis(runs, hours), *_model_kpis(uses), _drills(uses, period.end)]
    kpis += _unit_costs(uses, {one.name: one for one in kpis})
    problems = [problem for use in uses for problem in use.problems]
    return Kpis([str(use.root) for use in uses], period.begin, period.end, kpis, hours, _cost_parts(uses), problems)


PER_PROJECT = ("days_since_drill",)
"""KPIs that are not divided."""


def make_group(name: str, uses: Sequence[ProjectUse], period: Period) -> Group:
    """The KPIs of a part of what projects used."""
    found = make_report(uses, period)
    return Group(name, [one for one in found.kpis if one.name not in PER_PROJECT], found.hours, found.costs)


def _hours(runs: Iterable[RunUse], devices: Literal["accelerator", "cpu"]) -> DeviceHours:
    categories: dict[Category, float] = dict.fromkeys((name for name in CATEGORIES if name != "down"), 0.0)
    for run in runs:
        if run.num_devices is not None and run.platform is not None and (run.platform == "cpu") == (devices == "cpu"):
            for name in categories:
                categories[name] += run.found.seconds[name] * run.num_devices / 3600
    return DeviceHours(devices, sum(categories.values()), categories)


def _run_kpis(runs: Sequence[RunUse], hours: Sequence[DeviceHours]) -> list[Kpi]:
    known = [run for run in runs if run.num_devices is not None and run.platform is not None]
    no_devices = _without(runs, known, "say no devices in provenance.json")
    not_seen = "servers and runs that were deleted leave no record of their time"
    found = [Kpi("runs", len(runs), "runs", "runs with a line of events.jsonl in the period", ("deleted runs",))]
    for one in hours:
        basis = "seconds of events.jsonl times the devices of provenance.json, without down time"
        value = one.hours if known or not runs else None
        found.append(Kpi(f"{one.devices}_hours", value, "h", basis, (*no_devices, not_seen)))
    steps = sum(run.found.seconds["step"] * (run.num_devices or 0) for run in known)
    for name, basis, taken in (
        ("goodput", "share of steps that count in all device hours, down time included", "elapsed_s"),
        ("running_goodput", "share of steps that count in the device hours of processes that ran", "running_s"),
    ):
        total = sum(getattr(run.found, taken) * (run.num_devices or 0) for run in known)
        found.append(Kpi(name, steps / total if total > 0 else None, "share", basis, no_devices))
    return [*found, _money(runs), *_energy(runs)]


def cost_of(run: RunUse) -> float | None:
    """The price of the run's machines while its processes ran; None without a price."""
    price = run.costs.price_per_hour
    return None if price is None else price * run.found.running_s / 3600


def _money(runs: Sequence[RunUse]) -> Kpi:
    priced = [run for run in runs if run.costs.price_per_hour is not None]
    costs = [cost for run in priced if (cost := cost_of(run)) is not None]
    missing = (*_without(runs, priced, "have no costs.price_per_hour"), "down time, servers, storage and people")
    basis = "costs.price_per_hour times the time in which a process of a run ran"
    return Kpi("money", sum(costs) if costs or not runs else None, "currency", basis, missing)


def _energy(runs: Sequence[RunUse]) -> list[Kpi]:
    bills = [(run, bill) for run in runs if (bill := energy_bill(run.found, run.costs, None, None)) is not None]
    bases = sorted({basis for _, bill in bills for basis in bill.bases})
    missing = _without(runs, [run for run, _ in bills], "counted no energy")
    if partly := [run.name for run, bill in bills if bill.covered < 1]:
        missing = (*missing, f"{counted(len(partly), 'run')} counted it in a part of the time: {some_names(partly)}")
    joules = sum(bill.joules for _, bill in bills) if bills or not runs else None
    energy = Kpi("energy", joules, "J", f"devices, {' and '.join(bases)}" if bases else "devices of runs", missing)
    emitted = [(run, grams) for run, bill in bills if (grams := _emissions(bill)) is not None]
    lacking = _without(runs, [run for run, _ in emitted], "have no energy or no costs.gco2e_per_kwh")
    if plain := [run.name for run, _ in emitted if run.costs.embodied_gco2e_per_hour is None]:
        lacking = (*lacking, f"embodied emissions of {counted(len(plain), 'run')}: {some_names(plain)}")
    total = sum(grams for _, grams in emitted) if emitted or not runs else None
    basis = "energy times costs.pue and costs.gco2e_per_kwh, and costs.embodied_gco2e_per_hour"
    return [energy, Kpi("emissions", total, "gCO2e", basis, lacking)]


def _emissions(bill: EnergyBill) -> float | None:
    return None if bill.operational_gco2e is None else bill.operational_gco2e + (bill.embodied_gco2e or 0.0)


def _without(runs: Sequence[RunUse], known: Sequence[RunUse], lack: str) -> tuple[str, ...]:
    """What is missing of runs that lack something; nothing if all have it."""
    names = {id(run) for run in known}
    lacking = [run.name for run in runs if id(run) not in names]
    return (f"{len(lacking):,} of {counted(len(runs), 'run')} {lack}: {some_names(lacking)}",) if lacking else ()


def _model_kpis(uses: Sequence[ProjectUse]) -> list[Kpi]:
    readable = [use for use in uses if use.registry is not None]
    missing = tuple(f"the registry of {use.root}" for use in uses if use.registry is None)
    promoted = {id for use in uses for id in use.count("promoted")}
    refused = {id for use in uses for id in use.count("gate.failed", "registry/")}
    drifts = {id for use in uses for id in use.count("drift")}
    # Projects that share a registry know the same deliveries; one of them may know when the rows came.
    deliveries = {(use.registry, one.model, one.version): one for use in readable for one in use.deliveries}
    for use in readable:
        for one in use.deliveries:
            if one.rows_at is not None:
                deliveries[use.registry, one.model, one.version] = one
    waits = [one.time - one.rows_at for one in deliveries.values() if one.rows_at is not None]
    unknown = [f"{one.model}@{one.version}" for one in deliveries.values() if one.rows_at is None]
    untimed = (f"the time of the rows of {some_names(unknown)}",) if unknown else ()
    return [
        Kpi("promotions", len(promoted) if readable else None, "promotions", "entries of the registry", missing),
        Kpi("refused_promotions", len(refused) if readable else None, "promotions", "entries of the registry", missing),
        Kpi(
            "drift_alarms",
            len(drifts),
            "alarms",
            "line/journal.jsonl and line/monitor.jsonl",
            ("calls of aifx monitor in projects without a line.toml",),
        ),
        Kpi(
            "rows_to_service",
            statistics.median(waits) if waits else None,
            "s",
            "median over versions, from the newest of their data sets to the first promotion; a data set's time is the "
            "begin of the station that made it, or that of its manifest",
            (*missing, *untimed),
        ),
    ]


def _drills(uses: Sequence[ProjectUse], now: float) -> Kpi:
    """Of the project whose last drill is the longest ago."""
    never = tuple(f"no record of a drill in {use.root}" for use in uses if use.drilled_at is None)
    ages = [(now - use.drilled_at) / DAY_S for use in uses if use.drilled_at is not None]
    basis = "the longest time of a project, by runs/drills.jsonl and line/journal.jsonl"
    return Kpi("days_since_drill", max(ages, default=None), "days", basis, never)


def _cost_parts(uses: Sequence[ProjectUse]) -> list[CostPart]:
    costs = {"training": 0.0, "failed trials": 0.0, "idle": 0.0}
    priced = [(use, run) for use in uses for run in use.runs if run.costs.price_per_hour is not None]
    for use, run in priced:
        steps = (run.costs.price_per_hour or 0.0) * run.found.seconds["step"] / 3600
        costs["training" if run.name in use.in_service else "failed trials"] += steps
        costs["idle"] += (cost_of(run) or 0.0) - steps
    names: tuple[Literal["training", "failed trials", "idle"], ...] = ("training", "failed trials", "idle")
    return [CostPart(name, costs[name]) for name in names] if priced else []


def _unit_costs(uses: Sequence[ProjectUse], kpis: Mapping[str, Kpi]) -> list[Kpi]:
    """All money of the period, also for failed trials and idle time, by what came of it."""
    runs = [run for use in uses for run in use.runs]
    data_h = sum(use.data_s for use in uses) / 3600
    data = (f"data: stations took {data_h:.3g} h, which have no price",) if data_h else ()
    unpriced = (*kpis["money"].missing, *data)
    money, promotions = kpis["money"].value, kpis["promotions"].value
    each = money / promotions if money is not None and promotions else None
    none = () if promotions else ("no version was promoted in the period",)
    basis = "money by promotions: it holds failed trials and idle time"
    found = [Kpi("cost_per_promotion", each, "currency", basis, (*none, *unpriced, *kpis["promotions"].missing))]
    for unit, of in (("tokens", True), ("rows", False)):
        own = [run for run in runs if run.writes_text == of]
        recorded = [run.served for run in own if run.served is not None]
        count = sum(one.tokens if of else one.rows for one in recorded)
        found.append(_served(f"{unit}_served", count if recorded else None, unit, recorded))
        spent = _money(own)
        each = spent.value / count * 1e6 if spent.value is not None and count else None
        basis = f"money of the runs whose models serve {unit}, by the {unit} served: training is spread over them"
        lacking = (*found[-1].missing, *data, *spent.missing)
        found.append(Kpi(f"cost_per_million_{unit}", each, "currency", basis, lacking))
    return found


def _served(name: str, count: int | None, unit: str, recorded: Sequence[Served]) -> Kpi:
    missing: tuple[str, ...] = ("answers of servers without serve.log_requests, of model versions, and of aifx score",)
    if lost := sum(one.uncounted for one in recorded):
        missing = (*missing, f"{counted(lost, 'answer')} whose records were erased or lost")
    return Kpi(name, count, unit, "records of servers in runs/NAME/records", missing)
