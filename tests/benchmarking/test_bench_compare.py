"""Comparisons and the gate, on reports that were made up: who is slower, who may be, who cannot be asked."""

import itertools

import numpy as np
import pytest
from bench_reports import CPU, H100, report

from aifx.benchmarking.compare import FAMILY, compare, gate, launches_for, least_p, side
from aifx.benchmarking.fingerprint import Fingerprint
from aifx.benchmarking.results import Measured, Report, Request, Result


def thing(name, *medians, **params):
    """A result of a launch a median."""
    return Result.of([Measured(name=name, params=params, samples_s=[m, 0.999 * m, 1.001 * m]) for m in medians])


def around(middle, count=5, step=0.002):
    return [middle * (1 + step * (i - count // 2)) for i in range(count)]


def verdicts(before, after):
    return {c.after.title: c.verdict for c in compare(report(*before), report(*after)).results}


def test_verdicts():
    before = [thing(f"train.{name}", *around(1.0)) for name in ("same", "slower", "faster", "few", "noisy")]
    after = [
        thing("train.same", *around(1.001)),
        thing("train.slower", *around(1.02)),
        thing("train.faster", *around(0.9)),
        thing("train.few", *around(2.0, count=4)),
        thing("train.noisy", 0.7, 0.9, 1.05, 1.3, 1.4),
    ]
    assert verdicts(before, after) == {
        "train.same": "same",
        "train.slower": "slower",
        "train.faster": "faster",
        "train.few": "unsure",
        "train.noisy": "unsure",
    }
    found = {c.after.name: c for c in compare(report(*before), report(*after)).results}
    assert found["train.few"].why.startswith("5 and 4 launches")
    assert found["train.noisy"].why.startswith("noise: -3")
    assert found["train.slower"].change.ratio == pytest.approx(1.02)
    assert found["train.slower"].change.p == pytest.approx(1 / 252)


def test_a_difference_that_came_out_below_zero_is_no_regression():
    before, after = report(thing("train.rest", *around(-0.001))), report(thing("train.rest", *around(0.002)))
    found = gate(before, after, 0.05)
    assert not found.regressed
    assert (found.compared.results[0].verdict, found.compared.results[0].change.p) == ("unsure", None)
    wide = compare(report(thing("train.rest", -2, -1, 1, 2, 3)), report(thing("train.rest", *around(1.0))))
    assert wide.results[0].verdict == "unsure"


def test_things_are_known_by_name_and_params_and_what_one_alone_has_is_told():
    before = report(thing("a.x", *around(1), size=1), thing("a.x", *around(1), size=2), thing("b.y", *around(1)))
    after = report(thing("a.x", *around(1), size=2), thing("a.x", *around(1), size=3), thing("b.y", *around(1)))
    found = compare(before, after)
    assert [c.after.title for c in found.results] == ["a.x 2", "b.y"]
    assert [r.title for r in found.only_before] == ["a.x 1"]
    assert [r.title for r in found.only_after] == ["a.x 3"]
    only = compare(before, after, ("b",))
    assert [c.after.title for c in only.results] == ["b.y"]
    assert not only.only_before


def test_what_else_differs_is_told():
    before, after = report(thing("a.x", 1.0)), report(thing("a.x", 1.0), commit="cccc000011")
    after = after.model_copy(update={"request": Request(suites=["a"], quick=True, options={"set": ["train.seed=1"]})})
    assert compare(before, after).differences == [
        "commit: 3f2a9c1d -> cccc0000", "quick: False -> True", "set: None -> ['train.seed=1']",
    ]  # fmt: skip


def test_a_gate_fails_beyond_its_bound_and_not_below_it():
    before = report(thing("train.step", *around(1.0)))
    for ratio, fails in ((1.10, True), (1.06, True), (1.04, False), (1.0, False), (0.5, False)):
        found = gate(before, report(thing("train.step", *around(ratio))), 0.05)
        assert bool(found.regressed) == fails, ratio
        assert found.document(side(before, "main"), side(before, "now"))["passed"] != fails
    assert gate(before, report(thing("train.step", *around(1.04))), 0.03).regressed


def test_a_slowdown_that_may_be_chance_fails_no_gate():
    before = report(thing("train.step", 0.9, 0.97, 1.0, 1.08, 1.15))
    found = gate(before, report(thing("train.step", 1.0, 1.02, 1.2, 1.25, 1.3)), 0.05)
    assert found.compared.results[0].change.ratio == pytest.approx(1.2)
    assert not found.regressed
    assert not found.suspected


def many(count, *, launches=5, slower=1.0):
    """A report of things that are alike, but for the first."""
    return report(
        thing("k.op", *around(slower, launches), case=0),
        *(thing("k.op", *around(1, launches), case=i) for i in range(1, count)),
    )


@pytest.mark.slow
def test_among_many_a_slowdown_that_so_few_launches_cannot_tell_from_chance_is_suspected():
    few = gate(many(25), many(25, slower=1.2), 0.05)
    assert [c.after.params["case"] for c in few.regressed] == [0]
    found = gate(many(100), many(100, slower=1.2), 0.05)
    assert not found.regressed
    assert [c.after.params["case"] for c in found.undecided] == [0]
    assert found.launches == launches_for(5, FAMILY / 100) == 8
    decided = gate(many(100), many(100, slower=1.2, launches=found.launches), 0.05)
    assert [c.after.params["case"] for c in decided.regressed] == [0]


def test_a_measurement_that_stands_at_two_places_is_compared_once():
    def told(middle):
        step = thing("train.step", *around(middle))
        own = {"name": "train.growth", "params": {"axis": "batch"}, "same_as": step.key}
        return report(step, step.model_copy(update=own))

    assert [c.after.name for c in gate(told(1.0), told(1.2), 0.05).regressed] == ["train.step"]
    alone = gate(told(1.0), told(1.2), 0.05, ("train.growth",))
    assert [c.after.name for c in alone.regressed] == ["train.growth"]


def test_holms_steps_let_the_many_follow_the_one():
    """Where much is slower, what is left to be asked is less: 1/252 is below 0.1 / 25 and not below 0.1 / 26."""
    before, slow = many(26), around(1.2)
    after = report(*(thing("k.op", *(slow if case < 5 else around(1)), case=case) for case in range(26)))
    assert len(gate(before, after, 0.05).regressed) == 0
    longer = report(
        *(
            thing("k.op", *(around(1.2, 6 if case == 0 else 5) if case < 5 else around(1)), case=case)
            for case in range(26)
        )
    )
    assert len(gate(before, longer, 0.05).regressed) == 5


@pytest.mark.parametrize(("first", "second"), [(5, 5), (5, 6), (6, 7)])
def test_the_least_p_is_that_of_sides_that_do_not_overlap(first, second):
    found = compare(report(thing("a", *around(1, first))), report(thing("a", *around(3, second)))).results[0]
    assert found.change.p == pytest.approx(least_p(first, second))
    orders = sum(1 for _ in itertools.combinations(range(first + second), first))
    assert least_p(first, second) == 1 / orders


@pytest.mark.slow
def test_a_gate_over_many_things_that_did_not_change_stays_silent():
    """25 things, scattered by 4 %, asked 8 times: of 200 comparisons at 1 % some do seem slower."""
    random = np.random.default_rng(7)

    def drawn() -> Report:
        medians = 1 + 0.04 * random.standard_normal((25, 9))
        return report(*(thing("k.op", *row, case=case) for case, row in enumerate(medians.tolist())))

    asked = [gate(drawn(), drawn(), 0.02) for _ in range(8)]
    assert sum(bool(found.suspected) for found in asked) >= 1
    assert not any(found.regressed for found in asked)


def test_hardware_must_be_the_same_and_the_rest_is_told():
    print_ = report().fingerprint
    assert print_.obstacles(print_) == []
    other = report(machine=H100).fingerprint
    assert print_.obstacles(other) == [
        "platform: cpu and gpu", "device_kind: cpu and NVIDIA H100 80GB HBM3", "num_devices: 1 and 8",
    ]  # fmt: skip
    changed = Fingerprint(
        hardware=CPU | {"host": "node-8", "driver": "570"},
        versions={"python": "3.13.1", "jax": "0.12.1"},
        flags={},
        clocks={"governor": "performance"},
        git={"commit": "3f2a9c1d00", "branch": "x", "dirty": True},
    )
    assert print_.obstacles(changed) == []
    assert print_.differences(changed) == [
        "host: node-7 -> node-8", "driver: None -> 570", "jax: 0.12.0 -> 0.12.1", "XLA_FLAGS: --xla_a=1 -> unset",
        "governor: unset -> performance", "commit: 3f2a9c1d -> 3f2a9c1d+",
    ]  # fmt: skip
