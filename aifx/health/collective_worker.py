"""One rank of a collective test: `python -m aifx.health.collective_worker --rank 0 --size 8 --coordinator n1:29400`.

Rank 0 prints one line of JSON, `{"ok", "gb_s", "time_s", "median_s", "bytes", "devices", "why"}`. The others print
nothing. `gb_s` is the bus bandwidth as nccl-tests defines it (doc/PERFORMANCE.md): bytes per rank over time, times
2(n-1)/n for an all-reduce and (n-1)/n for an all-to-all. The time is that of the fastest call: other programs slow some
calls, a fault slows every call. A rank ends itself at its limit, also if no process is left to end it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from aifx.core.logs import log_to
from aifx.health.collective_tcp import CollectiveError, Place

FACTORS = {"all_reduce": 2.0, "all_to_all": 1.0}
NO_ANSWER = 124
LATE_S = 2.0


def bus_gb_s(collective: str, num_bytes: int, time_s: float, size: int) -> float:
    """Args:
    num_bytes: each rank's buffer.
    size: the number of ranks, or of devices if these have the buffers.
    """
    return num_bytes / time_s * FACTORS[collective] * (size - 1) / size / 1e9


def main(arguments: Sequence[str] | None = None) -> int:
    asked = _parser().parse_args(arguments)
    rank, size = asked.rank, asked.size
    host, _, port = asked.coordinator.rpartition(":")
    if asked.slurm:
        rank, size, host = _slurm_place()
    host = host.strip("[]")
    place = Place(rank, size, (host, int(port)), asked.word, time.monotonic() + asked.limit, dict(asked.delay))
    timer = _end_at(asked.limit + LATE_S)
    try:
        with log_to(logging.StreamHandler()) if asked.verbose else nullcontext():
            answer = _measured(place, asked)
    except CollectiveError as error:
        answer = {"ok": False, "gb_s": 0.0, "why": str(error)}
    except Exception as error:
        answer = {"ok": False, "gb_s": 0.0, "why": f"rank {rank}: {type(error).__name__}: {error}".splitlines()[0]}
    finally:
        timer.cancel()
    if rank == 0:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    elif not answer["ok"]:
        sys.stderr.write(f"{answer['why']}\n")
    return 0 if answer["ok"] else 1


def _measured(place: Place, asked: argparse.Namespace) -> dict[str, Any]:
    num_devices = place.size
    if asked.over == "jax":
        from aifx.health import collective_jax

        times, right, num_devices = collective_jax.measure(place, asked.collective, asked.bytes, asked.repeats)
    else:
        from aifx.health import collective_tcp

        times, right = collective_tcp.measure(place, asked.collective, asked.bytes, asked.repeats)
    # A call ends when the last rank has its result.
    calls = [max(call) for call in zip(*times, strict=True)]
    time_s = min(calls)
    wrong = [rank for rank, is_right in enumerate(right) if not is_right]
    return {
        "ok": not wrong,
        "gb_s": 0.0 if wrong else bus_gb_s(asked.collective, asked.bytes, time_s, num_devices),
        "time_s": time_s,
        "median_s": statistics.median(calls),
        "bytes": asked.bytes,
        "devices": num_devices,
        "why": f"wrong results on ranks {', '.join(map(str, wrong))}" if wrong else "",
    }


def _slurm_place() -> tuple[int, int, str]:
    """Return the rank, the size and rank 0's host of a task of srun."""
    from aifx.health.fleet.hosts import first_of

    host = first_of(os.environ["SLURM_STEP_NODELIST"])
    return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]), host


def _end_at(limit_s: float) -> threading.Timer:
    """End this process after `limit_s`, wherever it hangs."""

    def end() -> None:
        sys.stderr.write("the time was up\n")
        sys.stderr.flush()
        os._exit(NO_ANSWER)

    timer = threading.Timer(limit_s, end)
    timer.daemon = True
    timer.start()
    return timer


def _delay(text: str) -> tuple[int, float]:
    rank, _, seconds = text.partition("=")
    return int(rank), float(seconds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aifx doctor collective-worker")
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--size", type=int, default=1)
    parser.add_argument("--slurm", action="store_true", help="rank, size and rank 0's host from srun's variables")
    parser.add_argument("--coordinator", required=True, metavar="HOST:PORT")
    parser.add_argument("--word", default="", help="what all ranks of one test are given")
    parser.add_argument("--over", choices=("tcp", "jax"), default="jax")
    parser.add_argument("--collective", choices=tuple(FACTORS), default="all_to_all")
    parser.add_argument("--bytes", type=int, default=64 << 20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--delay", type=_delay, action="append", default=[], metavar="RANK=SECONDS")
    parser.add_argument("--verbose", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
