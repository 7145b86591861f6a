"""NVIDIA's management library (NVML): what the driver and each GPU report. `python -m aifx.machine.nvml` prints all."""

from __future__ import annotations

from typing import Any

from aifx.core.facts import Absent, Facts, Unknown
from aifx.machine.nvml.calls import Calls, failed, pynvml, word

LIBRARY_STATES = {
    9: ("not_loaded", "the NVIDIA kernel module is not loaded"),
    12: (
        "no_library",
        "there is no libnvidia-ml.so.1 here: the driver's user part is not installed, or not given to this container "
        "(`--gpus all`)",
    ),
    18: ("library_mismatch", "NVML is of another version than the loaded kernel module"),
}
"""State and reason by the error code with which NVML does not start."""

CLOCK_REASONS = {
    0: "idle",
    1: "application_clocks",
    2: "software_power_cap",
    3: "hardware_slowdown",
    4: "sync_boost",
    5: "software_thermal",
    6: "hardware_thermal",
    7: "power_brake",
    8: "display_clocks",
}
"""By bit."""

FAULT_REASONS = ("hardware_slowdown", "software_thermal", "hardware_thermal", "power_brake")
"""Those of a fault; idle, application clocks and the power cap are none."""

TEMPERATURE_GPU, CLOCK_SM = 0, 1


def open_driver() -> Facts:
    """Start NVML and read the driver's facts: `state`, `driver`, `nvml`, `cuda` and the `count` of GPUs. If `state` is
    not "ok", the other values say why."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        code, others = int(getattr(error, "value", -1)), ("driver", "nvml", "cuda", "count")
        if code not in LIBRARY_STATES:
            return dict.fromkeys(("state", *others), failed("nvmlInit", code, str(error)))
        state, why = LIBRARY_STATES[code]
        return {"state": state, **dict.fromkeys(others, Absent(why))}
    ask = Calls()
    return {
        "state": "ok",
        "driver": ask("SystemGetDriverVersion"),
        "nvml": ask("SystemGetNVMLVersion"),
        "cuda": ask("SystemGetCudaDriverVersion", then=lambda version: f"{version // 1000}.{version % 1000 // 10}"),
        "count": ask("DeviceGetCount"),
    }


def open_gpus() -> dict[str, Calls]:
    """The calls of each GPU that NVML opens, by name ("GPU 0"). Empty if there is no driver."""
    count = open_driver()["count"]
    gpus = {}
    for index in range(count if isinstance(count, int) else 0):
        handle = Calls()("DeviceGetHandleByIndex", index)
        if not isinstance(handle, (Absent, Unknown)):
            gpus[f"GPU {index}"] = Calls(handle)
    return gpus


def read_clocks(ask: Calls) -> dict[str, Any]:
    """A GPU's temperature, clock and power now, and the reasons that hold the clock down; None if it reports none."""
    found = {
        "temperature_c": ask("DeviceGetTemperature", TEMPERATURE_GPU),
        "clock_mhz": ask("DeviceGetClockInfo", CLOCK_SM),
        "power_w": ask("DeviceGetPowerUsage", then=lambda milliwatts: milliwatts / 1000),
        "reasons": ask("DeviceGetCurrentClocksEventReasons", then=reasons),
    }
    return {name: None if isinstance(value, (Absent, Unknown)) else value for name, value in found.items()}


def reasons(mask: int) -> list[str]:
    """The clocks' event reasons in a mask."""
    return [word(CLOCK_REASONS, bit) for bit in range(64) if mask >> bit & 1]
