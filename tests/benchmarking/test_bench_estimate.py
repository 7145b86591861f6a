"""Medians with intervals, against SciPy's bootstrap, and the test of a difference, against all orders there are."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from aifx.benchmarking.estimate import LEAST_LAUNCHES, change, estimate

SECONDS = st.floats(1e-7, 1e3)
few = settings(max_examples=25)
LAUNCHES = st.lists(st.lists(SECONDS, min_size=1, max_size=12), min_size=1, max_size=7)


def launches(median, scatter, within, *, count, samples, random):
    """Launches whose own medians scatter, and samples around each."""
    middles = median * (1 + scatter * random.standard_normal(count))
    return [(middle * (1 + within * random.standard_normal(samples))).tolist() for middle in middles]


@pytest.mark.parametrize(("draw", "count"), [("standard_normal", 40), ("standard_exponential", 25), ("random", 2)])
def test_the_interval_of_one_launch_is_that_of_scipys_percentile_bootstrap(draw, count):
    samples = 5 + getattr(np.random.default_rng(3), draw)(count)
    known = scipy.stats.bootstrap(
        (samples,), np.median, method="percentile", n_resamples=10000, rng=np.random.default_rng(1)
    ).confidence_interval
    found = estimate([samples.tolist()])
    assert found.median == np.median(samples)
    width = known.high - known.low
    assert found.low == pytest.approx(known.low, abs=0.1 * width)
    assert found.high == pytest.approx(known.high, abs=0.1 * width)


def test_launches_that_differ_widen_the_interval_however_many_samples_they_have():
    """One long launch does not show how launches differ."""
    random = np.random.default_rng(0)
    apart = launches(1.0, 0.05, 0.001, count=5, samples=400, random=random)
    found = estimate(apart)
    middles = sorted(np.median(launch) for launch in apart)
    assert found.low == pytest.approx(middles[0], rel=0.002)
    assert found.high == pytest.approx(middles[-1], rel=0.002)
    pooled = estimate([list(itertools.chain(*apart))])
    assert found.high - found.low > 2 * (pooled.high - pooled.low)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """95 %, less what a bootstrap of seven launches is known to fall short by; three standard deviations of 200."""
    random = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        found = estimate(launches(1.0, 0.03, 0.02, count=7, samples=9, random=random))
        hits += found.low <= 1.0 <= found.high
    assert hits >= 200 * (0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5)


@few
@given(LAUNCHES)
def test_an_interval_lies_within_what_was_seen_around_its_median(seen):
    found = estimate(seen)
    everything = list(itertools.chain(*seen))
    assert min(everything) <= found.low <= found.high <= max(everything)
    assert found.low <= found.median * (1 + 1e-12)
    assert found.median <= found.high * (1 + 1e-12)


@few
@given(LAUNCHES, st.sampled_from([0.5, 4.0, 1024.0]))
def test_the_unit_does_not_matter(seen, factor):
    found, scaled = estimate(seen), estimate([[factor * value for value in launch] for launch in seen])
    assert (scaled.median, scaled.low, scaled.high) == (factor * found.median, factor * found.low, factor * found.high)


@few
@given(LAUNCHES)
def test_a_thing_is_as_fast_as_itself(seen):
    found = change(seen, seen)
    assert found.ratio == 1
    assert found.low <= 1 <= found.high
    assert not found.is_significant


@pytest.mark.parametrize("counts", [(5, 5), (5, 7), (6, 5)])
def test_p_is_the_share_of_all_orders_that_are_as_extreme(counts):
    """Mann-Whitney, by its definition: each way of dealing the values out to the sides is as likely."""
    random = np.random.default_rng(sum(counts))
    for shift in (0.9, 1.0, 1.02, 1.05):
        first, second = random.normal(1, 0.03, counts[0]), shift * random.normal(1, 0.03, counts[1])
        found = change([[value] for value in first], [[value] for value in second])
        both = np.concatenate([first, second])

        def wins(chosen, both=both):
            others = np.delete(both, list(chosen))
            return (both[list(chosen), None] > others).sum()

        seen = wins(range(counts[0], sum(counts)))
        dealt = [wins(chosen) for chosen in itertools.combinations(range(sum(counts)), counts[1])]
        as_extreme = [w >= seen if found.ratio >= 1 else w <= seen for w in dealt]
        assert found.p == pytest.approx(np.mean(as_extreme))


def test_five_launches_apart_are_significant_and_four_can_never_be():
    slow, fast = [[1.2]] * 3 + [[1.21]] * 2, [[1.0]] * 3 + [[1.01]] * 2
    assert LEAST_LAUNCHES == 5
    assert change(fast, slow).is_significant
    assert change(slow, fast).is_significant
    assert change(fast[:4], slow).p is None
    assert not change(fast[:4], slow).is_significant


def test_values_that_are_all_one_are_no_change():
    found = change([[0.5]] * 5, [[0.5]] * 6)
    assert (found.ratio, found.low, found.high) == (1, 1, 1)
    assert not found.is_significant
