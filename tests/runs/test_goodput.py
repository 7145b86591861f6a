"""Where the time of a run went, from planted lines of events.jsonl."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aifx.runs.goodput import CATEGORIES, Goodput, read_goodput, read_goodput_between

START = 1_700_000_000.0


class Log:
    """Lines as processes write them, with a wall clock that may be set and a monotonic one."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.wall = START
        self._elapsed = 0.0
        self._step: int | None = None

    def start(self, step: int = 0, *, imports_s: float = 2.0, event: str = "start") -> None:
        """A process that began `imports_s` ago writes its first line."""
        self.wall += imports_s
        self._elapsed, self._step = imports_s, None
        self._write(event, {"setup": imports_s}, step=step)
        self._step = step

    def line(self, event: str = "progress", *, to: int | None = None, seconds: dict[str, float], **fields: Any) -> None:
        passed = sum(seconds.values())
        self.wall += passed
        self._elapsed += passed
        self._write(event, seconds, to=to, **fields)

    def _write(self, event: str, seconds: dict[str, float], *, to: int | None = None, **fields: Any) -> None:
        account: dict[str, Any] = {"elapsed_s": self._elapsed, "seconds": seconds}
        if self._step is not None:
            account["steps"] = [self._step, self._step if to is None else to]
            self._step = account["steps"][1]
        self.events.append({"time": self.wall, "event": event, **fields, "account": account})


def seconds_of(found: Goodput) -> dict[str, float]:
    return {name: round(value, 6) for name, value in found.seconds.items() if value > 1e-9}


def test_a_run_that_nothing_disturbs() -> None:
    log = Log()
    log.start(imports_s=3.0)
    log.line("compile", seconds={"setup": 1.0})
    log.line("compiled", seconds={"compilation": 5.0})
    log.line(to=100, seconds={"step": 10.0, "data_wait": 2.0})
    log.line("checkpoint", to=150, seconds={"step": 5.0, "checkpoint": 0.5}, step=150)
    log.line("stop", to=200, seconds={"step": 5.0, "evaluation": 1.5}, status="completed")
    found = read_goodput(log.events)
    assert seconds_of(found) == {
        "setup": 4.0,
        "compilation": 5.0,
        "data_wait": 2.0,
        "step": 20.0,
        "checkpoint": 0.5,
        "evaluation": 1.5,
    }
    assert found.elapsed_s == pytest.approx(log.wall - START)
    assert found.share == pytest.approx(20 / 33)
    assert (found.num_starts, found.num_failures, found.num_steps, found.num_checkpoints) == (1, 0, 200, 1)
    assert found.step_s == pytest.approx(0.1)


@pytest.mark.parametrize(("hosts", "processes"), [(["a", "b"], 2), (["a"], 1), (None, 1)])
def test_starts_are_no_processes(hosts: list[str] | None, processes: int) -> None:
    log = Log()
    log.start()
    log.events[-1] |= {} if hosts is None else {"hosts": hosts}
    log.line("stop", to=10, seconds={"step": 1.0}, status="preempted")
    log.start(10, event="resume")
    log.events[-1] |= {} if hosts is None else {"hosts": hosts}
    log.line("stop", to=20, seconds={"step": 1.0}, status="completed")
    found = read_goodput(log.events)
    assert (found.num_starts, found.num_processes) == (2, processes)


def killed_and_resumed() -> Log:
    """Killed at step 120, 7 s after its last line; resumed from the checkpoint of step 100, 60 s later."""
    log = Log()
    log.start(imports_s=2.0)
    log.line("checkpoint", to=100, seconds={"step": 10.0}, step=100)
    log.line(to=120, seconds={"step": 2.0})
    log.wall += 7.0 + 60.0
    log.start(100, imports_s=3.0, event="resume")
    log.line(to=140, seconds={"step": 4.4})
    return log


def test_steps_after_the_last_checkpoint_are_repeated_once_they_are_done_again() -> None:
    log = killed_and_resumed()
    found = read_goodput(log.events)
    assert seconds_of(found) == {"setup": 5.0, "step": 14.2, "repeated": 2.2, "down": 67.0}
    assert found.elapsed_s == pytest.approx(log.wall - START)
    assert found.running_s == pytest.approx(found.elapsed_s - 67)
    assert found.num_failures == 2  # the second process was killed as well
    assert read_goodput(log.events, alive=True).num_failures == 1


def test_time_of_a_step_that_is_not_done_counts_as_the_step_would() -> None:
    log = killed_and_resumed()
    log.start(100, imports_s=1.0, event="resume")
    before = read_goodput(log.events).seconds["repeated"]
    log.line("checkpoint", seconds={"step": 0.5}, step=100)
    assert read_goodput(log.events).seconds["repeated"] == pytest.approx(before + 0.5)


def test_the_step_in_which_a_process_hung_was_lost() -> None:
    log = Log()
    log.start()
    log.line(to=10, seconds={"step": 1.0})
    log.line("stop", to=20, seconds={"step": 101.0}, status="preempted", why="step 21 hangs")
    log.events[-1]["account"]["unfinished_s"] = 100.0
    assert seconds_of(read_goodput(log.events)) == {"setup": 2.0, "step": 2.0, "repeated": 100.0}
    del log.events[-1]["why"]  # an end in order has no step that is lost
    assert seconds_of(read_goodput(log.events)) == {"setup": 2.0, "step": 102.0}


def test_a_rollback_repeats_steps_within_a_process() -> None:
    log = Log()
    log.start()
    log.line("rollback", to=50, seconds={"step": 5.0})
    log._step = 40
    log.line("stop", to=60, seconds={"step": 2.0}, status="completed")
    assert seconds_of(read_goodput(log.events)) == {"setup": 2.0, "step": 6.0, "repeated": 1.0}


def test_steps_whose_update_was_not_applied_are_skipped_ones() -> None:
    log = Log()
    log.start()
    log.line("skip", to=9, seconds={"step": 0.9}, step=10)  # told before its record
    log.line("skip", to=12, seconds={"step": 0.3}, step=12)
    log.line("stop", to=20, seconds={"step": 0.8}, status="completed")
    assert seconds_of(read_goodput(log.events)) == {"setup": 2.0, "step": 1.8, "skipped": 0.2}


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_within_a_process_changes_nothing(jump_s: float) -> None:
    log = Log()
    log.start()
    log.line(to=10, seconds={"step": 5.0})
    log.wall += jump_s
    log.line("stop", to=20, seconds={"step": 5.0}, status="preempted")
    log.wall += 30.0
    log.start(20, event="resume")
    assert seconds_of(read_goodput(log.events)) == {"setup": 4.0, "step": 10.0, "down": 30.0}


def test_a_clock_that_is_set_back_between_processes_gives_no_negative_time() -> None:
    log = killed_and_resumed()
    log.wall -= 3600.0
    log.start(100, event="resume")
    assert seconds_of(read_goodput(log.events))["down"] == 67.0


def test_lines_that_are_there_twice_count_once() -> None:
    log = killed_and_resumed()
    log.line("checkpoint", to=150, seconds={"checkpoint": 1.0}, step=150)
    log.line("skip", to=151, seconds={"step": 0.1}, step=151)
    once, twice = read_goodput(log.events), read_goodput([event for event in log.events for _ in range(2)])
    assert twice == once


def test_what_no_line_attributes_is_unknown() -> None:
    log = Log()
    log.start(imports_s=2.0)
    log._elapsed += 3.0  # a machine that was suspended
    log.wall += 3.0
    log.line("stop", to=10, seconds={"step": 5.0}, status="completed")
    assert seconds_of(read_goodput(log.events)) == {"setup": 2.0, "step": 5.0, "unknown": 3.0}


def test_a_ledger_without_accounts() -> None:
    events = [
        {"time": START, "event": "start", "step": 0},
        {"time": START + 10, "event": "stop", "status": "interrupted"},
        {"time": START + 15, "event": "resume", "step": 5},
        {"time": START + 18, "event": "stop", "status": "completed"},
    ]
    found = read_goodput(events)
    assert seconds_of(found) == {"unknown": 13.0, "down": 5.0}
    assert (found.num_starts, found.step_s) == (2, None)


@pytest.mark.parametrize(
    ("stop", "failures"),
    [
        (None, 1),
        ({"status": "failed", "error": "x"}, 1),
        ({"status": "preempted", "why": "process 1 is gone"}, 1),
        ({"status": "preempted", "step": 10}, 0),
        ({"status": "interrupted", "why": "stopped at once"}, 0),
        ({"status": "completed", "step": 10}, 0),
    ],
)
def test_which_ends_are_failures(stop: dict[str, Any] | None, failures: int) -> None:
    log = Log()
    log.start()
    log.line(to=10, seconds={"step": 1.0})
    if stop is not None:
        log.line("stop", seconds={}, **stop)
    assert read_goodput(log.events).num_failures == failures


def test_a_process_that_took_no_step_lost_none() -> None:
    log = Log()
    log.start()
    log.line("stop", seconds={"setup": 1.0}, status="failed", error="x")
    assert read_goodput(log.events).num_failures == 0


def test_energy_is_added_up_with_how_it_is_known() -> None:
    log = Log()
    log.start()
    log.line(to=10, seconds={"step": 10.0})
    assert read_goodput(log.events).joules is None
    for basis, joules in (("measured", 500.0), ("measured", 250.0), ("nameplate", 100.0)):
        log.line(to=20, seconds={"step": 5.0})
        log.events[-1]["account"]["energy"] = {"joules": joules, "seconds": 5.0, "basis": basis}
    found = read_goodput(log.events)
    assert (found.joules, found.energy_s, found.energy_bases) == (850.0, 15.0, ["measured", "nameplate"])


activities = st.sampled_from(["setup", "compilation", "data_wait", "step", "checkpoint", "evaluation"])
lines = st.tuples(st.dictionaries(activities, st.floats(0.0, 1e4)), st.integers(0, 50), st.booleans())
lives = st.lists(
    st.tuples(st.lists(lines, max_size=6), st.floats(0.0, 1e5), st.integers(0, 40)), min_size=1, max_size=5
)


@given(lives)
@settings(max_examples=200, deadline=None)
def test_the_parts_add_up_to_the_wall_clock(processes: list[Any]) -> None:
    """For any run: processes that do anything, end anywhere, and start again from any step."""
    log = Log()
    for i, (told, pause_s, resumed_at) in enumerate(processes):
        log.wall += pause_s if i else 0.0
        log.start(resumed_at if i else 0, event="resume" if i else "start")
        for seconds, steps, is_skip in told:
            assert log._step is not None
            step = log._step + steps
            log.line("skip" if is_skip else "progress", to=step, seconds=seconds, **({"step": step} if is_skip else {}))
    found = read_goodput(log.events)
    assert found.elapsed_s == pytest.approx(log.wall - START, rel=1e-6, abs=1e-3)
    assert found.seconds["unknown"] <= 1e-3
    assert all(value >= 0 for value in found.seconds.values())


def test_time_down_and_at_work_fill_no_more_than_the_period() -> None:
    log = Log()
    log.start()
    log.line(to=10, seconds={"step": 10.0})
    log.wall += 86_400.0
    log.start(10, event="resume")
    log.line("stop", to=50, seconds={"step": 40.0}, status="completed")
    last_s = 60.0  # the time down ended in it and began long before
    found = read_goodput_between(log.events, log.wall - last_s, log.wall + 1.0)
    assert found.seconds["step"] == pytest.approx(40.0)
    assert found.elapsed_s <= last_s + 1.0


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
accounts = values | st.fixed_dictionaries(
    {},
    optional={
        "elapsed_s": values,
        "seconds": values | st.dictionaries(activities, values),
        "steps": values | st.lists(st.integers(-5, 2**40) | values, max_size=3),
        "energy": values | st.fixed_dictionaries({"joules": values, "seconds": values, "basis": values}),
    },
)
names = st.sampled_from(["start", "resume", "progress", "skip", "checkpoint", "stop", "rollback"]) | values
nonsense = st.fixed_dictionaries({}, optional={"time": values, "event": names, "step": values, "account": accounts})


@pytest.mark.slow
@given(st.lists(nonsense, max_size=8))
@settings(max_examples=300, deadline=None)
def test_no_line_breaks_the_sum(events: list[dict[str, Any]]) -> None:
    found = read_goodput(events)
    assert set(found.seconds) == set(CATEGORIES)
    assert all(math.isfinite(value) and value >= 0 for value in found.seconds.values())
    assert found.elapsed_s == pytest.approx(sum(found.seconds.values()))
    assert found.joules is None or found.joules >= 0
