"""A trial that crashes or hangs costs itself alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jax_kernels import trials
from jax_kernels.trials import Failure, TrialProcess


def work(item: str) -> tuple[str, int]:
    match item:
        case "crashes":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hangs":
            time.sleep(600)
        case "raises":
            raise ValueError("not today\nnor tomorrow")
        case "exits":
            os._exit(3)
    return item, os.getpid()


END_S = 120.0


@pytest.mark.slow
def test_each_item_has_a_result_or_the_reason_why_it_has_none() -> None:
    items = ["first", "crashes", "second", "raises", "third", "hangs", "exits", "last"]
    with TrialProcess(work) as trial:
        results = {item: trial.do(item, limit_s=3 if item == "hangs" else END_S) for item in items}
    failures = {item: result.why for item, result in results.items() if isinstance(result, Failure)}
    assert list(failures) == ["crashes", "raises", "hangs", "exits"]
    assert failures["raises"] == "not today"
    assert all(failures[item].endswith(end) for item, end in (("crashes", "SIGSEGV"), ("hangs", "3 s"), ("exits", "3")))
    answered = [results[item] for item in ("first", "second", "third", "last")]
    assert [item for item, _ in answered] == ["first", "second", "third", "last"]
    first, second, third, last = (process for _, process in answered)
    assert second == third, "an exception spoils nothing"
    assert len({first, second, last, os.getpid()}) == 4
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)


def serve_nothing(pipe: object, work: object) -> None:
    time.sleep(600)


def test_a_process_that_cannot_start_is_no_failure_of_an_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be remembered as a failure of the kernel."""
    monkeypatch.setattr(trials, "START_S", 0.3)
    monkeypatch.setattr(trials, "_serve", serve_nothing)
    with TrialProcess(work) as trial, pytest.raises(ChildProcessError, match=r"not start.* 0\.3 s"):
        trial.do("a")


def test_a_process_that_died_after_its_last_result_is_replaced() -> None:
    with TrialProcess(work) as trial:
        _, first = trial.do("first")
        os.kill(first, signal.SIGKILL)
        assert trial._process is not None
        trial._process.join()
        item, second = trial.do("second")
    assert item == "second"
    assert first != second


PARENT = """
import sys
sys.path.insert(0, sys.argv[1])
import test_trials
from jax_kernels.trials import TrialProcess

with TrialProcess(test_trials.work) as trial:
    print(trial.do("first")[1], flush=True)
    trial.do("hangs")
"""


def test_a_process_ends_with_one_that_is_killed() -> None:
    command = [sys.executable, "-c", PARENT, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + END_S
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{process}").exists()
