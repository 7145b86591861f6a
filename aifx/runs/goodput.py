"""Goodput: the time of a run by what it went to, over all of its processes, from the lines of `events.jsonl` alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, TypeAlias, cast, get_args

from aifx.core.json_values import number
from aifx.machine.energy import EnergyBasis
from aifx.runs.records import Activity
from aifx.runs.status import BEGINNINGS, is_step

Category: TypeAlias = Literal[Activity, "repeated", "skipped", "down", "unknown"]
"""Uses of time. docs/goodput.md explains them beside the categories of ml-goodput-measurement."""

CATEGORIES: tuple[Category, ...] = get_args(Category)

BASES: tuple[EnergyBasis, ...] = get_args(EnergyBasis)

LONGEST_S = 1e10
"""300 years: a time beyond it is none."""

Event: TypeAlias = Mapping[str, Any]


@dataclass
class Goodput:
    """Where the time of a run went, and the energy of its devices.

    Attributes:
        seconds: by category, all of them; they add up to the time since the run first started.
        num_starts: how often the run was started, as one process or as a job of several.
        num_processes: of a start, the most that there were.
        num_failures: of starts, once they had taken a step, that ended without saving: killed, failed, or another
            process was lost.
        num_steps: that were done, the repeated ones included.
        num_checkpoints: that were saved.
        joules: None if nothing is known.
        energy_s: the seconds in which these were counted.
        energy_bases: how they are known.
    """

    seconds: dict[Category, float] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0.0))
    num_starts: int = 0
    num_processes: int = 0
    num_failures: int = 0
    num_steps: int = 0
    num_checkpoints: int = 0
    joules: float | None = None
    energy_s: float = 0.0
    energy_bases: list[EnergyBasis] = field(default_factory=list)

    @property
    def elapsed_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def running_s(self) -> float:
        """The time in which a process ran."""
        return self.elapsed_s - self.seconds["down"]

    @property
    def share(self) -> float | None:
        """Goodput: the share of all time that steps took which count."""
        return self.seconds["step"] / self.elapsed_s if self.elapsed_s > 0 else None

    @property
    def running_share(self) -> float | None:
        """The same share of the time in which a process ran."""
        return self.seconds["step"] / self.running_s if self.running_s > 0 else None

    @property
    def step_s(self) -> float | None:
        """Seconds of a step, data wait left out."""
        steps = sum(self.seconds[name] for name in ("step", "repeated", "skipped"))
        return steps / self.num_steps if self.num_steps and steps > 0 else None


def read_goodput(events: Sequence[Event], *, alive: bool = False) -> Goodput:
    """Attribute all time from the start of the first process to the last line.

    Within a process, the clock is its own monotonic one; between two processes it is the wall clock, and time that
    would be negative, after the clock was set back, is none. Never raises for lines that are nonsense. A line that is
    there twice, as a network file system can leave it, counts once.

    Args:
        alive: the last process still runs.
    """
    found = Goodput()
    reached, ended_at = 0, None
    processes = _processes(list({repr(event): event for event in events}.values()))
    for i, process in enumerate(processes):
        first = next((t for e in process if (t := _moment(e)) is not None), None)
        last = next((t for e in reversed(process) if (t := _moment(e)) is not None), None)
        if first is not None and ended_at is not None:
            began_at = first - _duration(_account(process[0]).get("elapsed_s"))
            found.seconds["down"] += max(began_at - ended_at, 0.0)
        ended_at = last if last is not None else ended_at
        steps_before = found.num_steps
        has_failed = _lost_work(process) and not (alive and i == len(processes) - 1)
        reached = _add_process(found, process, reached, has_failed)
        found.num_starts += 1
        hosts = process[0].get("hosts")
        found.num_processes = max(found.num_processes, len(hosts) if isinstance(hosts, list) else 1)
        found.num_failures += has_failed and found.num_steps > steps_before
    return found


def read_goodput_between(events: Sequence[Event], begin: float | None, end: float, *, alive: bool = False) -> Goodput:
    """The part of `read_goodput` that lines from `begin` until `end` record, as Unix times.

    The time and energy of a line count where the line was written: at most a minute of a run lies on the other side.
    """
    whole = read_goodput(_until(events, end), alive=alive)
    if begin is None:
        return whole
    before = read_goodput(_until(events, begin), alive=True)
    seconds = {name: max(whole.seconds[name] - before.seconds[name], 0.0) for name in CATEGORIES}
    at_work_s = sum(value for name, value in seconds.items() if name != "down")
    seconds["down"] = min(seconds["down"], max(end - begin - at_work_s, 0.0))
    return Goodput(
        seconds,
        whole.num_starts - before.num_starts,
        whole.num_processes,
        max(whole.num_failures - before.num_failures, 0),
        max(whole.num_steps - before.num_steps, 0),
        whole.num_checkpoints - before.num_checkpoints,
        None if whole.joules is None else whole.joules - (before.joules or 0.0),
        max(whole.energy_s - before.energy_s, 0.0),
        whole.energy_bases,
    )


def _until(events: Sequence[Event], end: float) -> Sequence[Event]:
    """The events before the first one that a clock dates `end` or later."""
    late = (i for i, event in enumerate(events) if (time := _moment(event)) is not None and time >= end)
    return events[: next(late, len(events))]


def _processes(events: Sequence[Event]) -> list[Sequence[Event]]:
    """The events of each process of the run; lines before the first start belong to no process."""
    begins = [i for i, event in enumerate(events) if event.get("event") in BEGINNINGS]
    return [events[start:end] for start, end in pairwise([*begins, len(events)])]


def _add_process(found: Goodput, process: Sequence[Event], reached: int, has_failed: bool) -> int:
    """Add what a process did. `reached` is the last step of the processes before it; returns the last one with it."""
    accounted, elapsed, lost_s, skipped = 0.0, 0.0, 0.0, list[int]()
    for event in process:
        if event.get("event") == "skip" and is_step(event.get("step")):
            skipped.append(event["step"])
        found.num_checkpoints += event.get("event") in ("checkpoint", "local_checkpoint")
        account = _account(event)
        elapsed = max(elapsed, _duration(account.get("elapsed_s")))
        given = account.get("seconds")
        seconds = (
            {name: _duration(given.get(name)) for name in get_args(Activity)} if isinstance(given, Mapping) else {}
        )
        accounted += sum(seconds.values())
        took_s = seconds.pop("step", 0.0)
        for name, value in seconds.items():
            found.seconds[cast(Category, name)] += value
        first, last = _steps(account)
        unfinished_s = took_s if first == last else min(_duration(account.get("unfinished_s")), took_s)
        if first < last:
            _add_steps(found, took_s - unfinished_s, first, last, reached, skipped)
            lost_s, reached = 0.0, max(reached, last)
        is_again = last < reached
        found.seconds["repeated" if is_again else "step"] += unfinished_s
        lost_s += 0.0 if is_again else unfinished_s
        _add_energy(found, account.get("energy"))
    if elapsed == 0.0:  # a process of a version without accounts
        moments = [moment for event in process if (moment := _moment(event)) is not None]
        elapsed = max(moments[-1] - moments[0], 0.0) if moments else 0.0
    found.seconds["unknown"] += max(elapsed - accounted, 0.0)
    if has_failed:  # amid a step, which may have hung; the next process begins it again
        lost_s = min(lost_s, found.seconds["step"])
        found.seconds["step"] -= lost_s
        found.seconds["repeated"] += lost_s
    return reached


def _add_steps(found: Goodput, took_s: float, first: int, last: int, reached: int, skipped: list[int]) -> None:
    """Divide `took_s`, of the steps after `first` up to `last`, into steps that count, repeated and skipped ones."""
    count = last - first
    here = [step for step in skipped if first < step <= last]
    skipped[:] = [step for step in skipped if step > last]
    found.num_steps += count
    unapplied = min(len(here), count)
    again = min(max(min(last, reached) - first, 0), count - unapplied)
    parts: dict[Category, int] = {"skipped": unapplied, "repeated": again, "step": count - unapplied - again}
    for name, steps in parts.items():
        found.seconds[name] += took_s * (steps / count)


def _add_energy(found: Goodput, energy: Any) -> None:
    if not isinstance(energy, Mapping) or (joules := number(energy.get("joules"))) is None or joules < 0:
        return
    found.joules = (found.joules or 0.0) + joules
    found.energy_s += _duration(energy.get("seconds"))
    known = (basis for basis in BASES if basis == energy.get("basis") and basis not in found.energy_bases)
    found.energy_bases.extend(known)


def _lost_work(process: Sequence[Event]) -> bool:
    """Whether a process ended without saving what it had done, and not because its user wanted that."""
    stop = next((event for event in reversed(process) if event.get("event") == "stop"), None)
    if stop is None or stop.get("status") == "failed":
        return True
    return stop.get("status") == "preempted" and "why" in stop


def _account(event: Event) -> Mapping[str, Any]:
    account = event.get("account")
    return account if isinstance(account, Mapping) else {}


def _steps(account: Mapping[str, Any]) -> tuple[int, int]:
    match account.get("steps"):
        case [first, last] if is_step(first) and is_step(last) and first <= last:
            return first, last
    return 0, 0


def _moment(event: Event) -> float | None:
    moment = number(event.get("time"))
    return moment if moment is not None and 0 < moment < LONGEST_S else None


def _duration(value: Any) -> float:
    """`value` as seconds, 0 if it is none that time can take."""
    seconds = number(value)
    return seconds if seconds is not None and 0 < seconds < LONGEST_S else 0.0
