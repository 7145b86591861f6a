"""The NVIDIA driver and the GPUs that it has, through NVML."""

from __future__ import annotations

from typing import Any

from aifx.core.facts import Absent, Facts, Unknown
from aifx.machine.nvml.calls import Calls, pynvml
from aifx.machine.nvml.words import LIBRARY_STATES, failed, reasons

WHY = {
    "no_library": "there is no libnvidia-ml.so.1 here: the driver's user part is not installed, or not given to this "
    "container (`--gpus all`)",
    "not_loaded": "the NVIDIA kernel module is not loaded",
    "library_mismatch": "NVML is of another version than the loaded kernel module",
}
TEMPERATURE_GPU, CLOCK_SM = 0, 1


def open_driver() -> Facts:
    """Start NVML and read the driver's facts: `state`, `driver`, `nvml`, `cuda` and the `count` of GPUs.

    If `state` is not "ok", the other values say why.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        code = int(getattr(error, "value", -1))
        state: Any = LIBRARY_STATES.get(code) or failed("nvmlInit", code, str(error))
        why = state if isinstance(state, Unknown) else Absent(WHY[state])
        return {"state": state, **dict.fromkeys(("driver", "nvml", "cuda", "count"), why)}
    ask = Calls()
    return {
        "state": "ok",
        "driver": ask("SystemGetDriverVersion"),
        "nvml": ask("SystemGetNVMLVersion"),
        "cuda": ask("SystemGetCudaDriverVersion", then=_cuda),
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


def _cuda(version: int) -> str:
    """12080 is 12.8."""
    return f"{version // 1000}.{version % 1000 // 10}"
