"""`aifx launch local`: how several processes are started, supervised and ended. Small programs stand for aifx."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import inprocess
import pytest

from aifx.cluster.local import Attempt, Process, Signals, code_of, processes, run_once
from aifx.core.errors import UsageError

NUMBER = "import os, sys, time, signal; n = int(os.environ['AIFX_PROCESS_ID']); "


Launch = Callable[..., tuple[int, str, str]]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """`aifx launch local` in an empty folder: exit code, stdout and stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        done = inprocess.run(["launch", "local", *args], tmp_path, os.environ)
        return done.returncode, done.stdout, done.stderr

    return run


def run(program: str, count: int = 3, signals: Signals | None = None) -> tuple[Attempt, list[tuple[int, str]]]:
    """Run `count` processes of a Python program that knows its number `n`, and return what they wrote."""
    lines: list[tuple[int, str]] = []
    started = [Process((sys.executable, "-c", NUMBER + program), {"AIFX_PROCESS_ID": str(n)}) for n in range(count)]
    attempt = run_once(started, signals or Signals(), lambda index, line: lines.append((index, line.decode())))
    return attempt, lines


def test_the_answer_is_that_of_process_0() -> None:
    attempt, lines = run("print('answer', n); print('line', n, file=sys.stderr); sys.stderr.write('no end')")
    assert attempt.answer == b"answer 0\n"
    assert attempt.code == 0
    assert attempt.first is None
    expected = {(0, "line 0"), (1, "line 1"), (1, "answer 1"), (0, "no end"), (2, "no end")}
    assert expected <= set(lines)
    assert (0, "answer 0") not in lines


def test_lines_come_while_the_processes_run() -> None:
    seen: list[float] = []
    program = NUMBER + "print('early', file=sys.stderr, flush=True); time.sleep(1.0)"
    started = [Process((sys.executable, "-c", program), {"AIFX_PROCESS_ID": "0"})]
    run_once(started, Signals(), lambda index, line: seen.append(time.monotonic()))
    assert time.monotonic() - seen[0] > 0.5


@pytest.mark.parametrize(
    ("program", "code", "first"),
    [
        ("sys.exit(75 if n == 1 else 0)", 75, 1),
        ("os.kill(os.getpid(), 9) if n == 2 else (time.sleep(0.3), sys.exit(75))", 75, 2),
        # The others end for the failure of one, with its code, before it ends itself.
        ("time.sleep(0.5 if n == 1 else 0.1); sys.exit(2)", 2, 1),
        ("time.sleep(0.4 if n == 1 else 0.1); sys.exit(1 if n == 1 else 75)", 1, 1),
        ("sys.exit(130)", 130, None),
    ],
)
def test_the_first_failure(program: str, code: int, first: int | None) -> None:
    attempt, _ = run(program)
    assert attempt.code == code
    assert first is None or attempt.first == first


def test_those_that_wait_for_one_that_was_killed_are_ended_soon() -> None:
    """As processes do that are not connected yet: they do not notice."""
    began = time.monotonic()
    attempt, _ = run("os.kill(os.getpid(), 9) if n == 1 else time.sleep(60)")
    assert time.monotonic() - began < 5
    assert (attempt.code, attempt.first) == (75, 1)


def test_those_that_do_not_end_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.cluster.local.GRACE_S", 0.3)
    monkeypatch.setattr("aifx.cluster.local.KILL_S", 0.3)
    began = time.monotonic()
    attempt, _ = run("sys.exit(3) if n == 1 else (signal.signal(signal.SIGTERM, signal.SIG_IGN), time.sleep(60))")
    assert time.monotonic() - began < 20
    assert (attempt.code, attempt.first) == (3, 1)
    assert attempt.ended[0].signal == signal.SIGKILL
    assert code_of(attempt.ended[0]) == 75


def test_a_process_that_the_others_gave_up_is_named(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.cluster.local.GRACE_S", 0.3)
    monkeypatch.setattr("aifx.cluster.local.KILL_S", 0.3)
    stopped = "n == 1 and (print('here', file=sys.stderr, flush=True), os.kill(os.getpid(), 19)); sys.exit(75)"
    monkeypatch.setattr("aifx.cluster.local.PROGRAM", NUMBER + stopped)
    code, _, err = launch("-n", "3", "train")
    assert code == 75
    lines = err.splitlines()
    first = lines.index("process 1 failed first: it did not end with the others; its last lines:")
    assert lines[first + 1] == "    here"


@pytest.mark.parametrize("is_stopped", [False, True])
def test_signals_are_forwarded_to_all(is_stopped: bool) -> None:
    program = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
        f"n == 1 and {is_stopped} and os.kill(os.getpid(), signal.SIGSTOP); time.sleep(60)"
    )
    began = time.monotonic()
    with Signals() as signals:
        timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        attempt, _ = run(program, signals=signals)
    assert signals.came == [signal.SIGTERM]
    assert [ended.code for ended in attempt.ended] == [75, 75, 75]
    assert attempt.code == 75
    assert time.monotonic() - began < 8  # less than the others are waited for


def test_each_process_gets_its_share_of_the_gpus() -> None:
    started = processes(["train"], 2, {"CUDA_VISIBLE_DEVICES": "3,1,5,7"})
    assert [one.variables["CUDA_VISIBLE_DEVICES"] for one in started] == ["3,1", "5,7"]
    assert [one.variables["AIFX_PROCESS_ID"] for one in started] == ["0", "1"]
    assert len({one.variables["AIFX_COORDINATOR"] for one in started}) == 1
    with pytest.raises(UsageError, match="3 processes cannot share the GPUs"):
        processes(["train"], 3, {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert "CUDA_VISIBLE_DEVICES" not in processes(["train"], 3, {"CUDA_VISIBLE_DEVICES": ""})[0].variables


ATTEMPT = (
    NUMBER
    + """
from pathlib import Path
path = Path(f"attempts-{n}")
attempt = len(path.read_text()) if path.exists() else 0
path.write_text("x" * (attempt + 1))
print(f"attempt {attempt} begins", file=sys.stderr, flush=True)
"""
)
"""A program that knows how many times process `n` was started before."""

RESTARTS = ("-n", "2", "--restarts", "2", "train")


def test_a_job_that_lost_a_process_is_started_again(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = (
        "print('[Gloo] Rank 1 is connected', file=sys.stderr, flush=True)\n"
        "n == 1 and attempt == 0 and os.kill(os.getpid(), 9)\nattempt == 0 and sys.exit(75)\nprint('answer', attempt)"
    )
    monkeypatch.setattr("aifx.cluster.local.PROGRAM", ATTEMPT + lost)
    code, out, err = launch(*RESTARTS)
    assert (code, out) == (0, "answer 1\n")
    lines = err.splitlines()
    first = lines.index("process 1 failed first: signal 9 (Killed); its last lines:")
    assert lines[first + 1 : first + 3] == ["    attempt 0 begins", "restart 1 of 2"]
    assert lines.count("[0] attempt 1 begins") == 1
    assert "restart 2 of 2" not in lines
    assert "Gloo" not in err


@pytest.mark.parametrize(("ends", "code", "attempts"), [("sys.exit(75)", 75, 3), ("sys.exit(2)", 2, 1)])
def test_a_job_is_started_again_while_restarts_are_left(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str, code: int, attempts: int
) -> None:
    monkeypatch.setattr("aifx.cluster.local.PROGRAM", ATTEMPT + ends)
    assert launch(*RESTARTS)[0] == code
    assert [len((tmp_path / f"attempts-{n}").read_text()) for n in range(2)] == [attempts] * 2


def test_a_bad_verdict_is_an_answer_and_no_failure(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.cluster.local.PROGRAM", ATTEMPT + "n or print('a gate failed')\nsys.exit(1)")
    code, out, err = launch(*RESTARTS)
    assert (code, out) == (1, "a gate failed\n")
    assert sorted(err.splitlines()) == ["[0] attempt 0 begins", "[1] attempt 0 begins"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_job_that_was_stopped_is_not_started_again(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    stopped = (
        f"signal.signal({int(number)}, lambda *_: (print('stopped'), sys.exit({code})))\n"
        "Path(f'ready-{n}').touch()\ntime.sleep(60)"
    )
    monkeypatch.setattr("aifx.cluster.local.PROGRAM", ATTEMPT + stopped)

    def stop() -> None:
        while not all((tmp_path / f"ready-{n}").exists() for n in range(2)):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop, daemon=True).start()
    ended, out, err = launch(*RESTARTS)
    assert (ended, out) == (code, "stopped\n")
    assert "restart" not in err
    assert "failed first" not in err


def test_the_command(launch: Launch) -> None:
    code, out, _ = launch("-n", "2", "--dry-run", "train", "--run", "wide", "--profile")
    assert code == 0
    first, second = out.splitlines()
    assert "AIFX_PROCESS_ID=0" in first
    assert "AIFX_NUM_PROCESSES=2" in second
    assert second.endswith("aifx train --run wide --profile")
    assert launch("-n", "2", "--dry-run", "--", "train", "-h")[1].splitlines()[0].endswith("aifx train -h")
    code, _, err = launch("-n", "2", "runs")
    assert code == 2
    assert "cannot be launched" in err
    code, _, err = launch("-n", "2")
    assert code == 2
    code, _, err = launch("-n", "2", "--restart", "1", "train")
    assert code == 2
    assert "did you mean '--restarts'?" in err
    # The command itself fails in each process.
    code, out, err = launch("-n", "2", "train", "--rum", "wide")
    assert code == 2
    assert out == ""
    assert "[0] error: aifx train has no option '--rum'" in err
    assert "[1] error: aifx train has no option '--rum'" in err
    assert "failed first: exit 2; its last lines:" in err
