"""Where the time of real runs went."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from aifx.runs.goodput import read_goodput
from aifx.runs.time_account import TimeAccount
from aifx.training.timing import DataWait

TICK_S = 0.02
"""The kernel tells when a process started in hundredths of a second."""

SETTINGS = ["data.read_s=0.01", "train.num_steps=160", "train.validate_every=50", "checkpoint.every=40"]


def train(start: Any, tiny: Any, kill_at: int | None) -> tuple[float, float, float]:
    """Train, and kill the process once it has told so many steps.

    Returns when it began, at the earliest and at the latest, and when it ended (wall clock).
    """
    earliest = time.time()
    process = start("train", "--json", *(part for one in SETTINGS for part in ("--set", one)))
    latest = time.time()
    if kill_at is not None:
        metrics = tiny.run().metrics
        deadline = time.monotonic() + 120
        while not metrics.exists() or f'"step": {kill_at},' not in metrics.read_text():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    process.wait(120)
    return earliest, latest, time.time()


def test_all_time_of_a_run_that_is_killed_is_attributed(tiny, start) -> None:
    (earliest, latest, _), *_ = lives = [train(start, tiny, kill_at) for kill_at in (60, 110, None)]
    events = tiny.events()
    found = read_goodput(events)
    least_s, most_s = events[-1]["time"] - latest, events[-1]["time"] - earliest
    assert 0.995 * least_s - TICK_S <= found.elapsed_s <= 1.005 * most_s + TICK_S
    assert found.seconds["unknown"] <= 0.01 * found.elapsed_s
    assert (found.num_processes, found.num_failures) == (3, 2)
    for name in ("step", "data_wait", "setup", "compilation", "checkpoint", "evaluation", "down"):
        assert found.seconds[name] > 0, name
    resumed = [i for i, event in enumerate(events) if event["event"] == "resume"]
    told = [events[i - 1]["account"]["steps"][1] - events[i]["step"] for i in resumed]
    assert (found.seconds["repeated"] > 0) == any(steps > 0 for steps in told)
    gaps = [begin - end for (_, _, end), (begin, _, _) in pairwise(lives)]
    assert found.seconds["down"] >= sum(gaps) - 2 * TICK_S


def test_the_account_of_a_run_that_is_not_disturbed(whole) -> None:
    events = whole.tiny.events()
    found = read_goodput(events)
    assert all("account" in event for event in events)
    assert (found.num_steps, found.num_failures, found.num_checkpoints) == (12, 0, 3)
    assert found.seconds["unknown"] <= 0.01 * found.elapsed_s
    assert found.seconds["down"] == found.seconds["repeated"] == 0
    assert found.elapsed_s >= whole.result.duration_s
    assert len(events[0]["hosts"]) == 1


def test_steps_that_guards_skip_or_take_back_do_not_count(tiny) -> None:
    poison = ["data.poison_steps=[5]", "train.validate_every=0"]
    tiny.train(*poison, run="skipped")
    skipped = read_goodput(tiny.events("skipped"))
    assert skipped.seconds["skipped"] > 0
    assert skipped.seconds["repeated"] == 0
    tiny.train(*poison, "guards.non_finite=roll_back", "guards.max_in_a_row=1", run="back")
    back = read_goodput(tiny.events("back"))
    assert "rollback" in [event["event"] for event in tiny.events("back")]
    assert back.seconds["repeated"] > 0


class Computing:
    """A number of a device that is done when the test says so."""

    def __init__(self) -> None:
        self.done = threading.Event()

    def is_ready(self) -> bool:
        return self.done.is_set()

    def block_until_ready(self) -> None:
        self.done.wait(60)


def waited(computing: Any, in_wait: Callable[[], object]) -> dict[str, float]:
    """The seconds of a wait for a batch in which `in_wait` is called."""
    account = TimeAccount()
    account.take()
    with DataWait(account) as waiting, account.spending("evaluation"), waiting(computing):
        in_wait()
    seconds: dict[str, float] = account.take()["seconds"]
    return {name: value for name, value in seconds.items() if name in ("step", "data_wait")}


def test_a_wait_counts_only_while_the_device_is_idle() -> None:
    assert set(waited(None, lambda: time.sleep(0.01))) == {"data_wait"}
    busy = Computing()
    assert set(waited(busy, lambda: time.sleep(0.01))) == {"step"}
    busy.done.set()
    assert set(waited(busy, lambda: time.sleep(0.01))) == {"data_wait"}


def test_a_device_that_becomes_idle_amid_a_wait() -> None:
    busy = Computing()

    def wait() -> None:
        time.sleep(0.01)
        busy.done.set()
        time.sleep(0.2)

    seconds = waited(busy, wait)
    assert set(seconds) == {"step", "data_wait"}
    assert seconds["step"] >= 0.01
