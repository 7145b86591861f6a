"""A bench's report, and the history of a name, as a page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from aifx.bench import units
from aifx.bench.results import Report, Result
from aifx.bench.strips import strip
from aifx.pages import date, render


def report_page(report: Report) -> str:
    """All of it: pictures of what there is, each result, its samples, what it was measured on."""
    print_ = report.fingerprint
    return render(
        "aifx.bench",
        "report.html",
        title=print_.hardware.get("host") or "this machine",
        command=f"aifx bench {' '.join(report.request.suites)}",
        subtitle=_subtitle(report),
        report=report,
        suites=[(suite, [_row(result) for result in results]) for suite, results in _by_suite(report.results)],
        fingerprint={
            "hardware": _words(print_.hardware),
            "clocks": _words(print_.clocks),
            "versions": _words(print_.versions),
            "flags": _words(print_.flags),
            "git": _words(print_.git or {}),
        },
        pictures=[],
    )


def _subtitle(report: Report) -> list[str]:
    hardware = report.fingerprint.hardware
    devices = f"{hardware['num_devices']} x {hardware['device_kind']}" if "num_devices" in hardware else ""
    cpu = f"{hardware['cpu']}, {hardware['cores']} cores" if "cpu" in hardware else ""
    commit = report.fingerprint.commit
    many = "1 launch" if report.launches == 1 else f"{report.launches} launches"
    quick = "quick, " if report.request.quick else ""
    measured = f"{date(report.time)}; {quick}{many}, {units.duration(report.duration_s)}"
    return [line for line in (devices, cpu, measured, f"commit {commit}" if commit else "") if line]


def _by_suite(results: Iterable[Result]) -> list[tuple[str, list[Result]]]:
    """In the order in which they were measured."""
    suites: dict[str, list[Result]] = {}
    for result in results:
        suites.setdefault(result.name.partition(".")[0], []).append(result)
    return list(suites.items())


def _row(result: Result) -> dict[str, Any]:
    """What a line of the table says; empty where it has nothing to say."""
    low, high = result.interval_s
    rates = []
    if result.flops_per_s:
        rates.append(units.rate(result.flops_per_s, "FLOP/s"))
    if result.bytes_per_s:
        rates.append(units.rate(result.bytes_per_s, "B/s"))
    return {
        "name": result.name.partition(".")[2],
        "params": _words(result.params),
        "median": units.duration(result.median_s),
        "interval": f"{units.duration(low)} to {units.duration(high)}",
        "noise": units.share(result.noise),
        "rates": rates,
        "roofline": None if result.roofline_fraction is None else units.share(result.roofline_fraction),
        "fraction": result.roofline_fraction,
        "figures": {name: units.figure(name, value) for name, value in result.figures.items() if value is not None},
        "strip": strip(result),
    }


def _words(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in values.items() if value not in (None, "")}
