"""Load the devices: `python -m aifx.health.stress.child LEVEL UNTIL FIRST_STEP DEVICES`.

It prints each step and each result as one line of JSON, so that no result is lost if it hangs or dies. The parent then
starts it again from the next step, without the named devices ("gpu:0,gpu:3"). UNTIL is by `time.monotonic`: the import
of JAX is within the budget.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from aifx.core.facts import to_document
from aifx.core.lifecycle import exit_now
from aifx.core.processes import connect
from aifx.health.jax_probe import HELD
from aifx.health.stress import consistency_check, measures
from aifx.health.stress.record import ALL
from aifx.machine.microbenchmarks import dtypes_of, name_of

MAY_BE_LACKING = ("int8", "float8_e4m3fn")
"""Types that not every device can multiply."""


@dataclass(frozen=True)
class Level:
    slice_s: float  # the duration of each measurement
    consistency: int  # runs of the consistency check
    load_s: float  # the duration of the sustained load


LEVELS = {"quick": Level(0.3, 3, 3.0), "full": Level(3.0, 20, 60.0)}


@dataclass(frozen=True)
class Step:
    """One measurement."""

    key: str  # the name of its result in the facts
    device: str  # a device's name, or ALL
    what: str
    limit_s: float  # the time after which it counts as hanging, with compilation
    suspect_s: float  # the time after which it counts as hanging if the budget ends
    needs_s: float  # its usual time; it does not start if less of the budget is left
    run: Callable[[], Any]


def plan(everything: list[Any], without: set[str], level: Level, left_s: Callable[[], float]) -> Iterator[Step]:
    """Return the steps: the consistency check on cold devices, each device, all together, the sustained load, the check
    again. `without` does not change a step's number: steps of all devices then use the others."""
    devices = [d for d in everything if name_of(d) not in without]
    compiling_s = 60.0 if devices[0].platform == "cpu" else 120.0
    slice_s = level.slice_s

    def counted(limit_s: float) -> dict[str, Any]:
        hashes, exact = consistency_check.run(devices, level.consistency, limit_s)
        return {"hashes": hashes, "exact": exact, "made_by": consistency_check.made_by(devices)}

    limit_s, suspect_s = compiling_s + 10 * slice_s, compiling_s / 4 + 10 * slice_s
    yield Step("consistency cold", ALL, "consistency check, cold", limit_s + 5, suspect_s, 2, lambda: counted(limit_s))
    for device in everything:
        name = name_of(device)
        for dtype in dtypes_of(device):
            run: Callable[[], Any] = partial(measures.matmul, device, dtype, slice_s)
            yield Step("matmul", name, f"products in {dtype}", limit_s, suspect_s, slice_s, run)
        for key, measure in (("memory", measures.memory), ("copies", measures.copies)):
            yield Step(key, name, key, limit_s, suspect_s, slice_s, partial(measure, device, slice_s))
    if len(everything) > 1:
        run = partial(measures.collectives, devices, 2 * slice_s)
        yield Step("collectives", ALL, "collectives", limit_s, suspect_s, 2 * slice_s, run)

    def loaded() -> dict[str, Any]:
        return measures.sustained(devices, min(level.load_s, left_s() - 2))

    load_s = level.load_s
    yield Step("sustained", ALL, "sustained load", limit_s + load_s, suspect_s + load_s, 2, loaded)
    yield Step("consistency hot", ALL, "consistency check, hot", limit_s + 5, suspect_s, 1, lambda: counted(limit_s))


def main() -> None:
    emit = connect()
    level, end, first_step, names = sys.argv[1:]
    without, until = set(names.split(",")), float(end)

    def report(event: str, **fields: Any) -> None:
        emit({"event": event, **to_document(fields)})

    everything = jax.local_devices()
    kinds = [{"device": name_of(d), "kind": d.device_kind, "platform": d.platform} for d in everything]
    report("devices", devices=kinds)
    for number, step in enumerate(plan(everything, without, LEVELS[level], lambda: until - time.monotonic())):
        if number < int(first_step) or step.device in without:
            continue
        fields = {"step": number, "key": step.key, "device": step.device, "what": step.what}
        if until - time.monotonic() < step.needs_s:
            report("left out", **fields)
            continue
        report("begin", **fields, limit_s=step.limit_s, suspect_s=step.suspect_s)
        try:
            report("result", **fields, value=step.run())
        except TimeoutError as error:
            report("hung", **{**fields, "device": str(error)})
        except Exception as error:
            why = f"{type(error).__name__}: {error}"[:400]
            event = "crowded" if HELD.search(why) else "failed"
            report("unsupported" if step.what.endswith(MAY_BE_LACKING) else event, **fields, why=why)
    report("end")
    exit_now(0)


if __name__ == "__main__":
    main()
