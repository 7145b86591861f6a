"""A bench for people: a line a result, then what is to be known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aifx.bench.units import duration, named, rate
from aifx.commands.terminal import Output

if TYPE_CHECKING:
    from aifx.bench.results import Measured, Report, Result


def show(out: Output, report: Report) -> None:
    """The report on stdout. Nothing with --json."""
    hardware = report.fingerprint.hardware
    if hardware:
        devices = f"{hardware['num_devices']} x {hardware['device_kind']}"
        out.print(f"{hardware['host']}: {devices} ({hardware['cpu']}, {hardware['cores']} cores)")
        out.print("")
    for suite in report.request.suites:
        rows = [row_of(result) for result in report.results if result.name.startswith(f"{suite}.")]
        if rows:
            out.table([suite, "median", "±", "rate", "roofline"], rows, right=["median", "±", "rate", "roofline"])
            out.print("")
    for note in report.notes:
        out.print(f"note: {note}")
    if failure := report.failure:
        out.print(f"not whole: {': '.join(filter(None, (failure.what, failure.why)))}")


def row_of(result: Result) -> tuple[str, ...]:
    rates = []
    if result.flops_per_s:
        rates.append(rate(result.flops_per_s, "FLOP/s"))
    elif result.bytes_per_s:
        rates.append(rate(result.bytes_per_s, "B/s"))
    return (
        named(result.name.partition(".")[2], result.params),
        duration(result.median_s),
        f"{result.noise:.1%}",
        " ".join(rates),
        "" if result.roofline_fraction is None else f"{result.roofline_fraction:.0%}",
    )


def line_of(found: Measured) -> str:
    """What a launch has seen, while it goes on."""
    from statistics import median

    middle = median(found.samples_s)
    return f"{named(found.name, found.params)}: {duration(middle)}, {len(found.samples_s)} samples"
