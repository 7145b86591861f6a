"""Whether columns drifted: effects that a row count does not change, beside what chance makes of the same rows.

A difference of many rows is always significant, and that of few rows is never small. So a column has drifted only if
its effect is both: at least `LEAST_EFFECT`, and larger than the largest of all columns in each of 199 divisions of the
same rows by chance. By chance alone, that is one report in 200, however many columns there are and however they depend
on each other (Westfall and Young 1993, max-T; the level is exact as far as rows can be exchanged). Rows of a week's
parts are exchanged with those of the same part, so that a Monday is compared with Mondays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
from scipy.special import ndtri

Compared: TypeAlias = Literal["numbers", "lengths", "values", "missing"]

LEAST_ROWS = 100
"""Rows of each side, at least."""

MOST_ROWS = 20_000
"""Rows of each side that are compared. More find smaller effects than count."""

LEAST_EFFECT: Mapping[Compared, float] = {"numbers": 0.1, "lengths": 0.1, "values": 0.05, "missing": 0.05}

MISSING = ".missing"
"""After the name of a column of numbers: the share of rows without one."""

DIVISIONS = 199
BINS = 32
TAILS = (0.005, 0.995)
"""Quantiles in the first and the last bin: new values of one row in 200 have a bin of their own."""

LEAST_OF_VALUE = 5
"""Rows of a value. Rarer values are one."""

MOST_VALUES = 200
"""Distinct values of a column at most; the rarer ones count as one value."""


@dataclass(frozen=True)
class ColumnDrift:
    """How far a column is from the reference.

    Attributes:
        of: its numbers, the lengths of its texts in characters, the shares of its values, or of what is missing.
        effect: of numbers, the Wasserstein distance in standard deviations; of values, the total variation: the share
            of rows that would have to change; of missing ones, the difference of the shares.
        usual: the effect that 19 of 20 divisions of the same rows by chance stay below.
        least: the effect from which it counts.
        p: the share of divisions in which chance makes more of any column.
        drifted: whether the effect is at least `least`, and more than any that chance made.
        medians: of the reference and now; None for values.
        rows: that were compared, of each side.
    """

    column: str
    of: Compared
    effect: float
    usual: float
    least: float
    p: float
    drifted: bool
    medians: tuple[float, float] | None
    rows: tuple[int, int]


@dataclass(frozen=True)
class _Coded:
    """A column of all rows by number of bin, the missing ones last.

    Attributes:
        places: of the bins of numbers, in standard deviations; None for values.
    """

    codes: Any
    places: Any
    bins: int

    def effects(self, old: Any, new: Any) -> list[float]:
        """Of the shares of rows by bin."""
        if self.places is None:
            return [float(np.abs(new - old).sum() / 2)]
        there = 1 - old[-1], 1 - new[-1]
        moved = 0.0
        if min(there) > 1e-9:  # sums of shares are not exact
            difference = np.cumsum(new[:-1] / there[1] - old[:-1] / there[0])[:-1]
            moved = float(np.abs(difference) @ np.diff(self.places))
        return [moved, float(abs(new[-1] - old[-1]))]


def compare_columns(
    reference: Mapping[str, Sequence[Any] | Any],
    now: Mapping[str, Sequence[Any] | Any],
    parts: tuple[Any, Any] | None = None,
    *,
    lengths: Sequence[str] = (),
    least: Mapping[str, float] = MappingProxyType({}),
) -> tuple[ColumnDrift, ...]:
    """Compare the columns that both sides have, the largest effect for its least first.

    Args:
        reference: columns by name; numbers are arrays of floats in which NaN is missing, values lists of texts in which
            None is missing. At least `LEAST_ROWS` rows; more than `MOST_ROWS` take long.
        parts: the part of the week of each row, as whole numbers from 0, by side. Each part of now must have rows in
            the reference.
        lengths: names of columns of numbers that are the lengths of texts.
        least: effects of columns from which they count, instead of `LEAST_EFFECT`.
    """
    named: list[tuple[str, Compared]] = []
    coded: list[_Coded] = []
    medians: list[tuple[float, float] | None] = []
    for name in reference:
        if name not in now:
            continue
        sides = reference[name], now[name]
        if isinstance(sides[0], np.ndarray):
            coded.append(_numbers(*sides))
            medians += [tuple(_median(side) for side in sides), None]  # type: ignore[list-item]
            named += [(name, "lengths" if name in lengths else "numbers"), (name + MISSING, "missing")]
        else:
            coded.append(_values(*sides))
            medians.append(None)
            named.append((name, "values"))
    if not coded:
        return ()
    sizes = [len(next(iter(side.values()))) for side in (reference, now)]
    effects, chance = _against_chance(coded, sizes, parts)
    # The scale is that of all divisions with the true one, as if it were one of them: only so is the level exact.
    every = np.vstack([effects, chance])
    middle, spread = every.mean(0), every.std(0)
    spread[spread == 0] = np.inf  # a column of one value, of which chance makes nothing
    bounds = np.array([least.get(name, LEAST_EFFECT[of]) for name, of in named])
    # An effect that does not count is no alarm, and hides none: a single missing value is rare in its own scale.
    largest = np.where(chance > bounds, (chance - middle) / spread, -np.inf).max(1)
    exceeded = (largest[:, None] >= (effects - middle) / spread).sum(0)
    found = []
    for (name, of), effect, usual, count, median, bound in zip(
        named, effects, np.quantile(chance, 0.95, axis=0), exceeded, medians, bounds.tolist(), strict=True
    ):
        if of == "missing" and effect == 0 == usual:
            continue
        p = (1 + int(count)) / (1 + DIVISIONS)
        drifted = bool(effect > bound and count == 0)
        rows = (sizes[0], sizes[1])
        found.append(ColumnDrift(name, of, float(effect), float(usual), bound, p, drifted, median, rows))
    return tuple(sorted(found, key=lambda one: (not one.drifted, -one.effect / one.least)))


def _median(numbers: Any) -> float:
    there = numbers[np.isfinite(numbers)]
    return float(np.median(there)) if len(there) else float("nan")


def _numbers(reference: Any, now: Any) -> _Coded:
    """Bins of as many rows each; a bin's place is the normal quantile of its middle, so that no tail is too heavy."""
    numbers = np.concatenate([reference, now]).astype(float)
    there = np.isfinite(numbers)
    shares = np.sort([*TAILS, *np.linspace(0, 1, BINS + 1)[1:-1]])
    edges = np.unique(np.quantile(numbers[there], shares, method="lower")) if there.any() else np.zeros(1)
    codes = np.where(there, np.searchsorted(edges, numbers, "right"), len(edges) + 1)
    counts = np.bincount(codes, minlength=len(edges) + 2)[:-1].astype(float)
    middles = (np.cumsum(counts) - counts / 2) / max(1.0, float(counts.sum()))
    places: Any = np.maximum.accumulate(ndtri(np.clip(middles, 1e-9, 1 - 1e-9)))
    filled = counts > 0
    if filled.sum() > 1:
        center = np.average(places[filled], weights=counts[filled])
        places = places / np.sqrt(np.average((places[filled] - center) ** 2, weights=counts[filled]))
    return _Coded(codes, places, len(edges) + 2)


def _values(reference: Sequence[Any], now: Sequence[Any]) -> _Coded:
    counts = Counter((*reference, *now))
    kept = [value for value, count in counts.most_common(MOST_VALUES) if count >= LEAST_OF_VALUE]
    numbers = {value: number for number, value in enumerate(kept)}
    codes = np.array([numbers.get(value, len(kept)) for value in (*reference, *now)])
    return _Coded(codes, None, len(kept) + 1)


def _against_chance(coded: Sequence[_Coded], sizes: Sequence[int], parts: tuple[Any, Any] | None) -> tuple[Any, Any]:
    """The effects `[effects]`, and those of divisions by chance `[divisions, effects]`."""
    starts = np.cumsum([0, *(column.bins for column in coded)])
    rows = np.stack([column.codes + start for column, start in zip(coded, starts, strict=False)], 1).astype(np.int32)
    old, new = sizes
    part = np.concatenate(parts) if parts is not None else np.zeros(old + new, int)
    old_parts, new_parts = (np.bincount(one, minlength=int(part.max()) + 1) for one in (part[:old], part[old:]))
    # A row of the reference counts as much as the rows of now in its part of the week are more than its own.
    weights = np.divide(new_parts / new, old_parts, out=np.zeros(len(old_parts)), where=old_parts > 0)

    def shares(chosen: Any, weights: Any) -> Any:
        return np.bincount(rows[chosen].ravel(), np.repeat(weights[part[chosen]], len(coded)), int(starts[-1]))

    whole, each = shares(slice(None), weights), np.full(len(weights), 1 / new)

    def effects(chosen: Any) -> list[float]:
        now = shares(chosen, each)
        rest = whole - (now * new / old if len(weights) == 1 else shares(chosen, weights))
        pairs = ((column, slice(at, at + column.bins)) for column, at in zip(coded, starts, strict=False))
        return [effect for column, bins in pairs for effect in column.effects(rest[bins], now[bins])]

    draw = np.random.default_rng(0)
    of_part = [np.flatnonzero(part == one) for one in range(len(new_parts))]

    def divided() -> Any:
        drawn = zip(of_part, new_parts, strict=True)
        return np.concatenate([draw.choice(one, count, replace=False, shuffle=False) for one, count in drawn if count])

    return (
        np.array(effects(np.arange(old, old + new))),
        np.array([effects(divided()) for _ in range(DIVISIONS)]),
    )
