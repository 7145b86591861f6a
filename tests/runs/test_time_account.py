from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aifx.core.json_files import read_jsonl
from aifx.runs import records
from aifx.runs.records import Ledger, TimeAccount, process_started_at

IMPORTED_AT = time.perf_counter()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A clock that goes when the test says so."""

    class Clock:
        seconds = 1000.0

        def go(self, seconds: float) -> None:
            self.seconds += seconds

    clock = Clock()
    monkeypatch.setattr(records.time, "perf_counter", lambda: clock.seconds)
    monkeypatch.setattr(records, "_boot_clock", lambda: clock.seconds + 5e4)
    return clock


def test_each_moment_has_one_activity(now: Any) -> None:
    account = TimeAccount(started_at=now.seconds - 3)
    now.go(1)
    with account.spending("step"):
        now.go(10)
        with account.spending("data_wait"):
            now.go(2)
        with account.spending("checkpoint"):
            now.go(1)
            first = account.take()
            now.go(4)
        now.go(1)
    assert first == {"elapsed_s": 17.0, "seconds": {"setup": 4.0, "step": 10.0, "data_wait": 2.0, "checkpoint": 1.0}}
    assert account.take() == {"elapsed_s": 22.0, "seconds": {"checkpoint": 4.0, "step": 1.0}}


def test_a_wait_changes_into_another_activity_while_it_lasts(now: Any) -> None:
    account = TimeAccount()
    with account.spending("step") as span:
        now.go(2)
        account.change(span, "data_wait")
        now.go(3)
    account.change(span, "evaluation")  # too late
    now.go(1)
    assert account.take()["seconds"] == {"step": 2.0, "data_wait": 3.0, "setup": 1.0}


def test_a_compilation_takes_its_time_from_where_it_happened(now: Any) -> None:
    account = TimeAccount()
    with account.spending("evaluation"):
        now.go(5)
        account.shift("compilation", 4)
        account.take()
        account.shift("compilation", 4)  # no more than there is since the last line
        assert account.take()["seconds"] == {}
        now.go(1)
    assert account.take()["seconds"] == {"evaluation": 1.0}


def test_the_steps_of_a_line_and_those_of_a_rollback(now: Any) -> None:
    account = TimeAccount()
    assert "steps" not in account.take()
    account.begin_steps(40)
    account.step_done(41)
    account.step_done(42)
    with account.spending("step"):
        now.go(3)
        account.step_done(43)
        now.go(2)
        taken = account.take()
    assert (taken["steps"], taken["seconds"], taken["unfinished_s"]) == ([40, 43], {"step": 5.0}, 2.0)
    assert account.take()["steps"] == [43, 43]
    account.step_done(31)
    account.step_done(32)
    assert account.take()["steps"] == [30, 32]


def test_lines_are_due_often_at_first_and_each_minute_later(now: Any) -> None:
    account = TimeAccount()
    for elapsed_s, interval_s in ((10, 2), (800, 4), (1e6, 60)):
        now.go(elapsed_s)
        account.take()
        now.go(interval_s - 0.1)
        assert not account.is_due
        now.go(0.5 + interval_s / 100)
        assert account.is_due


def test_a_process_knows_when_it_started() -> None:
    assert 0 < IMPORTED_AT - process_started_at() < 86_400
    assert process_started_at() == pytest.approx(process_started_at(), abs=60)


def test_lines_of_several_threads_lose_no_time(tmp_path: Path, now: Any) -> None:
    account = TimeAccount()
    ledger = Ledger(tmp_path / "events.jsonl", account)

    def write() -> None:
        for _ in range(50):
            with account._lock:  # while no other thread compares its two clocks
                now.go(1)
            ledger.write("tick")

    with account.spending("step"):
        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    ledger.write("stop")
    lines = [event["account"] for event in read_jsonl(ledger.path)]
    assert [line["elapsed_s"] for line in lines] == sorted(line["elapsed_s"] for line in lines)
    assert sum(sum(line["seconds"].values()) for line in lines) == lines[-1]["elapsed_s"] == 200
