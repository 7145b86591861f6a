"""The goodput section of `aifx runs show`: where the time went, what it cost, and how often to save."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aifx.commands.console.chart import bar
from aifx.commands.console.output import Output

if TYPE_CHECKING:
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
BAR_WIDTH = 24
LEAST_SHARE = 0.0005  # of a row
WHOLE = 0.95  # of the running time
MTBF = {
    "given": "as checkpoint.mtbf_hours says",
    "measured": "as measured on this run",
    "assumed": "assumed: 50,000 h per device (arXiv 2407.21783)",
}


def print_bill(out: Output, bill: Bill) -> None:
    total, running = bill.goodput or 0.0, bill.running_goodput or 0.0
    out.print("")
    out.print(f"goodput {total:.1%} of {duration(bill.elapsed_s)}{_while_running(bill, running)}")
    ascii_only = not out.out.encoding.lower().startswith("utf")
    rows = []
    for name, label in LABELS.items():
        seconds = bill.seconds[name]
        share = seconds / bill.elapsed_s
        if share < LEAST_SHARE:
            continue
        cost = () if bill.cost is None else (f"{bill.cost[name]:,.2f}" if name in bill.cost else None,)
        rows.append((label, duration(seconds), f"{share:.1%}", *cost, bar(share, BAR_WIDTH, ascii_only=ascii_only)))
    columns = ["where the time went", "time", "share", *([] if bill.cost is None else ["cost"]), ""]
    out.table(columns, rows, right=columns[1:-1])
    if bill.cost is not None and bill.price_per_hour is not None:
        lost = sum(bill.cost.values()) - bill.cost["step"]
        out.print(f"cost {sum(bill.cost.values()):,.2f} at {bill.price_per_hour:g} per hour, {lost:,.2f} of it lost")
    if bill.energy is not None:
        _print_energy(out, bill.energy)
    if bill.advice is not None:
        _print_advice(out, bill.advice, bill.num_failures)


def _while_running(bill: Bill, running: float) -> str:
    processes = "1 process" if bill.num_processes == 1 else f"{bill.num_processes} processes"
    if bill.seconds["down"] <= 0:
        return f", {processes}"
    return f", {running:.1%} while one of its {processes} ran"


def _print_energy(out: Output, energy: EnergyBill) -> None:
    each = "" if energy.joules_per_unit is None else f", {energy.joules_per_unit:.3g} J per {_singular(energy.unit)}"
    out.print(f"energy {energy.joules / 3.6e6:.4g} kWh, {' and '.join(energy.bases)}{each}")
    if energy.covered < WHOLE:
        out.print(f"  counted in {energy.covered:.0%} of the running time")
    if energy.operational_gco2e is None:
        return
    pue = "" if energy.pue is None else f" with a PUE of {energy.pue:g}"
    embodied = "" if energy.embodied_gco2e is None else f" + {energy.embodied_gco2e:.4g} g embodied"
    rate = "" if energy.gco2e_per_million is None else f", {energy.gco2e_per_million:.3g} g per million {energy.unit}"
    out.print(f"emissions {energy.operational_gco2e:.4g} gCO2e{embodied}{rate}")
    out.print(f"  {energy.gco2e_per_kwh:g} g/kWh{pue}, as declared in [costs]")


def _print_advice(out: Output, advice: CheckpointAdvice, num_failures: int) -> None:
    failures = "" if advice.mtbf_source != "measured" else f", {num_failures} failure{'s' * (num_failures > 1)}"
    if advice.is_near:
        out.print(f"advice: every = {advice.now} in [checkpoint] is near the best interval")
    else:
        out.print(f"advice: in [checkpoint], every = {advice.every}    # now {advice.now or 'only at the end'}")
        out.print(f"  saving and repeated steps take {_share(advice.loss)}, and {_share(advice.loss_now)} now")
    out.print(f"  a checkpoint stalls training for {duration(advice.stall_s)}, and a failure comes")
    out.print(f"  every {duration(advice.mtbf_s)}{failures}, {MTBF[advice.mtbf_source]}")


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
