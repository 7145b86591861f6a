"""Distances of the values of a version from those of another.

Two measures, neither of which is a verdict. PSI, the population stability index over ten bins with as many rows each,
misses small shifts: a shift of 0.2 standard deviations stays below the usual bound of 0.1. The Kolmogorov-Smirnov
distance D is the largest difference of the two distribution functions. Its p-value is not used: with many rows, a
difference of no importance is significant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from aifx.curation.profile import Profile
from aifx.data.names import CHAT, RESERVED, ROW, SPLIT
from aifx.data.versions.manifest import Version
from aifx.data.versions.sql import RowTable, identifier, open_tables

SAMPLE_ROWS = 100_000
BINS = 10
LEAST_ROWS = 100
"""Of each version. The measures of fewer are noise."""

Compared: TypeAlias = Literal["numbers", "lengths", "values"]

_NUMBERS = ("int", "uint", "float", "double", "halffloat", "decimal")


@dataclass(frozen=True)
class ColumnDrift:
    """The distance of a column between two versions.

    Attributes:
        of: its numbers, the lengths of its texts in characters, or the shares of its values.
        psi: population stability index.
        ks: Kolmogorov-Smirnov distance; None for values.
        rows: that were compared, of each version.
        medians: None for values.
    """

    column: str
    of: Compared
    psi: float
    ks: float | None
    rows: tuple[int, int]
    medians: tuple[float, float] | None


def measure_drift(before: Version, after: Version, profiles: tuple[Profile, Profile]) -> tuple[ColumnDrift, ...]:
    """The drift of each column that both versions have, the largest first; none of columns of fewer than 100 rows."""
    found = [*_numbers(before, after), *_values(profiles)]
    return tuple(sorted(found, key=lambda one: -one.psi))


def _numbers(before: Version, after: Version) -> list[ColumnDrift]:
    columns: dict[str, tuple[str, Compared]] = {}
    for name, kind in before.manifest.columns.items():
        if name in RESERVED or after.manifest.columns.get(name) != kind:
            continue
        if kind.startswith(_NUMBERS):
            columns[name] = (f"{identifier(name)}::DOUBLE", "numbers")
        elif name == (CHAT if before.manifest.kind == "chat" else "text"):
            columns[name] = (f"length({name})::DOUBLE", "lengths")
    if not columns:
        return []
    samples = [_sample(version, [sql for sql, _ in columns.values()]) for version in (before, after)]
    found = []
    for (name, (_, of)), old, new in zip(columns.items(), *samples, strict=True):
        if min(len(old), len(new)) >= LEAST_ROWS:
            medians = (float(np.median(old)), float(np.median(new)))
            edges = np.unique(np.quantile(old, np.linspace(0, 1, BINS + 1)[1:-1]))
            counts = [np.bincount(np.searchsorted(edges, one, "right"), minlength=len(edges) + 1) for one in (old, new)]
            found.append(ColumnDrift(name, of, psi(*counts), ks(old, new), (len(old), len(new)), medians))
    return found


def _sample(version: Version, expressions: Sequence[str]) -> list[Any]:
    """The finite values of each expression, of the same rows in every version that has them."""
    every = max(1, version.manifest.rows // SAMPLE_ROWS)
    with open_tables({"data": RowTable(version)}) as connection:
        sql = f"SELECT {', '.join(f'{sql} AS c{n}' for n, sql in enumerate(expressions))} FROM data"
        table = connection.execute(f"{sql} WHERE hash({ROW}) % {every} = 0").fetchnumpy()
    columns = [np.ma.compressed(table[f"c{n}"]) for n in range(len(expressions))]
    return [column[np.isfinite(column)] for column in columns]


def _values(profiles: tuple[Profile, Profile]) -> list[ColumnDrift]:
    """From the profiles, for columns all of whose values they hold."""
    found = []
    before, after = profiles
    for name in before.columns.keys() & after.columns.keys():
        sides: list[Mapping[str, int]] = [profile.columns[name].values for profile in profiles]
        is_whole = all(len(one.columns[name].values) == one.columns[name].distinct for one in profiles)
        rows = (sum(sides[0].values()), sum(sides[1].values()))
        if (name in RESERVED and name != SPLIT) or not is_whole or min(rows) < LEAST_ROWS:
            continue
        names = sorted({*sides[0], *sides[1]})
        counts = [np.array([side.get(one, 0) for one in names]) for side in sides]
        found.append(ColumnDrift(name, "values", psi(*counts), None, rows, None))
    return found


def psi(before: Any, after: Any) -> float:
    """The population stability index of counts by bin; half a row is added to each bin, so that none is empty."""
    old, new = before + 0.5, after + 0.5
    old, new = old / old.sum(), new / new.sum()
    return float(((new - old) * np.log(new / old)).sum())


def ks(before: Any, after: Any) -> float:
    """The largest difference of two empirical distribution functions."""
    old, new = np.sort(before), np.sort(after)
    both = np.concatenate([old, new])
    shares = (np.searchsorted(one, both, "right") / len(one) for one in (old, new))
    return float(np.abs(np.subtract(*shares)).max())
