"""What simple predictors make of series: the value a season before, and boosted trees."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np

from aifx.core.plurals import counted
from aifx.data.arrays import WEIGHTS
from aifx.data.base import Batch
from aifx.data.series_windows import SeriesData
from aifx.data.splits import Split

MOST_EXAMPLES = 20_000
"""Steps that the trees learn from, evenly spaced over the training split."""

ROWS = 4096
"""Windows that are read at a time."""


def series_baselines(data: SeriesData, split: Split) -> Iterator[tuple[str, np.ndarray]]:
    """The name of each baseline, and its scaled forecasts float32 `[windows, horizon]`. Trees need a training split.

    Seasons that no series is longer than have no values to forecast from.
    """
    seasons = [season for season in data.facts.calendar.grid.seasons if season < data.lengths.max()]
    for season in seasons or [1]:
        yield f"{counted(season, 'step')} before", data.naive(split, season)
    if "train" in data.cuts and importlib.util.find_spec("sklearn") is not None:
        yield "boosted trees", boosted_trees(data, split)


def boosted_trees(data: SeriesData, split: Split, most_examples: int = MOST_EXAMPLES) -> np.ndarray:
    """scikit-learn's histogram gradient boosting with its defaults: one model for all steps of the horizon."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    horizon = data.section.horizon
    windows = data.windows("train")
    count = min(len(windows), max(1, most_examples // horizon))
    batch = data.read(windows, np.linspace(0, len(windows) - 1, count).astype(np.int64))
    counts = batch[WEIGHTS].ravel() > 0
    trees = HistGradientBoostingRegressor(random_state=0)
    trees.fit(_design(batch, horizon)[counts], batch["targets"].ravel()[counts])
    asked = data.source(split, 1, seed=None).windows
    numbers = [np.arange(begin, min(begin + ROWS, len(asked))) for begin in range(0, len(asked), ROWS)]
    found = [trees.predict(_design(data.read(asked, which), horizon)) for which in numbers]
    return np.concatenate(found).reshape(-1, horizon).astype(np.float32)


def _design(batch: Batch, horizon: int) -> np.ndarray:
    """The inputs of trees `[windows * horizon, features]`: the window, its last covariates, and the step's own."""
    rows = len(batch["inputs"])
    observed = np.where(batch["observed"], batch["inputs"], np.nan)
    window = [observed] + ([batch["past"][:, -1]] if "past" in batch else [])
    steps = [np.tile(np.arange(horizon)[:, None], (rows, 1, 1))]
    steps += [batch[name][:, -horizon:] for name in ("calendar", "known") if name in batch]
    parts = [np.repeat(part[:, None], horizon, axis=1) for part in window] + steps
    return np.concatenate(parts, axis=2, dtype=np.float32).reshape(rows * horizon, -1)
