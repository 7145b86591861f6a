"""Where the time of real runs went."""

from __future__ import annotations

import signal
import time
from itertools import pairwise
from typing import Any

import pytest

from aifx.runs.goodput import read_goodput
from aifx.runs.time_account import TimeAccount
from aifx.training.timing import DataWait

SETTINGS = ["data.read_s=0.01", "train.num_steps=160", "train.validate_every=50", "checkpoint.every=40"]


def train(start: Any, tiny: Any, kill_at: int | None) -> tuple[float, float]:
    """Train, and kill the process once it has told so many steps. Returns when it began and ended (wall clock)."""
    process = start("train", "--json", *(part for one in SETTINGS for part in ("--set", one)))
    began_at = time.time()
    if kill_at is not None:
        metrics = tiny.run().metrics
        deadline = time.monotonic() + 120
        while not metrics.exists() or f'"step": {kill_at},' not in metrics.read_text():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    process.wait(120)
    return began_at, time.time()


def test_all_time_of_a_run_that_is_killed_is_attributed(tiny, start) -> None:
    (began_at, *_), *_ = lives = [train(start, tiny, kill_at) for kill_at in (60, 110, None)]
    events = tiny.events()
    found = read_goodput(events)
    whole_s = events[-1]["time"] - began_at
    assert found.elapsed_s == pytest.approx(whole_s, rel=0.005, abs=0.03)  # the kernel counts starts in 10 ms
    assert found.seconds["unknown"] <= 0.01 * found.elapsed_s
    assert (found.num_processes, found.num_failures) == (3, 2)
    for name in ("step", "data_wait", "setup", "compilation", "checkpoint", "evaluation", "down"):
        assert found.seconds[name] > 0, name
    assert found.seconds["data_wait"] > found.seconds["step"]  # a batch takes longer to read than to learn
    resumed = [i for i, event in enumerate(events) if event["event"] == "resume"]
    told = [events[i - 1]["account"]["steps"][1] - events[i]["step"] for i in resumed]
    assert (found.seconds["repeated"] > 0) == any(steps > 0 for steps in told)
    gaps = [start - end for (_, end), (start, _) in pairwise(lives)]
    assert found.seconds["down"] >= sum(gaps) - 0.03


def test_the_account_of_a_run_that_is_not_disturbed(whole) -> None:
    events = whole.tiny.events()
    found = read_goodput(events)
    assert all("account" in event for event in events)
    assert (found.num_steps, found.num_failures, found.num_checkpoints) == (12, 0, 3)
    assert found.seconds["unknown"] <= 0.01 * found.elapsed_s
    assert found.seconds["down"] == found.seconds["repeated"] == 0
    assert found.elapsed_s >= whole.result.duration_s
    assert len(events[0]["hosts"]) == 1


class Computing:
    """A number of a device that is done after a while."""

    def __init__(self, seconds: float) -> None:
        self._done_at = time.perf_counter() + seconds

    def is_ready(self) -> bool:
        return time.perf_counter() >= self._done_at

    def block_until_ready(self) -> None:
        time.sleep(max(self._done_at - time.perf_counter(), 0))


@pytest.mark.parametrize(("computes_s", "data_wait_s"), [(0.3, 0.0), (0.1, 0.1), (0.0, 0.2)])
def test_a_wait_counts_once_the_device_is_idle(computes_s: float, data_wait_s: float) -> None:
    account = TimeAccount()
    waiting: Any = DataWait(account)
    with waiting(Computing(computes_s)):
        time.sleep(0.2)
    waiting.close()
    seconds = account.take()["seconds"]
    assert seconds.get("data_wait", 0.0) == pytest.approx(data_wait_s, abs=0.05)
    assert seconds.get("step", 0.0) == pytest.approx(0.2 - data_wait_s, abs=0.05)
