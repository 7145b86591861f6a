"""Disturbances of a measurement are noted: from counters that the test moves, and from the real machine."""

import multiprocessing
import re
import time

import psutil
import pytest

from aifx.benchmarking import watch
from aifx.benchmarking.watch import watch_machine


@pytest.fixture
def counters(monkeypatch):
    """Seconds and clocks that the test sets; ten seconds pass on four cores."""
    values = {"busy": 0.0, "own": 0.0, "quota": 0.0, "clock": 2000.0, "gpus": {}, "now": 0.0}
    for name, key in (
        ("_busy_s", "busy"),
        ("_own_s", "own"),
        ("_throttled_s", "quota"),
        ("_clock_mhz", "clock"),
        ("_gpu_clocks", "gpus"),
    ):
        monkeypatch.setattr(watch, name, lambda key=key: values[key])
    monkeypatch.setattr(watch.time, "monotonic", lambda: values["now"])
    monkeypatch.setattr(watch.psutil, "cpu_count", lambda: 4)
    return values


@pytest.fixture
def noted(counters, caplog):
    """Run a watch while counters change, and return its log."""

    def watch(**after):
        with watch_machine():
            counters.update(now=10.0, **after)
        return caplog.messages

    return watch


def test_a_machine_of_our_own_is_nothing_to_note(noted):
    assert noted(busy=38.0, own=37.5, quota=0.1, clock=2050.0) == []


@pytest.mark.parametrize(
    ("after", "told"),
    [
        ({"busy": 30.0, "own": 18.0}, "other processes.* 30%"),
        ({"quota": 2.0}, "quota.* 20%"),
        ({"clock": 1200.0}, "clock.* 2000 .*1200 MHz"),
        ({"gpus": {"GPU 1": (900, ["heat (hardware)"])}}, r"GPU 1 .*heat \(hardware\).* 900 MHz"),
    ],
)  # fmt: skip
def test_each_disturbance_is_noted_with_its_size(noted, after, told):
    (note,) = noted(**after)
    assert re.search(told, note)


def spin(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.mark.slow
def test_load_of_others_on_this_machine_is_seen(monkeypatch, caplog):
    """By the real counters: a process that works, however little it gets of a busy machine."""
    monkeypatch.setattr(watch, "OTHER_LOAD", 0.0)
    other = multiprocessing.get_context("spawn").Process(target=spin, args=(600,))
    other.start()
    try:
        with watch_machine():
            while psutil.Process(other.pid).cpu_times().user < 0.5:
                time.sleep(0.02)
    finally:
        other.kill()
        other.join()
    assert sum(note.startswith("other processes used") for note in caplog.messages) == 1
