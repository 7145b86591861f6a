"""Temperature and clocks while a load runs: `python -m aifx.health.stress.sensors` prints a line of JSON a second.

A process of its own, since a driver that hangs under load must not keep the load from being ended.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aifx.core.processes import connect
from aifx.health.facts import Absent

PERIOD_S = 1.0
HARDWARE_REASONS = {0x8: "hardware slowdown", 0x20: "software thermal", 0x40: "hardware thermal", 0x80: "power brake"}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h); idle, application clocks and power cap are no faults."""


def summary(samples: Iterable[tuple[float, Mapping[str, Any]]], since: float, until: float) -> list[dict[str, Any]]:
    """Of each sensor's device, what was seen between two times (`time.monotonic`)."""
    seen: dict[str, list[Mapping[str, Any]]] = {}
    for at, sample in samples:
        if since <= at <= until:
            for name, told in sample.items():
                seen.setdefault(name, []).append(told)
    rows = []
    for name, told in seen.items():
        reasons = [reason for one in told for reason in one.get("reasons") or ()]
        throttled = sum(bool(one.get("reasons")) for one in told)
        silent = all(one.get("reasons") is None for one in told)
        rows.append(
            {
                "device": name,
                "samples": len(told),
                "temperature_max_c": _over(max, told, "temperature_c"),
                "clock_max_mhz": _over(max, told, "clock_mhz"),
                "clock_min_mhz": _over(min, told, "clock_mhz"),
                "power_max_w": _over(max, told, "power_w"),
                "throttled": Absent(f"{name} tells no reasons of its clock") if silent else throttled / len(told),
                "reasons": list(dict.fromkeys(reasons)),
            }
        )
    return rows


def _over(pick: Callable[[list[float]], float], told: Iterable[Mapping[str, Any]], key: str) -> float | Absent:
    numbers = [one[key] for one in told if one.get(key) is not None]
    return pick(numbers) if numbers else Absent(f"no {key} is told")


def read_gpus(nvml: Any) -> dict[str, Any]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    return {f"GPU {index}": _read_gpu(nvml, handle) for index, handle in enumerate(handles)}


def _read_gpu(nvml: Any, handle: Any) -> dict[str, Any]:
    def asked(question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(handle, *arguments)
        except nvml.NVMLError:
            return None

    reasons = asked(nvml.nvmlDeviceGetCurrentClocksEventReasons)
    power = asked(nvml.nvmlDeviceGetPowerUsage)
    words = None if reasons is None else [word for bit, word in HARDWARE_REASONS.items() if int(reasons) & bit]
    return {
        "temperature_c": asked(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        "clock_mhz": asked(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
        "power_w": None if power is None else power / 1000,
        "reasons": words,
    }


def read_cpu() -> dict[str, Any]:
    import psutil

    frequency = psutil.cpu_freq()
    sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    heat = [t.current for name in ("coretemp", "k10temp", "zenpower") for t in sensors.get(name, ())]
    return {
        "cpu": {
            "temperature_c": max(heat, default=None),
            "clock_mhz": frequency.current if frequency and frequency.current else None,
            "power_w": None,
            "reasons": None,
        }
    }


def main() -> None:
    emit = connect()
    nvml: Any = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
        has_gpus = True
    except nvml.NVMLError:
        has_gpus = False
    while True:
        emit(read_cpu() | (read_gpus(nvml) if has_gpus else {}))
        time.sleep(PERIOD_S)


if __name__ == "__main__":
    main()
