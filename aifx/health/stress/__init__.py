"""Load every device within a time budget: compare rates with the catalogue, and results with the right ones.

A child process (`aifx.health.stress.child`) loads the devices and reports each result at once. If it hangs or dies, its
results are kept, the device is named, and the test continues without that device.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Sequence
from typing import Any, Literal

from aifx.core.processes import Child, pump
from aifx.health.jax_probe import BESIDE_A_JOB, HELD
from aifx.health.stress.record import ALL, Ended, Record

logger = logging.getLogger(__name__)

START_LIMIT_S = 120.0
"""Time for JAX to list its devices, which is long on large machines."""

GRACE_S = 5.0
MOST_RESTARTS = 8
CHILD = "aifx.health.stress.child"


def budget_of(level: str, num_devices: int) -> float:
    """Return the time limit of a level in seconds: our estimate, with time for compilation."""
    return {"quick": 45.0, "full": 240.0}[level] + {"quick": 15.0, "full": 60.0}[level] * num_devices


def collect(level: Literal["quick", "full"], budget_s: float, child: str = CHILD) -> dict[str, Any]:
    """Return the fact `stress`: the results within `budget_s`, also after Ctrl-C (`ended` is then "interrupted"). The
    module `child` loads the devices."""
    record, began = Record(level), time.monotonic()
    until = began + budget_s
    ended: Ended = "interrupted"
    why, without = "", set[str]()
    with Child.of_module("aifx.health.stress.sensors") as sampler:
        try:
            for _ in range(MOST_RESTARTS):
                arguments = [level, f"{until:.1f}", str(record.next_step), ",".join(sorted(without))]
                ended, why = _run(child, arguments, sampler, record, until)
                stuck = {name for name, row in record.devices.items() if row["state"] == "hung"} - without
                if ended in ("hung", "died") and record.running is not None:
                    where = str(record.running["device"])
                    record.fail(where, "hung" if ended == "hung" else "failed", f"{record.running['what']}: {why}")
                    stuck |= {where} - {ALL}
                without |= stuck
                if not stuck or without >= record.devices.keys() or time.monotonic() > until:
                    break
                record.running = None
        except KeyboardInterrupt:
            ended, why = "interrupted", "by Ctrl-C or SIGTERM"
            running = record.running
            record.left_out.append(f"{running['what']} of {running['device']}, and what follows" if running else "all")
    if ended == "finished" and record.left_out:
        ended, why = "out of time", f"the budget was {budget_s:g} s"
    return record.facts(ended, why, time.monotonic() - began)


def _run(module: str, arguments: Sequence[str], sampler: Child, record: Record, until: float) -> tuple[Ended, str]:
    """Run one child to its end, and record temperatures and clocks meanwhile."""
    began = time.monotonic()
    env, limit_s = {**os.environ, **BESIDE_A_JOB}, until + GRACE_S - began
    with Child.of_module(module, *arguments, env=env, silence_s=START_LIMIT_S + GRACE_S, limit_s=limit_s) as child:
        while child.ended is None:
            pump([child, sampler], math.inf)
            record.samples += [(time.monotonic(), sample) for sample in sampler.take_events()]
            for event in child.take_events():
                record.take(event, time.monotonic())
                child.silence_s = 2 * GRACE_S
                if event["event"] == "begin":
                    began = time.monotonic()
                    child.silence_s = float(event["limit_s"]) + GRACE_S
                    logger.info(event["what"] if event["device"] == ALL else f"{event['device']}: {event['what']}")
                elif event["event"] == "end":
                    return "finished", ""
                elif event["event"] == "hung":
                    return "hung", event["what"]
    ended = child.wait()
    if not ended.cut:
        return "held" if not record.devices and HELD.search(ended.why) else "died", ended.why
    # It was silent until the end of the budget or of a step's limit.
    waited_s, running = time.monotonic() - began, record.running
    why = f"nothing was heard for {waited_s:.0f} s"
    if running is None:
        return ("out of time", why) if record.devices else ("hung", f"JAX gave no devices: {why}")
    if ended.cut == "limit" and waited_s < float(running.get("suspect_s", 0.0)):
        return "out of time", str(running["what"])
    return "hung", why
