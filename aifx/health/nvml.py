"""Everything that NVML says of the NVIDIA driver and GPUs, as one JSON document on stdout.

A program of its own (`python -m aifx.health.nvml`), for a driver in trouble can hang or crash the library. A value
that the GPU or driver does not tell is `{"$absent": why}`, one that failed `{"$unknown": why, "$mend": what to do}`;
a GPU that is lost keeps no other from being read.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from aifx.health.facts import Absent, Facts, Unknown, to_document
from aifx.health.nvml_calls import Calls, pynvml
from aifx.health.nvml_gpu import read_gpu, unreadable
from aifx.health.nvml_words import LIBRARY_STATES, failed

WHY = {
    "no_library": "there is no libnvidia-ml.so.1 here: the driver's user part is not installed, or not given to this "
    "container (`--gpus all`)",
    "not_loaded": "the NVIDIA kernel module is not loaded",
    "library_mismatch": "NVML is of another version than the loaded kernel module",
}


def read() -> Facts:
    """The driver's facts and a table for each GPU."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _without_driver(error)
    ask = Calls()
    count = ask("DeviceGetCount")
    facts: Facts = {
        "state": "ok",
        "driver": ask("SystemGetDriverVersion"),
        "nvml": ask("SystemGetNVMLVersion"),
        "cuda": ask("SystemGetCudaDriverVersion", then=_cuda),
        "count": count,
        "gpus": [_gpu(index) for index in range(count)] if isinstance(count, int) else count,
    }
    pynvml.nvmlShutdown()
    return facts


def _without_driver(error: Exception) -> Facts:
    code = int(getattr(error, "value", -1))
    state: Any = LIBRARY_STATES.get(code) or failed("nvmlInit", code, str(error))
    why = state if isinstance(state, Unknown) else Absent(WHY[state])
    return {"state": state, **dict.fromkeys(("driver", "nvml", "cuda", "count", "gpus"), why)}


def _cuda(version: int) -> str:
    """12080 is 12.8."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _gpu(index: int) -> Facts:
    ask = Calls()
    handle = ask("DeviceGetHandleByIndex", index)
    if isinstance(handle, (Absent, Unknown)):
        return unreadable(index, handle, ask.state)
    return read_gpu(Calls(handle), index)


if __name__ == "__main__":
    json.dump(to_document(read()), sys.stdout)
    sys.stdout.write("\n")
