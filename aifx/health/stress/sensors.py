"""Sample temperature and clocks during a load: `python -m aifx.health.stress.sensors` prints a line of JSON per second.

This is its own process: a driver that hangs under load must not prevent the load from being ended.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import psutil

from aifx.core.facts import Absent
from aifx.core.processes import connect
from aifx.machine.nvml import FAULT_REASONS, Calls, open_gpus, read_clocks

PERIOD_S = 1.0


def summary(samples: Iterable[tuple[float, Mapping[str, Any]]], since: float, until: float) -> list[dict[str, Any]]:
    """Return the samples of each device between two times (`time.monotonic`)."""
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for at, sample in samples:
        if since <= at <= until:
            for name, values in sample.items():
                seen.setdefault(name, []).append(values)
    return [_row(name, values) for name, values in seen.items()]


def _row(name: str, values: list[Mapping[str, Any]]) -> dict[str, Any]:
    reasons = [one["reasons"] for one in values if one["reasons"] is not None]
    throttled = sum(map(bool, reasons)) / len(values)
    return {
        "device": name,
        "samples": len(values),
        "temperature_max_c": _over(max, values, "temperature_c"),
        "clock_max_mhz": _over(max, values, "clock_mhz"),
        "clock_min_mhz": _over(min, values, "clock_mhz"),
        "power_max_w": _over(max, values, "power_w"),
        "throttled": throttled if reasons else Absent(f"{name} reports no reasons for its clock"),
        "reasons": list(dict.fromkeys(itertools.chain(*reasons))),
    }


def _over(pick: Callable[[list[float]], float], values: Iterable[Mapping[str, Any]], key: str) -> float | Absent:
    numbers = [one[key] for one in values if one[key] is not None]
    return pick(numbers) if numbers else Absent(f"there is no {key}")


def read_gpu(ask: Calls) -> dict[str, Any]:
    values = read_clocks(ask)
    if values["reasons"] is not None:
        values["reasons"] = [reason.replace("_", " ") for reason in values["reasons"] if reason in FAULT_REASONS]
    return values


def read_cpu() -> dict[str, Any]:
    frequency = psutil.cpu_freq()
    sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    heat = [t.current for name in ("coretemp", "k10temp", "zenpower") for t in sensors.get(name, ())]
    clock_mhz = frequency.current if frequency and frequency.current else None
    return {"temperature_c": max(heat, default=None), "clock_mhz": clock_mhz, "power_w": None, "reasons": None}


def main() -> None:
    emit = connect()
    gpus = open_gpus()
    while True:
        emit({"cpu": read_cpu(), **{name: read_gpu(ask) for name, ask in gpus.items()}})
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    main()
