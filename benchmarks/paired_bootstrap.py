"""How often `aifx eval --against` is wrong: draws of groups from the rows of two real runs.

    python benchmarks/paired_bootstrap.py RUN OTHER [--metric bits_per_byte] [--groups 50 300] [--draws 1000]
    python benchmarks/paired_bootstrap.py --sums tests/evaluation/paragraphs_of_two_runs.npz

Each draw takes groups with replacement from those of the two runs' test splits. Without a difference, the scores of the
second run are moved by the difference of all rows, so that each verdict is false. With a difference, they are moved so
that it is 3.3 standard errors, which are those of the draws' estimates. It prints for each kind of interval and each
number of groups how often the first was found better, and worse, at 95 % two-sided: 2.5 % each is the level. The row
"best" is none that a comparison could have: its critical value is the one that finds a false "better", and a false
"worse", in exactly 3.5 % of these draws. Nor is "known": the normal interval with the standard error over all draws.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm
from scipy.stats import t as student_t

from aifx.core.project import open_run
from aifx.evaluation.against import Answers
from aifx.evaluation.resampling import difference_interval, resampled

ALPHA = 0.05
SHIFT = 3.3
MOST_FALSE = 0.035

Ends = tuple[float, float]


def student(first: np.ndarray, second: np.ndarray) -> Ends:
    found = difference_interval(first, second, ALPHA)
    return found.low, found.high


def values_and_errors(moments: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """The difference and its standard error by the delta method (Cochran, Sampling techniques, 1977, section 6.3).

    Args:
        moments: sums over groups of `moments_of`.
    """
    total, weight, squares, products, weights = np.moveaxis(moments, -1, 0)
    value = total / weight
    square = np.maximum(squares - 2 * value * products + value**2 * weights, 0.0)
    return value, np.sqrt(square * groups / (groups - 1)) / weight


def moments_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The difference and the weight of each group, and their products. The weights of both runs are the same."""
    total, weight = first[:, 0] - second[:, 0], first[:, 1]
    return np.stack([total, weight, total**2, total * weight, weight**2], axis=1)


def normal(first: np.ndarray, second: np.ndarray) -> Ends:
    value, error = values_and_errors(moments_of(first, second).sum(axis=0), len(first))
    half = float(norm.ppf(1 - ALPHA / 2) * error)
    return float(value) - half, float(value) + half


def resamples(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values_and_errors(np.concatenate(list(resampled(moments_of(first, second)))), len(first))


def percentile(first: np.ndarray, second: np.ndarray) -> Ends:
    low, high = np.quantile(resamples(first, second)[0], [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def studentized(first: np.ndarray, second: np.ndarray) -> Ends:
    """Bootstrap-t (Efron and Tibshirani, An introduction to the bootstrap, 1993, section 12.5)."""
    value, error = values_and_errors(moments_of(first, second).sum(axis=0), len(first))
    values, errors = resamples(first, second)
    low, high = np.quantile((values - value) / errors, [ALPHA / 2, 1 - ALPHA / 2])
    return float(value - high * error), float(value - low * error)


def bca(first: np.ndarray, second: np.ndarray) -> Ends:
    """Bias-corrected and accelerated (Efron, Better bootstrap confidence intervals, JASA 82, 1987)."""
    values, moments = resamples(first, second)[0], moments_of(first, second)
    value = moments[:, 0].sum() / moments[:, 1].sum()
    without = moments.sum(axis=0) - moments
    left_out = without[:, 0] / without[:, 1]
    away = left_out.mean() - left_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    bias = norm.ppf(np.mean(values < value))
    z = bias + norm.ppf([ALPHA / 2, 1 - ALPHA / 2])
    low, high = np.quantile(values, norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def basic(first: np.ndarray, second: np.ndarray) -> Ends:
    value, (low, high) = (
        values_and_errors(moments_of(first, second).sum(axis=0), len(first))[0],
        percentile(first, second),
    )
    return float(2 * value) - high, float(2 * value) - low


def transformed(first: np.ndarray, second: np.ndarray) -> Ends:
    """Student's t without its skew (Hall, On the removal of skewness by transformation, JRSS B 54, 1992)."""
    groups, moments = len(first), moments_of(first, second)
    value, error = values_and_errors(moments.sum(axis=0), groups)
    rest = moments[:, 0] - value * moments[:, 1]
    skew = float((rest**3).mean() / (rest**2).mean() ** 1.5) / groups**0.5 or 1e-9
    z = student_t.ppf([1 - ALPHA / 2, ALPHA / 2], groups - 1)
    low, high = value - error * 3 / skew * (np.cbrt(1 + skew * (z - skew / 6)) - 1)
    return float(low), float(high)


def likelihood(first: np.ndarray, second: np.ndarray) -> Ends:
    """Empirical likelihood (Owen, Empirical likelihood, 2001, section 2.9), with a quantile of Student's t."""
    groups, moments = len(first), moments_of(first, second)
    value, error = values_and_errors(moments.sum(axis=0), groups)
    most = float(student_t.ppf(1 - ALPHA / 2, groups - 1) ** 2)

    def distance(end: float) -> float:
        rest = moments[:, 0] - end * moments[:, 1]
        if rest.min() >= 0 or rest.max() <= 0:
            return math.inf
        edges = -1 / rest.max() * (1 - 1e-9), -1 / rest.min() * (1 - 1e-9)
        slope = brentq(lambda slope: (rest / (1 + slope * rest)).sum(), *edges)
        return float(2 * np.log1p(slope * rest).sum())

    def end(side: int) -> float:
        near, far = float(value), float(value + side * 10 * error)
        for _ in range(30):
            middle = (near + far) / 2
            near, far = (middle, far) if distance(middle) < most else (near, middle)
        return near

    return end(-1), end(1)


KINDS: dict[str, Callable[[np.ndarray, np.ndarray], Ends]] = {
    "student": student,
    "normal": normal,
    "studentized": studentized,
    "percentile": percentile,
    "bca": bca,
    "basic": basic,
    "transformed": transformed,
    "likelihood": likelihood,
}


LIMITS = ("best", "known")


def drawn_groups(first: np.ndarray, second: np.ndarray, groups: int, draws: int, seed: int = 1) -> list[np.ndarray]:
    """Draws of both runs' groups `[groups, 2, 2]`, of which neither run is better."""
    random = np.random.default_rng(seed)
    moved = second.copy()
    moved[:, 0] += (first - second)[:, 0].sum() / second[:, 1].sum() * second[:, 1]
    return [np.stack([first, moved], axis=1)[random.integers(len(first), size=groups)] for _ in range(draws)]


def rates(drawn: Sequence[np.ndarray], kind: str) -> tuple[float, float, float, float]:
    """How often the first has the greater value, and the lower one: both falsely, and then at SHIFT standard errors."""
    parts = [values_and_errors(moments_of(one[:, 0], one[:, 1]).sum(axis=0), len(one)) for one in drawn]
    values, errors = np.array(parts).T
    shift = SHIFT * values.std(ddof=1)
    if kind == "best":
        low = values - errors * np.quantile(values / errors, 1 - MOST_FALSE)
        high = values - errors * np.quantile(values / errors, MOST_FALSE)
    elif kind == "known":
        half = norm.ppf(1 - ALPHA / 2) * values.std(ddof=1)
        low, high = values - half, values + half
    else:
        low, high = np.array([KINDS[kind](one[:, 0], one[:, 1]) for one in drawn]).T
    # Moving all groups by a difference moves the ends of each of these intervals by the same.
    found = (low > 0, high < 0, low + shift > 0, high - shift < 0)
    above, below, found_above, found_below = (float(np.mean(one)) for one in found)
    return above, below, found_above, found_below


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("other", nargs="?")
    parser.add_argument("--sums", metavar="FILE.npz", help="Totals `first` and `second` and `weights` instead of runs.")
    parser.add_argument("--metric", default="bits_per_byte")
    parser.add_argument("--groups", type=int, nargs="+", default=[50, 300])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, *LIMITS], default=[*KINDS, *LIMITS])
    parser.add_argument("--save", metavar="FILE.npz", help="Keep the sums of the groups, for --sums.")
    asked = parser.parse_args(arguments)
    if asked.sums:
        with np.load(asked.sums) as saved:
            weights = saved["weights"].astype(np.float64)
            first, second = (np.stack([saved[name], weights], axis=1) for name in ("first", "second"))
        groups = asked.sums
    else:
        answers = [Answers.of(*open_run(run), None, None, None, ()) for run in (asked.run, asked.other)]
        pool = [one.sums(asked.metric) for one in answers]
        first, second = (sums[pool[0][:, 1] > 0] for sums in pool)
        groups = answers[0].groups.what
    if asked.save:
        np.savez_compressed(asked.save, first=first[:, 0], second=second[:, 0], weights=first[:, 1])
    print(f"{asked.metric}: {len(first):,} groups ({groups}) to draw from, {asked.draws:,} draws")
    print("| groups | interval | greater, falsely | lower, falsely | greater, found | lower, found |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for groups in asked.groups:
        drawn = drawn_groups(first, second, groups, asked.draws)
        for kind in asked.kinds:
            print(f"| {groups} | {kind} | {' | '.join(f'{rate:.1%}' for rate in rates(drawn, kind))} |", flush=True)


if __name__ == "__main__":
    main()
