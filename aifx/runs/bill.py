"""The bill of a run: its time, energy and cost, and how often it should save, as values and in words.

`aifx runs show` and the page of a run print the same words: the rows of a table, and the lines below.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from pydantic import ValidationError

from aifx.config.sections import CostsSection
from aifx.core.errors import ConfigError
from aifx.core.files import read_file
from aifx.core.json_files import read_jsonl
from aifx.core.json_values import number
from aifx.core.os_errors import first_line
from aifx.core.parsing import parse_toml
from aifx.core.plurals import counted
from aifx.core.project import Project, RunDirectory
from aifx.machine.energy import EnergyBasis
from aifx.runs.goodput import Category, Goodput, read_goodput
from aifx.runs.lock import is_held
from aifx.runs.provenance import read_provenance
from aifx.runs.status import read_settings

DEVICE_MTBF_HOURS = 50_000
"""Hours of a device between failures that end a job, for a run that has seen none.

419 unexpected interruptions in 54 days of 16,384 GPUs: 50,700 hours (Llama 3, arXiv 2407.21783, section 3.3.4).
"""

MtbfSource: TypeAlias = Literal["given", "measured", "assumed"]
"""Where a mean time between failures is from."""

NEAR = 1.5
"""An interval is near the best one within this factor: it then costs at most 8 % more than the least."""

NEGLIGIBLE = 0.001
"""Share of the time that is not worth another interval."""

EVIDENCE_S = 600.0
EVIDENCE_CHECKPOINTS = 3
"""Running time and checkpoints that advice needs: a stall of a run of seconds is no measure of a long run's."""


@dataclass(frozen=True)
class EnergyBill:
    """The energy of a run's devices, and its emissions.

    Attributes:
        joules: of the devices; with `pue`, the data center used that times as much.
        covered: the share of the running time in which energy was counted.
        operational_gco2e: E x I of SCI, with `pue` in E; None without an intensity.
        embodied_gco2e: M of SCI; None without `costs.embodied_gco2e_per_hour`.
        gco2e_per_million: SCI per million of `unit`.
    """

    joules: float
    bases: list[EnergyBasis]
    covered: float
    unit: str | None
    joules_per_unit: float | None
    pue: float | None
    gco2e_per_kwh: float | None
    operational_gco2e: float | None
    embodied_gco2e: float | None
    gco2e_per_million: float | None


@dataclass(frozen=True)
class CheckpointAdvice:
    """The best interval between checkpoints, by Daly's formula.

    Attributes:
        every: the best `checkpoint.every`.
        now: the run's.
        stall_s: that a checkpoint held up training, on average.
        mtbf_s: mean time between failures.
        mtbf_source: "given" by `checkpoint.mtbf_hours`, "measured" on this run, or "assumed".
        loss: the share of time that saving and repeated steps are expected to take with `every`.
        loss_now: the same for `now`; None if that saves only at the end.
    """

    every: int
    now: int | None
    stall_s: float
    mtbf_s: float
    mtbf_source: MtbfSource
    loss: float
    loss_now: float | None

    @property
    def is_near(self) -> bool:
        """Whether the run's interval need not change."""
        if not self.now or self.loss_now is None:
            return False
        return self.every / NEAR <= self.now <= self.every * NEAR or self.loss_now - self.loss <= NEGLIGIBLE


@dataclass(frozen=True)
class Bill:
    """Where the time of a run went, and what that cost.

    Attributes:
        goodput: the share of all time that steps took which count; `running_goodput`, that of the time in which a
            process ran.
        seconds: by category; they add up to `elapsed_s`.
        num_starts: how often the run was started.
        num_processes: of a start, the most that there were.
        num_failures: of starts that ended without saving what they had done.
        cost: by category, at `price_per_hour`. Down time costs nothing here: aifx does not know whether the machines
            were held.
    """

    elapsed_s: float
    running_s: float
    goodput: float | None
    running_goodput: float | None
    seconds: dict[Category, float]
    num_starts: int
    num_processes: int
    num_failures: int
    price_per_hour: float | None
    cost: dict[Category, float] | None
    energy: EnergyBill | None
    advice: CheckpointAdvice | None


def read_bill(run: RunDirectory, project: Project, records: Sequence[Mapping[str, Any]]) -> Bill | None:
    """The bill of a run; None if its ledger holds no time. `records` are the lines of metrics.jsonl."""
    found = read_goodput(read_jsonl(run.events), alive=is_held(run))
    if found.elapsed_s <= 0:
        return None
    costs, settings, last = read_costs(run, project), read_settings(run), records[-1] if records else {}
    price = costs.price_per_hour
    priced = {name: value for name, value in found.seconds.items() if name != "down"}
    return Bill(
        elapsed_s=found.elapsed_s,
        running_s=found.running_s,
        goodput=found.share,
        running_goodput=found.running_share,
        seconds=found.seconds,
        num_starts=found.num_starts,
        num_processes=found.num_processes,
        num_failures=found.num_failures,
        price_per_hour=price,
        cost=None if price is None else {name: price * value / 3600 for name, value in priced.items()},
        energy=energy_bill(found, costs, number(last.get("units")), last.get("unit")),
        advice=_advice(found, settings, read_provenance(run)),
    )


def read_costs(run: RunDirectory, project: Project) -> CostsSection:
    """`[costs]` of the run, or as `aifx.toml` has it now: a price may be set after the run.

    Raises ConfigError. Of `aifx.toml` nothing else is read, since that may import the project's code.
    """
    values = {k.partition(".")[2]: v for k, v in read_settings(run).items() if k.startswith("costs.")}
    try:
        now = parse_toml(read_file(project.config_path).decode()).get("costs", {})
        if not isinstance(now, dict):
            raise ValueError(f"costs = {now!r} is not a table")
        return CostsSection(**values | now)
    except (OSError, ValueError) as error:
        why = first_line(error)
        if isinstance(error, ValidationError):
            why = "; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"[costs] in {project.config_path} cannot be read", why, "aifx config check") from error


def energy_bill(found: Goodput, costs: CostsSection, units: float | None, unit: Any) -> EnergyBill | None:
    """Energy and emissions, by the Software Carbon Intensity specification (ISO/IEC 21031): (E x I + M) per R."""
    if found.joules is None:
        return None
    units = units if units and units > 0 else None
    intensity, embodied = costs.gco2e_per_kwh, costs.embodied_gco2e_per_hour
    operational = None if intensity is None else found.joules / 3.6e6 * (costs.pue or 1.0) * intensity
    embodied = None if embodied is None else embodied * found.running_s / 3600
    return EnergyBill(
        joules=found.joules,
        bases=found.energy_bases,
        covered=min(found.energy_s / found.running_s, 1.0) if found.running_s > 0 else 0.0,
        unit=unit if isinstance(unit, str) else None,
        joules_per_unit=found.joules / units if units else None,
        pue=costs.pue,
        gco2e_per_kwh=intensity,
        operational_gco2e=operational,
        embodied_gco2e=embodied,
        gco2e_per_million=(operational + (embodied or 0.0)) / units * 1e6
        if units and operational is not None
        else None,
    )


def daly_interval_s(stall_s: float, mtbf_s: float) -> float:
    """The time between checkpoints that loses least, for a mean time between failures.

    J. T. Daly 2006, doi:10.1016/j.future.2004.11.016, equation 37. Its first term is that of Young 1974.
    """
    # With an interval T, a run loses stall / T to saving, and to failures T / (2 mtbf), since a failure comes on
    # average in the middle of an interval. The sum is least at T = sqrt(2 stall mtbf), Young's term. Daly's further
    # terms matter if the stall is not short beside the time between failures.
    if stall_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = stall_s / (2 * mtbf_s)
    return math.sqrt(2 * stall_s * mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_s


def _advice(found: Goodput, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> CheckpointAdvice | None:
    stall_s = found.seconds["checkpoint"] / found.num_checkpoints if found.num_checkpoints else 0.0
    if found.running_s < EVIDENCE_S or found.num_checkpoints < EVIDENCE_CHECKPOINTS:
        return None
    if found.step_s is None or stall_s <= 0:
        return None
    step_s = found.step_s + found.seconds["data_wait"] / found.num_steps
    mtbf_s, source = _mtbf_s(found, settings, provenance)
    now, last = settings.get("checkpoint.every"), settings.get("train.num_steps")
    every = _two_digits(daly_interval_s(stall_s, mtbf_s) / step_s)
    every = min(every, last) if isinstance(last, int) and last > 0 else every

    def loss(steps: int) -> float:
        return min(stall_s / (steps * step_s) + steps * step_s / (2 * mtbf_s), 1.0)

    loss_now = loss(now) if isinstance(now, int) and now > 0 else None
    return CheckpointAdvice(every, now, stall_s, mtbf_s, source, loss(every), loss_now)


def _mtbf_s(found: Goodput, settings: Mapping[str, Any], provenance: Mapping[str, Any]) -> tuple[float, MtbfSource]:
    given = number(settings.get("checkpoint.mtbf_hours"))
    if given is not None and given > 0:
        return given * 3600, "given"
    if found.num_failures:
        return found.running_s / found.num_failures, "measured"
    num_devices = number((provenance.get("hardware") or {}).get("num_devices"))
    return DEVICE_MTBF_HOURS * 3600 / max(num_devices or 1, 1), "assumed"


def _two_digits(steps: float) -> int:
    """At least 1, and not more precise than the numbers behind it."""
    if steps < 10:
        return max(round(steps), 1)
    unit: int = 10 ** (math.floor(math.log10(steps)) - 1)
    return round(steps / unit) * unit


LABELS: dict[Category, str] = {
    "step": "steps",
    "setup": "set-up",
    "compilation": "compilation",
    "data_wait": "data wait",
    "checkpoint": "checkpoint stall",
    "evaluation": "evaluation",
    "repeated": "repeated steps",
    "skipped": "skipped steps",
    "down": "down time",
    "unknown": "unknown",
}
LEAST_SHARE = 0.0005  # of a row
WHOLE = 0.95  # of the running time
MTBF = {
    "given": "by checkpoint.mtbf_hours",
    "measured": "as measured on this run",
    "assumed": "assumed: 50,000 h per device (arXiv 2407.21783)",
}


@dataclass(frozen=True)
class Spent:
    """A row of a bill: what the time went to; `cost` is None where there is no price, and for down time."""

    label: str
    time: str
    share: float
    cost: str | None


def headline(bill: Bill) -> str:
    """ "goodput 81.3% of 5 h 02 min, 92.0% while it ran (3 starts, 2 processes)"."""
    jobs = counted(bill.num_processes, "process", "es")
    if bill.num_starts > 1:
        jobs = f"{bill.running_goodput or 0.0:.1%} while it ran ({bill.num_starts} starts, {jobs})"
    return f"goodput {bill.goodput or 0.0:.1%} of {duration(bill.elapsed_s)}, {jobs}"


def spent(bill: Bill) -> list[Spent]:
    """Where the time went, without shares that are too small to show."""
    rows = []
    for name, label in LABELS.items():
        share = bill.seconds[name] / bill.elapsed_s
        if share >= LEAST_SHARE:
            cost = f"{bill.cost[name]:,.2f}" if bill.cost is not None and name in bill.cost else None
            rows.append(Spent(label, duration(bill.seconds[name]), share, cost))
    return rows


def remarks(bill: Bill) -> Iterator[str]:
    """Cost, energy and advice, in lines of 80 characters; what begins with spaces belongs to the line before."""
    if bill.cost is not None and bill.price_per_hour is not None:
        lost = sum(bill.cost.values()) - bill.cost["step"]
        yield f"cost {sum(bill.cost.values()):,.2f} at {bill.price_per_hour:g} per hour, {lost:,.2f} of it lost"
    if bill.energy is not None:
        yield from _energy_lines(bill.energy)
    if bill.advice is not None:
        yield from _advice_lines(bill.advice, bill.num_failures)


def _energy_lines(energy: EnergyBill) -> Iterator[str]:
    each = "" if energy.joules_per_unit is None else f", {energy.joules_per_unit:.3g} J per {_singular(energy.unit)}"
    yield f"energy {energy.joules / 3.6e6:.4g} kWh, {' and '.join(energy.bases)}{each}"
    if energy.covered < WHOLE:
        yield f"  counted in {energy.covered:.0%} of the running time"
    if energy.operational_gco2e is None:
        return
    pue = "" if energy.pue is None else f" with a PUE of {energy.pue:g}"
    embodied = "" if energy.embodied_gco2e is None else f" + {energy.embodied_gco2e:.4g} g embodied"
    rate = "" if energy.gco2e_per_million is None else f", {energy.gco2e_per_million:.3g} g per million {energy.unit}"
    yield f"emissions {energy.operational_gco2e:.4g} gCO2e{embodied}{rate}"
    yield f"  {energy.gco2e_per_kwh:g} g/kWh{pue}, as declared in [costs]"


def _advice_lines(advice: CheckpointAdvice, num_failures: int) -> Iterator[str]:
    failures = "" if advice.mtbf_source != "measured" else f", {num_failures} failure{'s' * (num_failures > 1)}"
    if advice.is_near:
        yield f"advice: every = {advice.now} in [checkpoint] is near the best interval"
    else:
        yield f"advice: in [checkpoint], every = {advice.every}    # now {advice.now or 'only at the end'}"
        yield f"  saving and repeated steps take {_share(advice.loss)}, and {_share(advice.loss_now)} now"
    yield f"  a checkpoint stalls training for {duration(advice.stall_s)}, and a failure comes"
    yield f"  every {duration(advice.mtbf_s)}{failures}, {MTBF[advice.mtbf_source]}"


def _share(loss: float | None) -> str:
    return "all since the start" if loss is None else f"{loss:.2%} of the time"


def _singular(unit: str | None) -> str:
    return (unit or "unit").removesuffix("s")


def duration(seconds: float) -> str:
    """ "0.25 s", "41 s", "3 min 07 s", "5 h 02 min", "12 days"."""
    if seconds < 9.95:
        return f"{seconds:.2g} s" if seconds < 0.995 else f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours < 72 else f"{seconds / 86400:,.0f} days"
