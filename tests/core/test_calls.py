"""Calls in real processes: what they return, what they raise, and that they end."""

import os
import subprocess
import sys
from pathlib import Path

import called
import pytest
from test_processes import is_gone

from aifx.core.calls import CallProcess, call_each, generated
from aifx.core.errors import DataError, EnvironmentFault


def test_each_call_has_its_result_and_reports_its_size():
    reports: list[int] = []
    found = dict(
        call_each(called.double, [1, 2, 3, 4], 2, sizes=[4, 5, 6, 7], report=reports.append, begin=called.begin)
    )
    assert {index: doubled for index, (_, _, doubled) in found.items()} == {0: 2, 1: 4, 2: 6, 3: 8}
    assert sum(reports) == 22
    assert {begin_calls for _, begin_calls, _ in found.values()} == {1}
    pids = {pid for pid, _, _ in found.values()}
    assert os.getpid() not in pids
    assert all(map(is_gone, pids))


def test_what_a_call_raises_ends_the_others():
    with pytest.raises(DataError) as raised:
        dict(call_each(called.fail, [1, 0], 2))
    assert (raised.value.what, raised.value.why, raised.value.hint) == ("a.csv", "line 3 is torn", "mend it")
    assert "called.py" in raised.value.__notes__[0]


def test_an_error_that_cannot_travel_is_told():
    with pytest.raises(RuntimeError, match="Odd: 7"):
        dict(call_each(called.odd, [7, 7], 2))


def test_a_process_that_is_killed_is_an_error():
    with pytest.raises(EnvironmentFault) as raised:
        dict(call_each(called.die, [1, 2], 2))
    assert "signal 9" in raised.value.why


def test_no_call_runs_without_what_comes_first():
    with CallProcess(called.attempts_text, called.fail_once) as process:
        with pytest.raises(OSError, match="not yet"):
            list(process.values())
        assert list(process.values()) == ["after the second attempt"]


def test_large_values_one_after_another(caplog):
    with generated(called.large, 3) as values:
        assert [(value[0], len(value)) for value in values] == [(number, 3 << 20) for number in range(3)]
    assert "of a library" in caplog.text


def test_it_ends_with_its_block():
    with generated(called.pid_and_sleep) as values:
        pid = next(values)
    assert is_gone(pid)


def test_it_ends_with_a_parent_that_is_killed(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(called.__file__).parent))
    program = "import called\nfrom aifx.core.calls import generated\nwith generated(called.pid_and_sleep) as values:\n"
    program += "    for pid in values:\n        print(pid, flush=True)\n"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert is_gone(pid)
