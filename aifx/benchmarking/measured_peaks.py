"""From a report of `aifx bench hardware` to the ceilings of this machine (`aifx.machine.measured_peaks`)."""

from __future__ import annotations

from aifx.benchmarking.results import Report, Result
from aifx.benchmarking.views import beyond_caches, bus_rate, of_name, size_of
from aifx.core.errors import ExitCode
from aifx.machine.measured_peaks import find_ceilings, keep_ceilings

BELOW = 0.85
"""Share of an earlier ceiling below which results are noted. NVIDIA DCGM uses 0.75, microsoft/superbenchmark 0.95."""


def rates_of(report: Report) -> dict[str, float]:
    """What the report would have as ceilings, by their names there. Products and collectives: the best size; memory
    (the triad, as `aifx doctor --stress` does it) and copies: the largest, since smaller ones lie in caches."""
    found: dict[str, float] = {}

    def best(kind: str, part: object, rate: float | None) -> None:
        if rate and part:
            name = kind.format(part)
            found[name] = max(found.get(name, 0.0), rate)

    for result in of_name(report, "hardware.matmul"):
        best("matmul.{}", result.params.get("dtype"), result.flops_per_s)
    for result in of_name(report, "hardware.collective"):
        best(f"{{}}.{report.fingerprint.hardware['num_devices']}", result.params.get("kind"), bus_rate(result))
    best("{}", "memory", _largest(beyond_caches(report), op="triad"))
    for direction in ("to_device", "to_host"):
        best("copy.{}", direction, _largest(of_name(report, "hardware.copy"), direction=direction))
    return found


def keep(report: Report) -> Report:
    """Raise the ceilings that the report exceeds; returns it with notes of what is far below an earlier ceiling.

    Keeps none of a device that gives wrong results.
    """
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


def _largest(results: list[Result], **params: str) -> float | None:
    """Bytes a second of the largest that has these params."""
    sized = [(size, r.bytes_per_s) for r in results if params.items() <= r.params.items() and (size := size_of(r))]
    return max(sized)[1] if sized else None
