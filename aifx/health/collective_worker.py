"""One rank of a collective test: `python -m aifx.health.collective_worker REQUEST`, with a `RankRequest` in JSON.

Rank 0 prints one line of JSON, `{"ok", "gb_s", "time_s", "median_s", "bytes", "devices", "why"}`. The others print
nothing. `gb_s` is the bus bandwidth of an all-to-all as nccl-tests defines it (doc/PERFORMANCE.md): bytes per rank over
time, times (n-1)/n. The time is that of the fastest call: other programs slow some calls, a fault slows every call. A
rank ends itself at its limit, also if no process is left to end it.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
from dataclasses import replace
from typing import Any

from aifx.core.lifecycle import exit_after
from aifx.health import collective_tcp
from aifx.health.collective_tcp import CollectiveError, RankRequest
from aifx.parallel.processes import first_host

NO_ANSWER = 124
LATE_S = 2.0


def bus_gb_s(num_bytes: int, time_s: float, size: int) -> float:
    """Return the bus bandwidth of `size` ranks, or devices, with buffers of `num_bytes`."""
    return num_bytes / time_s * (size - 1) / size / 1e9


def main(text: str) -> int:
    try:
        request = RankRequest(**json.loads(text))
    except (TypeError, ValueError) as error:
        sys.stderr.write(f"not a request of this version of aifx: {error}\n")
        return 2
    if not request.host:
        request = _slurm_place(request)
    try:
        with exit_after(request.limit_s + LATE_S, NO_ANSWER, "the time was up"):
            answer = _measured(request)
    except Exception as error:
        whose = "" if isinstance(error, CollectiveError) else f"rank {request.rank}: {type(error).__name__}: "
        answer = {"ok": False, "gb_s": 0.0, "why": f"{whose}{error}".splitlines()[0]}
    if request.rank == 0:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    elif not answer["ok"]:
        sys.stderr.write(f"{answer['why']}\n")
    return 0 if answer["ok"] else 1


def _slurm_place(request: RankRequest) -> RankRequest:
    """Return the request with the rank, the size and rank 0's host of a task of srun."""
    rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    return replace(request, rank=rank, size=size, host=first_host(os.environ["SLURM_STEP_NODELIST"]))


def _measured(request: RankRequest) -> dict[str, Any]:
    num_devices = request.size
    if request.over == "jax":
        from aifx.health import collective_jax

        times, right, num_devices = collective_jax.measure(request)
    else:
        times, right = asyncio.run(collective_tcp.measure(request))
    # A call ends when the last rank has its result.
    calls = [max(call) for call in zip(*times, strict=True)]
    time_s = min(calls)
    wrong = [rank for rank, is_right in enumerate(right) if not is_right]
    return {
        "ok": not wrong,
        "gb_s": 0.0 if wrong else bus_gb_s(request.num_bytes, time_s, num_devices),
        "time_s": time_s,
        "median_s": statistics.median(calls),
        "bytes": request.num_bytes,
        "devices": num_devices,
        "why": f"wrong results on ranks {', '.join(map(str, wrong))}" if wrong else "",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
