"""More launches where few are not enough: of a baseline, and of a gate in doubt."""

import itertools

import pytest
from bench_reports import report

from aifx.benchmarking.adaptive import until_decided, until_quiet
from aifx.benchmarking.compare import side
from aifx.benchmarking.results import Failure, Measured, Result
from aifx.benchmarking.store import MAX_NOISE, too_noisy

FIVE = {"train": 5}
APART = (0.0, 0.07, -0.06, 0.04, -0.03, 0.09, -0.08, 0.02, -0.01, 0.05)


class Machine:
    """Launches of train.step by turns off by `offs`; notes what it was asked for."""

    def __init__(self, middle, offs):
        self.asked = []
        self._seen = (middle * (1 + off) for off in itertools.cycle(offs))
        self._made = []

    def __call__(self, results, counts):
        self.asked.append(([result.name for result in results], counts["train"]))
        self._made += [Measured(name="train.step", samples_s=[next(self._seen)] * 3) for _ in range(counts["train"])]
        return report(Result.of(self._made)).model_copy(update={"launches": len(self._made)})


def test_a_quiet_report_needs_no_more():
    machine = Machine(1.0, (0.0, 0.01, -0.01))
    first = machine([], FIVE)
    assert until_quiet(first, machine, MAX_NOISE) is first


def test_a_noisy_one_is_doubled_until_it_is_quiet_enough():
    machine = Machine(1.0, APART)
    quiet = until_quiet(machine([], FIVE), machine, MAX_NOISE)
    assert not too_noisy(quiet, MAX_NOISE)
    assert machine.asked[1:] == [(["train.step"], 5), (["train.step"], 10)]
    assert (quiet.launches, len(quiet.results[0].samples_s)) == (20, 20)


@pytest.mark.parametrize("most", [5, 12, 20])
def test_one_that_stays_noisy_has_the_most_launches_and_no_more(most):
    machine = Machine(1.0, (-0.4, 0.4))
    noisy = until_quiet(machine([], FIVE), machine, MAX_NOISE, most)
    assert too_noisy(noisy, MAX_NOISE)
    assert sum(count for _, count in machine.asked) == noisy.launches == most


def test_a_launch_that_fails_is_the_last():
    machine = Machine(1.0, APART)
    first = machine([], FIVE)
    broken = machine([], {"train": 3}).model_copy(update={"failure": Failure(what="train ended before its time")})
    assert until_quiet(first, lambda results, counts: broken, MAX_NOISE) is broken
    after, _ = until_decided(first, broken, 0.05, (), lambda results, counts: pytest.fail("asked for more"))
    assert after is broken


@pytest.mark.parametrize(
    ("slower", "regressed"),
    [
        (1.00, False),
        (1.03, False),  # quiet enough to tell that it is within the bound
        (1.10, True),
    ],
)
def test_a_quiet_gate_answers_at_once(slower, regressed):
    before = Machine(1.0, (0.0, 0.004, -0.004))([], FIVE)
    machine = Machine(slower, (0.0, 0.004, -0.004))
    after, gated = until_decided(before, machine([], FIVE), 0.05, (), machine)
    assert bool(gated.regressed) == regressed
    assert len(machine.asked) == 1
    assert after.launches == 5


def test_an_inconclusive_gate_asks_for_more_until_it_can_tell():
    before = Machine(1.0, APART)([], {"train": 10})
    machine = Machine(1.08, APART)
    after, gated = until_decided(before, machine([], FIVE), 0.05, (), machine)
    assert [found.after.name for found in gated.regressed] == ["train.step"]
    assert machine.asked[1] == (["train.step"], 5)
    assert after.launches == 10


def test_what_stays_inconclusive_is_reported_as_such():
    before = Machine(1.0, APART)([], {"train": 10})
    machine = Machine(1.045, APART)
    after, gated = until_decided(before, machine([], FIVE), 0.05, (), machine)
    assert after.launches == 20
    assert not gated.regressed
    assert [found.after.name for found in gated.inconclusive] == ["train.step"]
    told = gated.document(side(before, "main"), side(after, "now"))
    assert (told["passed"], told["results"][0]["regressed"], told["results"][0]["inconclusive"]) == (True, False, True)


def test_a_baseline_that_no_launches_could_be_told_from_asks_for_none():
    before = Machine(1.0, (-0.3, 0.3, 0.0))([], FIVE)
    machine = Machine(1.1, APART)
    assert not until_decided(before, machine([], FIVE), 0.05, (), machine)[1].inconclusive
    assert len(machine.asked) == 1


def test_launches_that_leave_out_what_is_inconclusive_are_not_repeated_for_ever():
    asked = []

    def nothing(results, counts):
        asked.append(counts)
        return noisy

    noisy = Machine(1.0, (-0.4, 0.4))([], FIVE)
    assert until_quiet(noisy, nothing, MAX_NOISE) is noisy
    assert asked == [{"train": 5}]


def test_each_suite_has_as_many_again_as_it_has_and_no_more_than_the_most():
    def scattered(name, count):
        return Result.of([Measured(name=name, samples_s=[1 + 0.4 * (-1) ** i] * 3) for i in range(count)])

    have, asked = {"train": 5, "data": 16, "startup": 20}, []

    def more(results, counts):
        asked.append(({result.name for result in results}, counts))
        have.update({suite: have[suite] + count for suite, count in counts.items()})
        return made()

    def made():
        return report(*(scattered(f"{suite}.x", count) for suite, count in have.items()))

    until_quiet(made(), more, MAX_NOISE)
    assert asked == [({"train.x", "data.x"}, {"train": 5, "data": 4}), ({"train.x"}, {"train": 10})]
    assert have == {"train": 20, "data": 20, "startup": 20}
