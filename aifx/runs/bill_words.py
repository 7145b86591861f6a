"""A bill in words: the rows of its table, and the lines below. `aifx runs show` and its page print the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from aifx.core.plurals import counted
from aifx.runs.bill import Bill, CheckpointAdvice, EnergyBill
from aifx.runs.goodput import Category

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
        yield from _energy(bill.energy)
    if bill.advice is not None:
        yield from _advice(bill.advice, bill.num_failures)


def _energy(energy: EnergyBill) -> Iterator[str]:
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


def _advice(advice: CheckpointAdvice, num_failures: int) -> Iterator[str]:
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
