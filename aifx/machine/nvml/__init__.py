"""NVIDIA's management library (NVML): what the driver and each GPU report. `python -m aifx.machine.nvml` prints all."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

from aifx.core.facts import Absent, Facts, Unknown

pynvml: Any = importlib.import_module("pynvml")

Field: TypeAlias = int | tuple[int, int]
"""The number of an NVML field, with its scope (a link) where it has one."""

UPDATE = "pip install -U nvidia-ml-py"
VALUE_NAMES = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

GPU_STATES = {15: "lost", 16: "reset_required"}
"""Errors of the GPU itself, not of the query."""

NOT_THERE = {
    2: "this driver does not know the query",
    3: "this GPU or driver does not report it",
    6: "there is none",
    13: "this driver's NVML has no such function",
    21: "there are no data",
    22: "a virtual GPU does not report it",
    25: "this driver's NVML has another version of the function",
    26: "this driver no longer reports it",
}
"""Errors for a part that is absent, not one that failed."""

NO_PERMISSION = 4


class Calls:
    """NVML's functions for one GPU, or without a handle for the driver."""

    def __init__(self, handle: Any = None) -> None:
        self.handle = handle
        self.state = "ok"  # or the GPU's state by an error of NVML ("lost")

    def __call__(self, name: str, *arguments: Any, then: Callable[[Any], Any] | None = None) -> Any:
        """The result of a function of nvidia-ml-py, passed through `then`, or `Absent` or `Unknown`."""
        function = getattr(pynvml, f"nvml{name}", None)
        if function is None:
            return older(f"nvml{name}")
        given = arguments if self.handle is None else (self.handle, *arguments)
        try:
            value = function(*given)
            value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            return value if then is None else then(value)
        except pynvml.NVMLError as error:
            return self._failure(f"nvml{name}", error.value, str(error))
        except Exception as error:  # one release of nvidia-ml-py takes or gives other things than another
            return Unknown(f"nvml{name}: {type(error).__name__}: {error}", f"`{UPDATE}`")

    def struct(self, name: str, *kinds: str) -> Any:
        """The structure that a function fills in: the first of `kinds` of nvidia-ml-py that the driver takes."""
        answer: Any = older(kinds[0])
        for kind in (getattr(pynvml, k) for k in kinds if hasattr(pynvml, k)):
            filled = kind()
            answer = self(name, ctypes.byref(filled))
            if not isinstance(answer, (Absent, Unknown)):
                return filled
        return answer

    def fields(self, *fields: Field) -> list[Any]:
        """Values by field number, in one call, or where that gives none (NVIDIA/DCGM#265) each in one of its own."""
        values = self("DeviceGetFieldValues", [f if isinstance(f, tuple) else (f, 0) for f in fields])
        if isinstance(values, (Absent, Unknown)):
            answers: list[Any] = [values] * len(fields)
        else:
            answers = [self._field(field, value) for field, value in zip(fields, values, strict=True)]
        if self.state == "ok" and len(fields) > 1 and all(isinstance(value, (Absent, Unknown)) for value in answers):
            return [self.fields(field)[0] for field in fields]
        return answers

    def _field(self, field: Field, value: Any) -> Any:
        what = f"NVML field {field[0] if isinstance(field, tuple) else field}"
        if value.nvmlReturn:
            return self._failure(what, value.nvmlReturn, str(pynvml.NVMLError(value.nvmlReturn)))
        if value.valueType >= len(VALUE_NAMES):
            return Unknown(f"{what} is of type {value.valueType}, which this version does not know")
        return getattr(value.value, VALUE_NAMES[value.valueType])

    def _failure(self, what: str, code: int, text: str) -> Absent | Unknown:
        self.state = GPU_STATES.get(code, self.state)
        if code in NOT_THERE:
            return Absent(f"{what}: {NOT_THERE[code]}")
        if code in GPU_STATES:
            # One finding reports that; its values are no findings of their own.
            return Absent(f"the GPU is {GPU_STATES[code].replace('_', ' ')}")
        if code == NO_PERMISSION:
            return Unknown(f"{what}: {text}", "run aifx doctor as root")
        return failed(what, code, text)


def older(name: str) -> Absent:
    """The answer for a name that the installed nvidia-ml-py does not have yet."""
    return Absent(f"the installed nvidia-ml-py has no {name}: `{UPDATE}`")


def also(value: Any, function: Callable[[Any], Any]) -> Any:
    """The function of a value that is there."""
    return value if isinstance(value, (Absent, Unknown)) else function(value)


def word(table: dict[int, str], value: Any) -> str:
    """NVML's enumerations and error codes as words. A number without a word stays a number, which no rule knows, so it
    is never healthy."""
    return table.get(int(value), str(int(value)))


def failed(what: str, code: int, text: str) -> Unknown:
    """An error that no healthy machine has."""
    why = f"{what}: {text} (NVML error {code})"
    return Unknown(why, "look for NVRM in the kernel log; `nvidia-bug-report.sh` collects what NVIDIA asks for")


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
"""Reasons that hold the clock down, by bit."""

FAULT_REASONS = ("hardware_slowdown", "software_thermal", "hardware_thermal", "power_brake")
"""Reasons that are a fault; idle, application clocks and the power cap are none."""

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
