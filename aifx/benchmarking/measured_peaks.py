"""Ceilings of this machine (`aifx.machine.measured_peaks`), from a report of `aifx bench hardware`."""

from __future__ import annotations

from aifx.benchmarking.results import Report
from aifx.benchmarking.views import best_products, beyond_caches, largest_rate, of_name, rate_of
from aifx.core.errors import ExitCode
from aifx.machine.measured_peaks import find_ceilings, keep_ceilings

BELOW = 0.85
"""Share of an earlier ceiling below which results are noted. NVIDIA DCGM uses 0.75, microsoft/superbenchmark 0.95."""


def rates_of(report: Report) -> dict[str, float]:
    """The ceilings that a report gives, by their names.

    Products and collectives count at their best size. Memory (the triad, as in `aifx doctor --stress`) and copies count
    at their largest, since smaller ones lie in caches.
    """
    found: dict[str, float | None] = {f"matmul.{dtype}": flops for dtype, flops in best_products(report).items()}
    for result in of_name(report, "hardware.collective"):
        name = f"{result.params.get('kind')}.{report.fingerprint.hardware['num_devices']}"
        found[name] = max(found.get(name) or 0.0, rate_of(result) or 0.0)
    found["memory"] = largest_rate(r for r in beyond_caches(report) if r.params.get("op") == "triad")
    for direction in ("to_device", "to_host"):
        copies = [r for r in of_name(report, "hardware.copy") if r.params.get("direction") == direction]
        found[f"copy.{direction}"] = largest_rate(copies)
    return {name: rate for name, rate in found.items() if rate}


def keep(report: Report) -> Report:
    """Raise the ceilings that the report exceeds, unless its device gives wrong results. Returns it with notes of what
    is far below an earlier ceiling."""
    rates, hardware = rates_of(report), report.fingerprint.hardware
    if not rates or (report.failure and report.failure.exit_code == ExitCode.VERDICT):
        return report
    kind, platform = str(hardware["device_kind"]), str(hardware["platform"])
    before = find_ceilings(kind, platform)
    notes = [
        f"{name} reached {rate / own:.0%} of this machine's own ceiling: aifx doctor --stress"
        for name, rate in rates.items()
        if (own := before.rate(name)) and rate < BELOW * own
    ]
    try:
        keep_ceilings(kind, platform, rates)
    except OSError as error:  # the results are reported all the same
        notes.append(f"the ceilings could not be kept: {error.strerror or error}")
    return report.model_copy(update={"notes": [*report.notes, *notes]})
