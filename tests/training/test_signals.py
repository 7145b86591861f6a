"""Real signals to real processes: what is saved, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import warm
from process_status import has_received

from aifx.runs.lock import hold_run

Start = Callable[..., warm.Process]

LONG = [
    "train",
    "--json",
    "--set",
    "train.num_steps=100000",
    "--set",
    "data.read_s=0.01",
    "--set",
    "checkpoint.every=0",
    "--set",
    "checkpoint.stop_timeout_s=600",
]
END_S = 300
"""By then a process has ended that was to end at once. What it would wait for otherwise takes ten minutes."""


def wait_for(condition: Callable[[], bool], process: warm.Process) -> None:
    deadline = time.monotonic() + END_S
    while not condition():
        assert process.poll() is None or condition(), process.communicate()
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def has_steps(run: Path, count: int) -> Callable[[], bool]:
    metrics = run / "metrics.jsonl"
    return lambda: metrics.exists() and metrics.read_text().count("\n") >= count


def has_event(run: Path, name: str) -> Callable[[], bool]:
    events = run / "events.jsonl"
    return lambda: events.exists() and f'"event": "{name}"' in events.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_in_the_loop_the_state_is_saved(tiny, start: Start, signum: int, code: int) -> None:
    process = start(*LONG)
    wait_for(has_steps(tiny.run().path, 6), process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=END_S)
    assert process.returncode == code, err
    document = json.loads(out)
    assert document["status"] == ("interrupted" if code == 130 else "preempted")
    last = tiny.records()[-1]
    assert (last["step"], last["loss"]) == (document["step"], document["loss"])
    assert (tiny.run().checkpoints / str(document["step"])).is_dir()
    assert tiny.events()[-1]["event"] == "stop"
    assert tiny.events()[-1]["status"] == document["status"]


@pytest.mark.slow
def test_an_interrupt_while_the_process_is_stopped_leaves_one_document(tiny, start: Start) -> None:
    process = start(*LONG)
    wait_for(has_steps(tiny.run().path, 2), process)
    for signum in (signal.SIGSTOP, signal.SIGINT, signal.SIGCONT):
        process.send_signal(signum)
    out, err = process.communicate(timeout=END_S)
    assert process.returncode == 130, err
    assert json.loads(out)["status"] == "interrupted"
    assert "Traceback" not in err


@pytest.mark.representative("an interrupted training")
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_while_compiling_the_process_ends_at_once(tiny, start: Start, signum: int, code: int) -> None:
    process = start(*LONG, "--set", "data.compile_s=600")
    wait_for(has_event(tiny.run().path, "compile"), process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=END_S)
    assert process.returncode == code, err
    document = json.loads(out)
    assert (document["status"], document["step"]) == ("interrupted" if code == 130 else "preempted", 0)
    assert "nothing was saved yet" in err
    assert tiny.events()[-1]["status"] == document["status"]
    done = tiny.train()
    assert done.status == "completed", "the lock is free, and nothing is broken"


def test_while_importing_the_process_ends_cleanly(tiny) -> None:
    program = "import sys; sys.argv[0] = 'aifx'; from aifx.commands.main import main; main()"
    command = [sys.executable, "-c", program, *LONG]
    with subprocess.Popen(command, cwd=tiny.root, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=END_S)
    assert "Traceback" not in err
    assert process.returncode in (75, -signal.SIGTERM), "before aifx's first line the signal is the system's"


def start_stuck(tiny, start: Start, *settings: str) -> warm.Process:
    """A run that reported a step, took another and waits for the third batch, whose reading does not end."""
    process = start(*LONG, "--set", "data.stuck_step=2", *settings)
    wait_for((tiny.root / "stuck").exists, process)
    wait_for(has_steps(tiny.run().path, 1), process)
    return process


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(tiny, start: Start) -> None:
    process = start_stuck(tiny, start)
    process.send_signal(signal.SIGINT)
    wait_for(lambda: has_received(process.pid, signal.SIGINT), process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=END_S)
    assert process.returncode == 130
    assert json.loads(out)["status"] == "interrupted"
    assert "at once" in err, "the first one waits for the step to end"


@pytest.mark.parametrize(
    ("launcher", "second", "code"), [("", "SIGTERM", 75), ("1", "SIGTERM", 0), ("1", "SIGINT", 130)]
)
def test_under_a_launcher_the_same_signal_may_come_twice(launcher: str, second: str, code: int) -> None:
    program = f"""
import os, signal, time
from aifx.core import stop_signals as signals
signals.ECHO_S = 600.0
with signals.StopSignals() as stop:
    stop.guard(600.0)
    for count, number in enumerate((signal.SIGTERM, signal.{second}), 1):
        os.kill(os.getpid(), number)
        while stop._count < count:
            time.sleep(0.01)
    assert stop.requested == signal.SIGTERM
    while {code}:  # the thread that acts ends the process
        time.sleep(0.01)
"""
    environ = {**os.environ, **({"AIFX_LAUNCHER": launcher} if launcher else {})}
    assert subprocess.run([sys.executable, "-c", program], env=environ, check=False).returncode == code


@pytest.mark.slow
def test_saving_is_bounded(tiny, start: Start) -> None:
    process = start_stuck(tiny, start, "--set", "checkpoint.stop_timeout_s=0.5")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=END_S)
    assert process.returncode == 75
    assert "stop_timeout_s" in err
    assert json.loads(out)["step"] == 0, "nothing was saved"


def test_a_run_that_ends_does_not_wait_for_a_reader_that_is_stuck(tiny, start: Start) -> None:
    ends_at_step_1 = ("data.poison_steps=[0]", "guards.non_finite=stop", "train.validate_every=1")
    stuck = ("data.stuck_step=1", *ends_at_step_1)
    process = start(*LONG, *(part for setting in stuck for part in ("--set", setting)))
    out, err = process.communicate(timeout=END_S)
    assert json.loads(out)["status"] == tiny.events()[-1]["status"] == "diverged", err


@pytest.mark.slow
def test_nohup_stays_in_force(tiny, start: Start) -> None:
    process = start(*LONG, ignored=signal.SIGHUP)
    wait_for(has_steps(tiny.run().path, 3), process)
    process.send_signal(signal.SIGHUP)
    before = tiny.run().metrics.read_text().count("\n")
    wait_for(has_steps(tiny.run().path, before + 5), process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=END_S)
    assert process.returncode == 75


def test_an_interrupt_sent_to_a_background_process_is_heard(tiny, start: Start) -> None:
    """A shell without job control starts `aifx train &` with SIGINT ignored; a script that sends one means it."""
    process = start(*LONG, ignored=signal.SIGINT)
    wait_for(has_steps(tiny.run().path, 3), process)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=END_S)
    assert process.returncode == 130
    assert json.loads(out)["status"] == "interrupted"


def test_children_inherit_nothing() -> None:
    program = """
import signal, subprocess, sys
from aifx.core.stop_signals import StopSignals
with StopSignals():
    child = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGTERM))"
    print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout)
print(signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    child, _, after = out.strip().splitlines()
    assert child == "set() 0"
    assert after == "0 True", "what was there before is there again"


def test_a_second_process_is_told_who_holds_the_run(tiny, start: Start) -> None:
    holder = start(*LONG)
    wait_for(has_steps(tiny.run().path, 1), holder)
    code, out, _ = tiny.command(*LONG)
    assert code == 2
    error = json.loads(out)["error"]
    assert str(holder.pid) in error["why"]
    assert error["hint"]
    code, _, err = tiny.command("train")
    assert code == 2
    assert str(holder.pid) in err
    assert "hint:" in err
    assert "Traceback" not in err
    holder.kill()
    holder.wait()
    with hold_run(tiny.run()):
        pass  # the kernel gave it back


@pytest.mark.representative("a kill")
def test_killed_anywhere_the_run_goes_on_bit_for_bit(tiny, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS")  # as users compile

    def begin(run: str) -> warm.Process:
        return start("train", "--run", run, "--json", "--set", "train.num_steps=40", "--set", "data.read_s=0.01")

    def digest(process: warm.Process) -> str:
        out, err = process.communicate()
        assert process.returncode == 0, err
        return str(json.loads(out)["state_digest"])

    whole = digest(begin("whole"))
    held = tiny.root / "held"
    for steps in (2, 9, 25):
        held.write_text(str(steps + 5))  # so that it is not over before it is killed
        process = begin("killed")
        wait_for(has_steps(tiny.run("killed").path, steps), process)
        process.kill()
        process.wait()
    held.unlink()
    assert digest(begin("killed")) == whole
    assert tiny.records("killed") == tiny.records("whole")
