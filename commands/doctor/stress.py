"""Print the results of a stress test for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from aifx.commands.console.output import Output
from aifx.health.scope import is_number


def show_stress(out: Output, stress: Any) -> None:
    """Print a row per measurement, and why the test ended if that was early. Without a stress test, print nothing."""
    if not isinstance(stress, Mapping):
        return
    out.print("")
    out.table(["device", "what", "rate", "of what it should be"], list(_rows(stress)), right=["rate"], wrap=True)
    if stress["ended"] != "finished":
        out.print(f"the stress test ended early: {stress['ended']}{': ' * bool(stress['why'])}{stress['why']}")


def _rows(stress: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str | None]]:
    for device in stress["devices"]:
        name = device["device"]
        for one in _list(device["matmul"]):
            yield name, f"products in {one['dtype']}", _rate(one["tflops"], "TFLOP/s"), _of_peak(one)
        for one in _list(device["memory"]):
            yield name, "memory", _rate(one["gb_s"], "GB/s"), _of_peak(one)
        for one in _list(device["copies"]):
            yield name, f"copies {one['device']}", _rate(one["gb_s"], "GB/s"), _share(one["of_usual"], "what is usual")
        for one in _list(device["sustained"]):
            rate = _rate(one["tflops_last"], "TFLOP/s")
            yield name, f"after {one['seconds']:.0f} s of load", rate, _share(one["kept"], "the first")
    for one in _list(stress["collectives"]):
        yield "all", str(one["device"]), _rate(one["bus_gb_s"], "GB/s"), None
    for one in _list(stress["consistency"]):
        same = "alike" if not one["num_odd"] + one["num_unsteady"] + one["num_inexact"] else "not alike"
        yield one["device"], f"consistency check of {one['programs']} programs", f"{one['runs']} runs", same


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _rate(value: Any, unit: str) -> str:
    return f"{value:.3g} {unit}" if is_number(value) else "?"


def _of_peak(one: Mapping[str, Any]) -> str | None:
    """Return the share of the peak, and of the rate that `aifx bench hardware` measured here."""
    shares = (_share(one["of_peak"], "peak"), _share(one["of_own"], "its own ceiling"))
    return ", ".join(filter(None, shares)) or None


def _share(value: Any, of: str) -> str | None:
    return f"{value:.0%} of {of}" if is_number(value) else None
