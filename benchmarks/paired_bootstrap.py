"""How often `aifx eval --against` is wrong: draws of groups from the rows of two real runs.

    python benchmarks/paired_bootstrap.py RUN OTHER [--metric bits_per_byte] [--groups 50 100 300] [--draws 1000]

Each draw takes groups with replacement from those of the two runs' test splits. Without a difference, the scores of the
second run are moved by the difference of all rows, so that each verdict is false. With a difference, they are moved so
that it is 3.3 standard errors of such a draw. It prints for each kind of interval and each number of groups how often
the first was found better, and worse, at 95 % two-sided: 2.5 % each is the level. "rows" draws rows instead of groups.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import norm

from aifx.core.project import open_run
from aifx.evaluation import resampling
from aifx.evaluation.against import Answers
from aifx.evaluation.resampling import Interval, difference_interval

ALPHA = 0.05
SHIFT = 3.3

Interval_of = Callable[[np.ndarray, np.ndarray], tuple[float, float]]


def studentized(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    found: Interval = difference_interval(first, second, ALPHA)
    return found.low, found.high


def _resampled(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, float, float]:
    sums = np.stack([first, second], axis=1).reshape(len(first), -1)
    one, two = np.triu_indices(sums.shape[1])
    moments = np.concatenate([sums, sums[:, one] * sums[:, two]], axis=1)
    drawn = resampling._resampled(moments, 2, resampling.RESAMPLES)
    value, error = resampling._value_and_error(moments.sum(axis=0)[None], 2, len(sums))
    return np.concatenate([values for values, _ in drawn]), float(value[0]), float(error[0])


def normal(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    _, value, error = _resampled(first, second)
    half = float(norm.ppf(1 - ALPHA / 2)) * error
    return value - half, value + half


def percentile(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(_resampled(first, second)[0], [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def bca(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Bias-corrected and accelerated (Efron, Better bootstrap confidence intervals, JASA 82, 1987)."""
    values, value, _ = _resampled(first, second)
    without = [side.sum(axis=0) - side for side in (first, second)]
    left_out = without[0][:, 0] / without[0][:, 1] - without[1][:, 0] / without[1][:, 1]
    away = left_out.mean() - left_out
    acceleration = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    bias = norm.ppf(np.mean(values < value))
    z = bias + norm.ppf([ALPHA / 2, 1 - ALPHA / 2])
    low, high = np.quantile(values, norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


KINDS: dict[str, Interval_of] = {"studentized": studentized, "percentile": percentile, "bca": bca, "normal": normal}


def rates(
    first: np.ndarray, second: np.ndarray, groups: int, draws: int, of: Interval_of, shift: float = 0.0, seed: int = 1
) -> tuple[float, float]:
    """How often the first is found better, and worse, if less is better.

    Args:
        first, second: total and weight of each group to draw from, `[groups, 2]`.
        shift: the true difference in standard errors of a draw: how much better the first is.
    """
    random = np.random.default_rng(seed)
    whole, _, error = _resampled(first, second)[1], None, _resampled(first, second)[2]
    error *= np.sqrt(len(first) / groups)
    moved = second.copy()
    moved[:, 0] += (whole + shift * error) * moved[:, 1]
    better = worse = 0
    for _ in range(draws):
        drawn = random.integers(len(first), size=groups)
        low, high = of(first[drawn], moved[drawn])
        better += high < 0
        worse += low > 0
    return better / draws, worse / draws


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("other")
    parser.add_argument("--metric", default="bits_per_byte")
    parser.add_argument("--groups", type=int, nargs="+", default=[50, 100, 300])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    asked = parser.parse_args(arguments)
    answers = [Answers.of(*open_run(run), None, None, None, ()) for run in (asked.run, asked.other)]
    pool = [one.sums(asked.metric) for one in answers]
    kept = pool[0][:, 1] > 0
    first, second = (sums[kept] for sums in pool)
    print(f"{asked.metric}: {len(first):,} groups ({answers[0].groups.what}) to draw from, {asked.draws:,} draws")
    print("| groups | interval | better, false | worse, false | found at 3.3 SE |\n| ---: | --- | ---: | ---: | ---: |")
    for groups in asked.groups:
        for kind in asked.kinds:
            better, worse = rates(first, second, groups, asked.draws, KINDS[kind])
            found, _ = rates(first, second, groups, asked.draws, KINDS[kind], SHIFT)
            print(f"| {groups} | {kind} | {better:.1%} | {worse:.1%} | {found:.1%} |", flush=True)


if __name__ == "__main__":
    main()
