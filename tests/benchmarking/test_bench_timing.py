"""Timing within a process, with a clock that the test turns."""

import itertools
import re

import numpy as np
import pytest

from aifx.benchmarking import timing
from aifx.benchmarking.timing import Effort, sample, sample_in_turn


class Clock:
    """Time that passes only where something is said to last."""

    def __init__(self):
        self.now = 100.0
        self.read_s = 0.0

    def perf_counter(self):
        self.now += self.read_s
        return self.now

    def thing(self, lasts):
        """A function that lasts so long, call after call."""
        lasts = iter(lasts)

        def run(*arguments):
            self.now += next(lasts)
            self.seen.append(arguments)

        self.seen = []
        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock.perf_counter)
    return clock


def test_samples_begin_when_it_is_steady(clock):
    cold = [5.0, 0.9, 0.8, 0.6, 0.4, 0.3, 0.2]
    found = sample(clock.thing(itertools.chain(cold, itertools.repeat(0.1))), Effort(slice_s=20))
    assert found.first_s == pytest.approx(5)
    assert set(map(round, found.seconds, itertools.repeat(9))) == {0.1}
    assert found.warm_up >= len(cold) - 2
    assert found.notes == []


def test_what_never_is_steady_is_said_and_measured_all_the_same(clock):
    rising = (0.1 * 1.1**n for n in itertools.count())
    found = sample(clock.thing(rising), Effort(slice_s=10))
    assert len(found.seconds) >= 7
    assert "not steady" in found.notes[0]
    assert found.notes[1].startswith("drifted by +")


def test_a_drift_is_said_with_its_size_and_noise_is_none(clock):
    noise = iter(np.random.default_rng(0).normal(1, 0.01, 1000))
    steps = (middle * next(noise) for middle in itertools.chain([0.01] * 60, itertools.repeat(0.012)))
    noted = sample(clock.thing(steps), Effort(slice_s=1.2, precision=0)).notes
    assert len(noted) == 1
    assert re.match(r"drifted by \+(19|20|21) ?%", noted[0])
    assert noted[0].endswith("while it was measured")
    noisy = itertools.cycle([0.01, 0.0104, 0.0096, 0.0102, 0.0098])
    assert sample(clock.thing(noisy), Effort(slice_s=1)).notes == []


def test_it_stops_when_the_interval_is_as_narrow_as_was_asked_for(clock):
    exact = sample(clock.thing(itertools.repeat(0.01)), Effort(slice_s=100))
    assert len(exact.seconds) == 8
    wide = sample(clock.thing(itertools.cycle([0.01, 0.02])), Effort(slice_s=2))
    assert sum(wide.seconds) == pytest.approx(2, abs=0.02)


def test_a_slow_thing_gets_the_least_number_of_samples_and_a_quick_one_the_most(clock):
    slow = sample(clock.thing(itertools.repeat(30.0)), Effort(slice_s=1))
    assert len(slow.seconds) == Effort().least
    noisy = itertools.cycle([0.01, 0.02])
    assert len(sample(clock.thing(noisy), Effort(slice_s=100, most=50)).seconds) == 50


def test_what_is_too_short_for_the_clock_is_done_several_times_a_sample(clock):
    clock.read_s = 1e-9
    found = sample(clock.thing(itertools.repeat(1e-5)), Effort(slice_s=0.1))
    assert found.calls == 100
    assert found.seconds[0] == pytest.approx(1e-5, rel=1e-3)
    assert len(clock.seen) == 2 + found.warm_up + found.calls * len(found.seconds)


@pytest.mark.parametrize("lasts", [0.01, 3e-4])
def test_inputs_are_taken_in_turn_so_that_none_is_fresh_in_a_cache(clock, lasts):
    inputs = [(name,) for name in "abcde"]
    sample(clock.thing(itertools.cycle([lasts, 1.1 * lasts])), Effort(slice_s=0.5, precision=0), inputs=inputs)
    assert len(clock.seen) > 20
    assert clock.seen == [inputs[i % 5] for i in range(len(clock.seen))]


def test_ways_of_one_thing_are_timed_in_turn(clock):
    order = []

    def way(name, lasts):
        def run():
            order.append(name)
            clock.now += lasts

        return run

    found = sample_in_turn({"slow": way("slow", 0.02), "fast": way("fast", 0.01)}, Effort(slice_s=0.2, precision=0))
    samples = len(found["slow"].seconds)
    assert samples == len(found["fast"].seconds)
    assert order[-2 * samples :] == ["slow", "fast"] * samples
    assert found["slow"].seconds[0] == pytest.approx(0.02)


def test_a_result_is_waited_for(clock):
    """A program that takes a while is not over when its call returns."""

    class Result:
        def block_until_ready(self):
            clock.now += 2.0
            return self

    found = sample(lambda: Result(), Effort(slice_s=10))
    assert set(found.seconds) == {2.0}
