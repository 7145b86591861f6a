"""Where the time of real runs went."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from aifx.runs.goodput import read_goodput
from aifx.runs.records import Activity, Span, TimeAccount
from aifx.training.meter import DataWait

END_S = 300
SETTINGS = ["data.read_s=0.01", "train.num_steps=160", "train.validate_every=50", "checkpoint.every=40"]


def train(start: Any, tiny: Any, kill_at: int | None) -> None:
    """Train, and kill the process once it has told so many steps."""
    held = tiny.root / "held"
    if kill_at is not None:
        held.write_text(str(kill_at + 5))  # so that it is not over before
    process = start("train", "--json", *(part for one in SETTINGS for part in ("--set", one)))
    if kill_at is not None:
        metrics = tiny.run().metrics
        deadline = time.monotonic() + END_S
        while not metrics.exists() or f'"step": {kill_at},' not in metrics.read_text():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    process.wait(END_S)
    held.unlink(missing_ok=True)


@pytest.mark.slow
def test_all_time_of_a_run_that_is_killed_is_attributed(tiny, start) -> None:
    for kill_at in (60, 110, None):
        train(start, tiny, kill_at)
    events = tiny.events()
    found = read_goodput(events)
    between_s = events[-1]["time"] - events[0]["time"]
    assert between_s / 2 < found.elapsed_s < 2 * between_s, "the wall clock is another one"
    assert found.seconds["unknown"] < found.elapsed_s / 2
    assert (found.num_starts, found.num_failures) == (3, 2)
    for name in ("step", "data_wait", "setup", "compilation", "checkpoint", "evaluation", "down"):
        assert found.seconds[name] > 0, name
    resumed = [i for i, event in enumerate(events) if event["event"] == "resume"]
    told = [events[i - 1]["account"]["steps"][1] - events[i]["step"] for i in resumed]
    assert (found.seconds["repeated"] > 0) == any(steps > 0 for steps in told)


def test_the_account_of_a_run_that_is_not_disturbed(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = threading.local()  # both clocks are read at one moment

    def read() -> float:
        clock.seconds = time.perf_counter()
        return clock.seconds

    monkeypatch.setattr("aifx.runs.records.time", SimpleNamespace(perf_counter=read, time=time.time))
    monkeypatch.setattr("aifx.runs.records._boot_clock", lambda: clock.seconds)
    result = tiny.train()
    events = tiny.events()
    found = read_goodput(events)
    assert all("account" in event for event in events)
    assert (found.num_steps, found.num_failures, found.num_checkpoints) == (12, 0, 3)
    assert found.seconds["unknown"] < 0.01, "what rounding leaves"
    assert found.seconds["down"] == found.seconds["repeated"] == 0
    assert found.elapsed_s >= result.duration_s
    assert len(events[0]["hosts"]) == 1


@pytest.mark.slow
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
        self.done.wait(END_S)


class Account(TimeAccount):
    """One that shows when the activity of a wait has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Event()

    def change(self, span: Span, activity: Activity) -> None:
        super().change(span, activity)
        self.changed.set()


def waited(computing: Any, in_wait: Callable[[Account], object]) -> set[str]:
    """The activities that the time of a wait for a batch goes to, in which `in_wait` is called."""
    account = Account()
    account.take()
    with DataWait(account) as waiting, account.spending("evaluation"), waiting(computing):
        in_wait(account)
    return {"step", "data_wait"} & set(account.take()["seconds"])


def test_a_wait_counts_only_while_the_device_is_idle() -> None:
    def wait(_: Account) -> None:
        time.sleep(0.01)

    assert waited(None, wait) == {"data_wait"}
    busy = Computing()
    assert waited(busy, wait) == {"step"}
    busy.done.set()
    assert waited(busy, wait) == {"data_wait"}


def test_a_device_that_becomes_idle_amid_a_wait() -> None:
    busy = Computing()

    def wait(account: Account) -> None:
        time.sleep(0.01)
        busy.done.set()
        assert account.changed.wait(END_S)
        time.sleep(0.01)

    assert waited(busy, wait) == {"step", "data_wait"}
