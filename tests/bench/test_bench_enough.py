"""More launches where few are not enough: of a baseline, and of a gate in doubt."""

import itertools

import pytest
from bench_reports import report

from aifx.bench.enough import until_quiet, until_told
from aifx.bench.results import Failure, Measured, Result
from aifx.bench.store import MAX_NOISE, too_noisy

APART = (0.0, 0.07, -0.06, 0.04, -0.03, 0.09, -0.08, 0.02, -0.01, 0.05)


class Machine:
    """Launches of train.step by turns off by `offs`; notes what it was asked for."""

    def __init__(self, middle, offs):
        self.asked = []
        self._seen = (middle * (1 + off) for off in itertools.cycle(offs))

    def __call__(self, results, count):
        self.asked.append(([result.name for result in results], count))
        made = [Measured(name="train.step", samples_s=[next(self._seen)] * 3) for _ in range(count)]
        return report(Result.of(made)).model_copy(update={"launches": count})


def test_a_quiet_report_needs_no_more():
    machine = Machine(1.0, (0.0, 0.01, -0.01))
    first = machine([], 5)
    assert until_quiet(first, machine, MAX_NOISE) is first


def test_a_noisy_one_is_doubled_until_it_is_quiet_enough():
    machine = Machine(1.0, APART)
    quiet = until_quiet(machine([], 5), machine, MAX_NOISE)
    assert not too_noisy(quiet, MAX_NOISE)
    assert machine.asked[1:] == [(["train.step"], 5), (["train.step"], 10)]
    assert (quiet.launches, len(quiet.results[0].samples_s)) == (20, 20)


@pytest.mark.parametrize("most", [5, 12, 20])
def test_one_that_stays_noisy_has_the_most_launches_and_no_more(most):
    machine = Machine(1.0, (-0.4, 0.4))
    noisy = until_quiet(machine([], 5), machine, MAX_NOISE, most)
    assert too_noisy(noisy, MAX_NOISE)
    assert sum(count for _, count in machine.asked) == noisy.launches == most


def test_a_launch_that_fails_is_the_last():
    first = Machine(1.0, APART)([], 5)
    broken = first.model_copy(update={"failure": Failure(what="train ended before its time")})
    ended = until_quiet(first, lambda results, count: broken, MAX_NOISE)
    assert ended.failure == broken.failure
    assert ended.launches == 10
    after, _ = until_told(first, broken, 0.05, (), lambda results, count: pytest.fail("asked for more"))
    assert after is broken


@pytest.mark.parametrize(
    ("slower", "regressed", "rounds"),
    [
        (1.00, False, []),
        (1.03, False, []),  # quiet enough to tell that it is within the bound
        (1.10, True, []),
    ],
)
def test_a_quiet_gate_answers_at_once(slower, regressed, rounds):
    before = Machine(1.0, (0.0, 0.004, -0.004))([], 5)
    machine = Machine(slower, (0.0, 0.004, -0.004))
    after, gated = until_told(before, machine([], 5), 0.05, (), machine)
    assert bool(gated.regressed) == regressed
    assert machine.asked[1:] == rounds
    assert after.launches == 5


def test_a_gate_in_doubt_asks_for_more_until_it_can_tell():
    before = Machine(1.0, APART)([], 10)
    machine = Machine(1.08, APART)
    after, gated = until_told(before, machine([], 5), 0.05, (), machine)
    assert [found.after.name for found in gated.regressed] == ["train.step"]
    assert machine.asked[1] == (["train.step"], 5)
    assert after.launches == 10


def test_what_stays_in_doubt_is_told_as_such():
    before = Machine(1.0, APART)([], 10)
    machine = Machine(1.045, APART)
    after, gated = until_told(before, machine([], 5), 0.05, (), machine)
    assert after.launches == 20
    assert not gated.regressed
    assert [found.after.name for found in gated.doubtful] == ["train.step"]


def test_a_baseline_that_no_launches_could_be_told_from_asks_for_none():
    before = Machine(1.0, (-0.3, 0.3, 0.0))([], 5)
    machine = Machine(1.1, APART)
    assert not until_told(before, machine([], 5), 0.05, (), machine)[1].doubtful
    assert len(machine.asked) == 1
