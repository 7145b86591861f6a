"""`aifx launch local`: several processes are started, supervised and ended. Small programs stand for aifx."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import inprocess
import pytest
from process_status import is_stopped

from aifx.checkpoint.manifest import STATE, Manifest
from aifx.cluster.local import Attempt, Process, check_progress, ended_exit_code, newest_step, processes, run_once
from aifx.core.artifact import seal, seal_files
from aifx.core.errors import AifxError, ExitCode, UsageError
from aifx.core.lifecycle import collect_signals
from aifx.core.project import RunDirectory

NUMBER = """
import os, sys, time, signal
from pathlib import Path
n = int(os.environ["AIFX_PROCESS_ID"])
def wait_for(*names):
    while not all(Path(name).exists() for name in names):
        time.sleep(0.01)
"""
NEVER_S = 1e6

Launch = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the processes, which are ended only where a test is about that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aifx.cluster.local.GRACE_S", NEVER_S)
    monkeypatch.setattr("aifx.cluster.local.GRACE_OF_KILL_S", NEVER_S)
    monkeypatch.setattr("aifx.core.processes.REAP_S", NEVER_S)
    return tmp_path


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """`aifx launch local` in an empty folder: exit code, stdout and stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        done = inprocess.run(["launch", "local", *args], tmp_path, os.environ)
        return done.returncode, done.stdout, done.stderr

    return run


def run(program: str, count: int = 3, came: Sequence[int] = ()) -> tuple[Attempt, list[tuple[int, str]]]:
    """Run `count` processes of a Python program that knows its number `n`, and return what they wrote.

    A line that is heard from process 0 makes the file `heard-0`.
    """
    lines: list[tuple[int, str]] = []
    started = [Process((sys.executable, "-c", NUMBER + program), {"AIFX_PROCESS_ID": str(n)}) for n in range(count)]

    def write(index: int, line: bytes) -> None:
        lines.append((index, line.decode()))
        Path(f"heard-{index}").touch()

    return run_once(started, came, write), lines


def signal_when_ready(number: int, count: int, *, with_stopped: bool = False) -> None:
    """Send this process a signal once `count` processes have written their PIDs, and perhaps process 1 has stopped."""

    def send() -> None:
        files = [Path(f"ready-{n}").absolute() for n in range(count)]
        while not all(file.exists() for file in files) or (with_stopped and not is_stopped(int(files[1].read_text()))):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


READY = "Path(f'writing-{n}').write_text(str(os.getpid())); Path(f'writing-{n}').rename(f'ready-{n}')\n"


def test_the_answer_is_that_of_process_0() -> None:
    attempt, lines = run("print('answer', n); print('line', n, file=sys.stderr); sys.stderr.write('no end')")
    assert attempt.answer == b"answer 0\n"
    assert attempt.code == 0
    assert attempt.first is None
    expected = {(0, "line 0"), (1, "line 1"), (1, "answer 1"), (0, "no end"), (2, "no end")}
    assert expected <= set(lines)
    assert (0, "answer 0") not in lines


def test_lines_come_while_the_processes_run() -> None:
    attempt, lines = run("print('early', file=sys.stderr, flush=True); wait_for('heard-0')", count=1)
    assert (attempt.code, lines) == (0, [(0, "early")])


@pytest.mark.parametrize(
    ("program", "code", "first"),
    [
        ("sys.exit(75 if n == 1 else 0)", 75, 1),
        ("os.kill(os.getpid(), 9) if n == 2 else sys.exit(75)", 75, 2),
        # The others end for the failure of one, with its code, before it ends itself. A line without an end is heard
        # when the process has ended.
        ("wait_for('heard-0', 'heard-2') if n == 1 else sys.stderr.write('gone'); sys.exit(2)", 2, 1),
        ("wait_for('heard-0', 'heard-2') if n == 1 else sys.stderr.write('gone'); sys.exit(1 if n == 1 else 75)", 1, 1),
        ("sys.exit(130)", 130, None),
    ],
)
def test_the_first_failure(program: str, code: int, first: int | None) -> None:
    attempt, _ = run(program)
    assert attempt.code == code
    assert first is None or attempt.first == first


def test_those_that_wait_for_one_that_was_killed_are_ended_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """As processes do that are not connected yet: they do not notice."""
    monkeypatch.setattr("aifx.cluster.local.GRACE_OF_KILL_S", 0.3)
    attempt, _ = run("os.kill(os.getpid(), 9) if n == 1 else time.sleep(600)")
    assert (attempt.code, attempt.first) == (75, 1)
    assert attempt.ended[0].cut
    assert attempt.ended[2].cut


def test_those_that_do_not_end_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.cluster.local.GRACE_S", 0.3)
    monkeypatch.setattr("aifx.cluster.local.KILL_S", 0.3)
    attempt, _ = run(
        "n == 1 and (wait_for('ignores-0', 'ignores-2'), sys.exit(3))\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); Path(f'ignores-{n}').touch(); time.sleep(600)"
    )
    assert (attempt.code, attempt.first) == (3, 1)
    assert attempt.ended[0].signal == signal.SIGKILL
    assert ended_exit_code(attempt.ended[0]) == 75


def test_a_process_that_the_others_gave_up_is_named(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.cluster.local.GRACE_S", 0.3)
    monkeypatch.setattr("aifx.cluster.local.KILL_S", 0.3)
    stopped = (
        "n == 0 and (wait_for('stops'), sys.exit(75))\n"
        "print('here', file=sys.stderr, flush=True); Path('stops').touch(); os.kill(os.getpid(), 19); time.sleep(600)"
    )
    monkeypatch.setattr("aifx.core.processes.PROGRAM", NUMBER + stopped)
    code, _, err = launch("-n", "2", "train")
    assert code == 75
    assert lines_behind(err, "process 1 failed first")[0] == "    here"


def lines_behind(text: str, begin: str) -> list[str]:
    """The lines behind the one that begins so."""
    lines = text.splitlines()
    (number,) = (number for number, line in enumerate(lines) if line.startswith(begin))
    return lines[number + 1 :]


@pytest.mark.parametrize("is_stopped", [False, True])
def test_signals_are_forwarded_to_all(is_stopped: bool) -> None:
    program = (
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n{READY}"
        f"n == 1 and {is_stopped} and os.kill(os.getpid(), signal.SIGSTOP); time.sleep(600)"
    )
    with collect_signals() as came:
        signal_when_ready(signal.SIGTERM, 3, with_stopped=is_stopped)
        attempt, _ = run(program, came=came)
    assert came == [signal.SIGTERM]
    assert [(ended.code, ended.cut) for ended in attempt.ended] == [(75, "")] * 3
    assert attempt.code == 75


def test_a_signal_that_comes_while_another_is_forwarded_is_forwarded_too() -> None:
    class Came(list[int]):
        """SIGINT when the process is ready, and SIGTERM just after that was read."""

        def __getitem__(self, key: Any) -> Any:
            if not self and list(Path().glob("ready-*")):
                self.append(signal.SIGINT)
                found = super().__getitem__(key)
                self.append(signal.SIGTERM)
                return found
            return super().__getitem__(key)

    program = f"signal.signal(2, lambda *_: None); signal.signal(15, lambda *_: sys.exit(75))\n{READY}"
    program += "while True: time.sleep(600)"
    attempt, _ = run(program, count=1, came=Came())
    assert attempt.code == 75


def test_each_process_gets_its_share_of_the_gpus() -> None:
    started = processes(["train"], 2, {"CUDA_VISIBLE_DEVICES": "3,1,5,7"})
    assert [one.variables["CUDA_VISIBLE_DEVICES"] for one in started] == ["3,1", "5,7"]
    assert [one.variables["AIFX_PROCESS_ID"] for one in started] == ["0", "1"]
    assert len({one.variables["AIFX_COORDINATOR"] for one in started}) == 1
    with pytest.raises(UsageError, match=r"^3 processes .*GPUs"):
        processes(["train"], 3, {"CUDA_VISIBLE_DEVICES": "0,1"})
    assert "CUDA_VISIBLE_DEVICES" not in processes(["train"], 3, {"CUDA_VISIBLE_DEVICES": ""})[0].variables


ATTEMPT = (
    NUMBER
    + """
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
    monkeypatch.setattr("aifx.core.processes.PROGRAM", ATTEMPT + lost)
    code, out, err = launch(*RESTARTS)
    assert (code, out) == (0, "answer 1\n")
    last, then, *_ = lines_behind(err, "process 1 failed first: signal 9")
    assert last == "    attempt 0 begins"
    assert "1 of 2" in then
    assert err.splitlines().count("[0] attempt 1 begins") == 1
    assert "2 of 2" not in err
    assert "Gloo" not in err


@pytest.mark.parametrize(("ends", "code", "attempts"), [("sys.exit(75)", 75, 3), ("sys.exit(2)", 2, 1)])
def test_a_job_is_started_again_while_restarts_are_left(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: str, code: int, attempts: int
) -> None:
    monkeypatch.setattr("aifx.core.processes.PROGRAM", ATTEMPT + ends)
    assert launch(*RESTARTS)[0] == code
    assert [len((tmp_path / f"attempts-{n}").read_text()) for n in range(2)] == [attempts] * 2


def test_a_bad_verdict_is_an_answer_and_no_failure(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aifx.core.processes.PROGRAM", ATTEMPT + "n or print('a gate failed')\nsys.exit(1)")
    code, out, err = launch(*RESTARTS)
    assert (code, out) == (1, "a gate failed\n")
    assert sorted(err.splitlines()) == ["[0] attempt 0 begins", "[1] attempt 0 begins"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_job_that_was_stopped_is_not_started_again(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    stopped = f"signal.signal({int(number)}, lambda *_: (os.write(1, b'stopped\\n'), sys.exit({code})))\n{READY}"
    monkeypatch.setattr("aifx.core.processes.PROGRAM", ATTEMPT + stopped + "time.sleep(600)")
    signal_when_ready(number, 2)
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
    errors = [line for line in err.splitlines() if "error:" in line and "'--rum'" in line]
    assert sorted(line[:3] for line in errors if line.startswith("[")) == ["[0]", "[1]"]
    assert "failed first: exit 2" in err


def save(run: RunDirectory, step: int) -> Path:
    """A file of a checkpoint with its manifest: as much of one as is read here."""
    folder = run.checkpoints / str(step)
    (folder / STATE).mkdir(parents=True)
    file = folder / STATE / "array"
    file.write_bytes(b"numbers")
    seal(folder, Manifest(step, 0.0, None, {}, {}, None, {}).artifact(seal_files(folder, [file])))
    return file


def test_three_starts_without_a_newer_checkpoint_are_enough(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert newest_step(run) == 0
    check_progress(run, [0, 0])
    with pytest.raises(AifxError, match=r"3 times .*beginning") as caught:
        check_progress(run, [0, 0, 0])
    assert caught.value.exit_code == ExitCode.UNABLE
    save(run, 20)
    assert newest_step(run) == 20
    check_progress(run, [0, 0, 0])
    check_progress(run, [0, 0, 0, 20, 20])
    with pytest.raises(AifxError, match=r"3 times .*step 20"):
        check_progress(run, [0, 20, 20, 20])


def test_a_damaged_checkpoint_is_no_progress(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    save(run, 10)
    file = save(run, 20)
    check_progress(run, [10, 10, 20])
    file.write_bytes(b"numbres")
    with pytest.raises(AifxError, match=r"3 times .*step 10"):
        check_progress(run, [10, 10, 20])
    save(run, 15)
    check_progress(run, [10, 10, 20])
