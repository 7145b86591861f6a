"""Everything that NVML says of the NVIDIA driver and GPUs, as one JSON document on stdout.

A program of its own (`python -m aifx.machine.nvml`), for a driver in trouble can hang or crash the library. A value
that the GPU or driver does not report is `{"$absent": why}`. One that could not be read is `{"$unknown": why,
"$remedy": what to do}`. A GPU that is lost or hangs keeps no other from being read.
"""

from __future__ import annotations

import sys
import threading
import time

from aifx.core.facts import Absent, Facts, Unknown, to_document
from aifx.core.lifecycle import exit_now
from aifx.core.processes import connect
from aifx.machine.nvml import open_driver
from aifx.machine.nvml.calls import Calls
from aifx.machine.nvml.gpu import read_gpu, unreadable

GPUS_LIMIT_S = 5.0


def read(limit_s: float = GPUS_LIMIT_S) -> Facts:
    """The driver's facts and a table for each GPU, of which one that takes longer than the limit is given up."""
    facts = open_driver()
    if not isinstance(facts["count"], int):
        return {**facts, "gpus": facts["count"]}
    found: dict[int, Facts] = {}
    ends = time.monotonic() + limit_s
    # All at once: NVML takes calls from several threads.
    threads = [threading.Thread(target=_gpu, args=(index, found), daemon=True) for index in range(facts["count"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(ends - time.monotonic(), 0))
    hangs = Unknown(f"NVML gave no answer for this GPU in {limit_s:g} s", "look for Xid lines and processes in state D")
    gpus = [found.get(index) or unreadable(index, hangs, "ok") for index in range(len(threads))]
    return {**facts, "gpus": gpus}


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
    exit_now(0)


if __name__ == "__main__":
    main()
