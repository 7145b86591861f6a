"""Intervals of a paired bootstrap over groups, verdicts, and the alpha that looks spend."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from aifx.evaluation.against import ALPHA, alpha_of_look, benefit, decide
from aifx.evaluation.resampling import Interval, difference_interval, ratio_interval
from aifx.evaluation.scores import Groups
from aifx.objectives.base import Ratio


def skewed_sums(groups: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models on unequal groups, whose difference per row is exponential with the mean 1."""
    random = np.random.default_rng(seed)
    weights = np.exp(random.normal(size=groups))
    base = weights * random.gamma(2.0, size=groups)
    better = base + weights * random.exponential(size=groups)
    return np.stack([better, weights], axis=1), np.stack([base, weights], axis=1)


def skewed_draws(groups: int, draws: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draws of groups of two real runs, moved so that neither is better.

    The runs are of 300 and of 40 steps on Moby Dick by paragraph, as docs/explanation/comparisons.md describes them. A
    group is a paragraph: the bits of both runs, and its bytes. Their differences have the skewness 2.1.
    """
    with np.load(Path(__file__).with_name("paragraphs_of_two_runs.npz")) as saved:
        one, other, weights = (saved[name].astype(np.float64) for name in ("first", "second", "weights"))
    other += (one - other).sum() / weights.sum() * weights
    pool = np.stack([np.stack([one, weights], axis=1), np.stack([other, weights], axis=1)], axis=1)
    random = np.random.default_rng(1)
    drawn = (pool[random.integers(len(pool), size=groups)] for _ in range(draws))
    return [(both[:, 0], both[:, 1]) for both in drawn]


def check_rates(groups: int, draws: int) -> None:
    """Check how often a difference is found that is none, and that is 3.3 standard errors, within 1 deviation."""
    found = [difference_interval(*sums) for sums in skewed_draws(groups, draws)]
    shift = 3.3 * np.std([one.value for one in found], ddof=1)
    false = [np.mean([one.low > 0 for one in found]), np.mean([one.high < 0 for one in found])]
    true = [np.mean([one.low > -shift for one in found]), np.mean([one.high < shift for one in found])]
    assert max(false) <= 0.035 + math.sqrt(0.035 * 0.965 / draws)
    assert np.mean(true) >= 0.90 - math.sqrt(0.9 * 0.1 / draws)


def test_a_difference_between_real_runs_is_found_if_it_is_there_and_not_if_it_is_none() -> None:
    check_rates(50, 100)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [50, 300])
def test_a_difference_between_real_runs_is_found_as_often_as_documented(groups: int) -> None:
    check_rates(groups, 1000)


def test_groups_that_both_models_answer_alike_do_not_make_an_interval_narrower() -> None:
    """Four of 100 groups differ, all in one direction: by chance that happens once in eight times."""
    base = np.stack([np.zeros(100), np.ones(100)], axis=1)
    better = base.copy()
    better[:4, 0] = 1.0
    found = difference_interval(better, base)
    assert found.low < 0 < found.value < found.high
    better[1:4, 0] = 0.0
    assert difference_interval(better, base).low == -math.inf


def test_the_standard_error_is_that_of_the_linearized_difference() -> None:
    first, second = skewed_sums(200, seed=1)
    parts = [(s[:, 0] - s[:, 1] * s[:, 0].sum() / s[:, 1].sum()) / s[:, 1].sum() for s in (first, second)]
    expected = math.sqrt(((parts[0] - parts[1]) ** 2).sum() * 200 / 199)
    assert difference_interval(first, second).error == pytest.approx(expected, rel=0.1)
    assert ratio_interval(first[:, 0], first[:, 1]).value == pytest.approx(first[:, 0].sum() / first[:, 1].sum())


def test_rows_of_one_group_count_as_one() -> None:
    """Each group's rows have the same error: as rows they would be too sure."""
    random = np.random.default_rng(0)
    codes = np.repeat(np.arange(40), 25)
    shared = random.normal(0.2, 1.0, 40)[codes]
    one, other = Ratio(shared + 1, np.ones(1000)), Ratio(np.ones(1000), np.ones(1000))
    patients, rows = Groups("patient", tuple(map(str, range(40))), codes), Groups("row", (), None)
    assert patients.sums(one).shape == (40, 2)
    assert patients.sums(one).sum() == pytest.approx(rows.sums(one).sum())
    by_patient, by_row = (difference_interval(of.sums(one), of.sums(other)) for of in (patients, rows))
    assert by_patient.low < 0 < by_row.low


def test_models_that_answer_alike_differ_by_nothing() -> None:
    first, _ = skewed_sums(50, seed=0)
    assert difference_interval(first, first) == Interval(0.0, 0.0, 0.0, 0.0)
    assert decide(difference_interval(first, first), 50, None) == ("inconclusive", None)
    assert decide(difference_interval(first, first), 50, 0.0) == ("not worse", None)


@pytest.mark.parametrize(
    ("low", "value", "high", "margin", "verdict"),
    [
        (0.1, 0.2, 0.3, None, "better"),
        (-0.3, -0.2, -0.1, None, "worse"),
        (-0.1, 0.1, 0.3, None, "inconclusive"),
        (-0.1, 0.1, 0.3, 0.2, "not worse"),
        (-0.3, -0.2, -0.1, 0.4, "not worse"),
        (-0.3, -0.2, -0.1, 0.25, "worse"),
    ],
)
def test_verdicts(low: float, value: float, high: float, margin: float | None, verdict: str) -> None:
    assert decide(Interval(value, low, high, 0.1), 100, margin)[0] == verdict


def test_an_inconclusive_verdict_says_how_many_more_groups_would_decide() -> None:
    """An interval of twice the estimate needs four times the groups."""
    assert decide(Interval(0.1, -0.1, 0.3, 0.1), 100, None) == ("inconclusive", 300)
    assert decide(Interval(-0.1, -0.3, 0.1, 0.1), 100, None) == ("inconclusive", 300)
    assert decide(Interval(0.0, -0.2, 0.2, 0.1), 100, 0.1) == ("inconclusive", 300)
    assert decide(Interval(0.1, -math.inf, math.inf, 0.1), 100, None) == ("inconclusive", None)


def test_less_is_better_of_a_loss() -> None:
    first, second = skewed_sums(40, seed=3)
    more, less = benefit(first, second, "max", 0.05), benefit(first, second, "min", 0.05)
    assert (less.value, less.low, less.high) == (-more.value, -more.high, -more.low)
    assert more.low > 0


def test_all_looks_together_spend_alpha() -> None:
    spent = sum(map(alpha_of_look, range(1, 100_000)))
    assert 0.99 * ALPHA < spent < ALPHA
    assert alpha_of_look(1) > alpha_of_look(2) > alpha_of_look(12) > 0
