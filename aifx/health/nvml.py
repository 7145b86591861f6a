"""Everything that NVML says of the NVIDIA driver and GPUs, as one JSON document on stdout.

A program of its own (`python -m aifx.health.nvml`), for a driver in trouble can hang or crash the library. A value
that the GPU or driver does not report is `{"$absent": why}`. One that could not be read is `{"$unknown": why,
"$remedy": what to do}`. A GPU that is lost or hangs keeps no other from being read.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from aifx.core.processes import connect
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


GPUS_LIMIT_S = 5.0


def read(limit_s: float = GPUS_LIMIT_S) -> Facts:
    """The driver's facts and a table for each GPU, of which one that takes longer than the limit is given up."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _without_driver(error)
    ask = Calls()
    count = ask("DeviceGetCount")
    return {
        "state": "ok",
        "driver": ask("SystemGetDriverVersion"),
        "nvml": ask("SystemGetNVMLVersion"),
        "cuda": ask("SystemGetCudaDriverVersion", then=_cuda),
        "count": count,
        "gpus": _gpus(count, limit_s) if isinstance(count, int) else count,
    }


def _without_driver(error: Exception) -> Facts:
    code = int(getattr(error, "value", -1))
    state: Any = LIBRARY_STATES.get(code) or failed("nvmlInit", code, str(error))
    why = state if isinstance(state, Unknown) else Absent(WHY[state])
    return {"state": state, **dict.fromkeys(("driver", "nvml", "cuda", "count", "gpus"), why)}


def _cuda(version: int) -> str:
    """12080 is 12.8."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _gpus(count: int, limit_s: float) -> list[Facts]:
    """All at once: NVML takes calls from several threads."""
    found: dict[int, Facts] = {}
    ends = time.monotonic() + limit_s
    threads = [threading.Thread(target=_gpu, args=(index, found), daemon=True) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(ends - time.monotonic(), 0))
    hangs = Unknown(f"NVML gave no answer for this GPU in {limit_s:g} s", "look for Xid lines and processes in state D")
    return [found.get(index) or unreadable(index, hangs, "ok") for index in range(count)]


def _gpu(index: int, found: dict[int, Facts]) -> None:
    ask = Calls()
    try:
        handle = ask("DeviceGetHandleByIndex", index)
        failed = isinstance(handle, (Absent, Unknown))
        found[index] = unreadable(index, handle, ask.state) if failed else read_gpu(Calls(handle), index)
    except Exception as error:
        why = Unknown(f"reading the GPU failed: {type(error).__name__}: {error}", "send in what --record writes")
        found[index] = unreadable(index, why, "ok")


def main() -> None:
    emit = connect()
    emit(to_document(read(*map(float, sys.argv[1:2]))))
    # Neither a call that hangs nor NVML's end, which may wait for it, is waited for.
    os._exit(0)


if __name__ == "__main__":
    main()
