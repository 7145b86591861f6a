"""Launches as real processes: what they tell is put together, and kept however they end."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fake_suite import environ

from aifx.bench import launches
from aifx.bench.launches import Launches
from aifx.bench.results import Request, read_report
from aifx.errors import ExitCode, UsageError


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A bench of a suite of this body; and what was said on the way."""

    def run(body, count=1, **more):
        for name, value in environ(tmp_path, body).items():
            monkeypatch.setenv(name, value)
        said, told = more.pop("said", []), []
        say = more.pop("say", said.append)
        report = Launches(Request(suites=["hardware"], quick=True), count, say, told.append, **more).run()
        return report, [found.name for found in told]

    return run


def test_launches_are_put_together(bench, tmp_path):
    body = f"""
        before = {str(tmp_path / "number")!r}
        number = int(open(before).read()) + 1 if os.path.exists(before) else 1
        open(before, "w").write(str(number))
        bench.say("products")
        bench.note(f"others used {{number}}% of it, size 512")
        bench.note("size 1024 was not steady")
        bench.note("size 2048 was not steady")
        yield result("matmul", number * 1.0, number * 1.5, number * 1.25, size=512)
        yield result("matmul", 9.0, size=1024)
        """
    said = []
    report, told = bench(body, 2, said=said)
    assert [result.key for result in report.results] == [
        'hardware.matmul {"size": 512}',
        'hardware.matmul {"size": 1024}',
    ]
    first = report.results[0]
    assert first.samples_s == [[1.0, 1.5, 1.25], [2.0, 3.0, 2.5]]
    assert first.median_s == (1.25 + 2.5) / 2
    assert first.flops_per_s == 1e9 / first.median_s
    assert report.notes[:3] == [
        "others used 1% of it, size 512 (2 times)",
        "size 1024 was not steady (2 times)",
        "size 2048 was not steady (2 times)",
    ]
    assert report.failure is None
    assert report.fingerprint.hardware["platform"] == "cpu"
    assert told == ["hardware.matmul"] * 4
    assert said == ["hardware: launch 1 of 2", "products", "hardware: launch 2 of 2", "products"]


def test_a_launch_that_is_killed_midway_keeps_what_it_told(bench):
    body = """
        yield result("first", 1.0)
        yield result("second", 2.0)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    report, _ = bench(body, 3)
    assert [result.name for result in report.results] == ["hardware.first", "hardware.second"]
    assert report.failure.what == "hardware ended before its time"
    assert report.failure.why.startswith("signal 9 (Killed)")
    assert report.failure.exit_code == ExitCode.UNABLE
    assert len(report.results[0].samples_s) == 1  # no other launch of it


def test_an_error_with_a_name_is_told_as_it_is_and_another_by_its_last_line(bench):
    body = """
        from aifx.errors import EnvironmentFault

        yield result("first", 1.0)
        raise EnvironmentFault("no device", "it fell off the bus", "aifx doctor")
        """
    report, _ = bench(body)
    told = report.failure
    assert (told.what, told.why, told.hint) == ("no device", "it fell off the bus", "aifx doctor")
    assert len(report.results) == 1
    report, _ = bench("yield result('first', 1.0)\nraise RuntimeError('RESOURCE_EXHAUSTED: out of memory')")
    assert report.failure.why == "exit 1: RuntimeError: RESOURCE_EXHAUSTED: out of memory"
    assert len(report.results) == 1


def test_a_launch_that_is_not_heard_of_is_ended_with_what_it_started(bench, monkeypatch):
    body = """
        import subprocess, sys

        yield result("first", 1.0)
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        bench.say(str(sleeper.pid))
        time.sleep(600)
        """
    said = []

    def say(text):
        said.append(text)
        if text.isdigit():
            monkeypatch.setattr(launches, "SILENCE_S", 0.2)

    report, _ = bench(body, say=say)
    assert report.failure.what == "hardware hangs"
    assert len(report.results) == 1
    assert is_gone(int(said[-1]))


def test_what_it_would_be_measured_on_can_be_refused_before_it_is(bench):
    def accept(found):
        assert found.hardware["num_devices"] >= 1
        raise UsageError("another machine")

    with pytest.raises(UsageError, match="another machine"):
        bench("yield result('first', 1.0)\ntime.sleep(600)", accept=accept)


@pytest.fixture
def program(tmp_path):
    """`aifx bench hardware` with a suite that tells a result and the process that it started, and then hangs."""
    body = """
        import subprocess, sys

        yield result("first", 1.0)
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        bench.say(f"pid {sleeper.pid}")
        time.sleep(600)
        """
    command = [sys.executable, "-c", "from aifx.commands.main import main; main()", "bench", "hardware", "--json"]
    env = {**os.environ, **environ(tmp_path, body), "AIFX_CACHE_DIR": str(tmp_path / "cache")}
    with subprocess.Popen(
        command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        pid = next(int(line.split()[1]) for line in running.stderr if line.startswith("pid "))
        yield running, pid
        running.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_ctrl_c_and_sigterm_end_it_and_what_was_measured_is_kept(program, tmp_path, number, code):
    running, pid = program
    running.send_signal(number)
    answer = json.loads(running.communicate(timeout=60)[0])
    assert running.returncode == code
    assert answer["error"]["what"] == "the bench was interrupted"
    assert "(1 result) is kept: aifx bench show" in answer["error"]["why"]
    kept = read_report(tmp_path / "cache" / "bench" / "last.json")
    assert [result.name for result in kept.results] == ["hardware.first"]
    assert kept.failure.exit_code == code
    assert is_gone(pid)


def test_a_bench_that_is_killed_leaves_nothing_running(program):
    running, pid = program
    running.kill()
    assert is_gone(pid)


def is_gone(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        with suppress(FileNotFoundError):
            if "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        time.sleep(0.05)
    return False
