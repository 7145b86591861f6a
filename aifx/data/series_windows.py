"""Windows over series: what went before, and what is to be forecast. Also simple predictors of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from aifx.core.errors import DataError
from aifx.core.plurals import counted
from aifx.data.arrays import WEIGHTS, ExampleSource
from aifx.data.base import Batch
from aifx.data.sections import SeriesSection
from aifx.data.spec import DataSpec, Field
from aifx.data.splits import Split
from aifx.data.time_grid import Calendar

if TYPE_CHECKING:
    from aifx.data.file_index import ImplicitVersion

SMALLEST_SCALE = 1e-6  # a window that varies by less than this share of its mean is taken as constant
ROWS = 4096  # windows that baselines read at a time
MOST_EXAMPLES = 20_000  # steps that the trees learn from, evenly spaced over the training split


@dataclass(frozen=True)
class SeriesFacts:
    """Facts about the data of a training, which are kept in the run's assets."""

    calendar: Calendar
    covariates: tuple[tuple[float, float], ...]  # mean and standard deviation of `known` and `past` in training


# A window is not stored: it is the number of its first target, and its arrays are read around it. All series lie behind
# each other in one array, with room of NaN for the longest context and horizon between them, so that no window reaches
# into another series. The windows of a split are numbered through the series. `last` has the running total of their
# counts: a binary search in it gives the series of a number, and the rest times `stride` is the step in it. Targets
# beyond the end of the split are NaN, and weigh 0.


@dataclass(frozen=True)
class Windows:
    """The windows of a split, by number: those of the first series, then those of the second, and so on."""

    first: np.ndarray  # place in the data of the first target of each series' first window
    offset: np.ndarray  # from a place in the data of each series to a place on the grid
    end: np.ndarray  # place in the data where the split of each series ends
    last: np.ndarray  # how many windows there are up to and with each series
    stride: int

    def __len__(self) -> int:
        return int(self.last[-1])

    def find(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each window the place of its first target in the data and on the grid, and the end of its split."""
        series = np.searchsorted(self.last, numbers, side="right")
        before = np.concatenate([[0], self.last[:-1]])
        target = self.first[series] + (numbers - before[series]) * self.stride
        return target, target + self.offset[series], self.end[series]


@dataclass(frozen=True)
class SeriesData:
    """A data set of series that lie behind each other in one array, with room for a window before and after each.

    Its batches are windows, each read from the series when it is needed: "inputs" float32 `[rows, context]` and
    "targets" `[rows, horizon]`, less the window's "location" `[rows]` and over its "scale" `[rows]`. "observed" `[rows,
    context]` and "weights" `[rows, horizon]` are 0 where a value is missing. If there are any: "calendar" int32 and
    "known" float32 `[rows, context + horizon, features]`, and "past" float32 `[rows, context, features]`.
    """

    section: SeriesSection
    spec: DataSpec
    digest: str
    name: str  # of the file, for errors
    facts: SeriesFacts
    names: tuple[str, ...]  # of the series
    values: np.ndarray  # float64 [places], NaN where missing
    covariates: np.ndarray  # float32 [places, features], scaled; 0 where missing
    starts: np.ndarray  # place in `values` of each series' first step
    lengths: np.ndarray  # steps of each series
    grid_starts: np.ndarray  # place on the grid of each series' first step
    cuts: Mapping[Split, tuple[np.ndarray, np.ndarray]]
    """The first target of each split and its end, in steps from the first of each series."""
    file_versions: Mapping[str, ImplicitVersion]  # the file that it was made of, by the key that names it

    def source(self, split: Split, batch_size: int, *, seed: int | None) -> ExampleSource:
        windows = self.some_windows(split)
        return ExampleSource(len(windows), partial(self.read, windows), seed, batch_size)

    def some_windows(self, split: Split) -> Windows:
        """Windows over a split. Raises DataError if there are none."""
        if split in self.cuts and len(windows := self.windows(split)):
            return windows
        whole = self._end - self._begin
        steps = int(np.ptp(self.cuts[split], axis=0).max()) if split in self.cuts else 0
        if split == "test" and "train" not in self.cuts:  # a file of `aifx eval --data`
            why = f"its first data.context = {self.section.context} steps are context, and it has {whole}"
            raise DataError(f"{self.name}: too few rows", why, "add the rows before or after them")
        why = f"it has {steps} of {whole} steps; a window needs a step before it"
        if split == "train":
            why += f" and has data.horizon = {self.section.horizon} steps"
        hint = f"raise data.{split}_steps or data.{split}_fraction" if split != "train" else "hold out less"
        raise DataError(f"{self.name}: no windows in the {split} split", why, hint)

    def counts(self, batch: Batch) -> dict[str, int]:
        """Windows with a target that counts."""
        return {"examples": int(np.count_nonzero(batch[WEIGHTS].any(axis=1)))}

    def windows(self, split: Split) -> Windows:
        """Windows over a split.

        In training, those whose targets are all in it, `data.stride` apart, with a whole context if the series is long
        enough. Otherwise those that have each step as a target once.
        """
        horizon = self.section.horizon
        first, end = self.cuts[split]
        first = np.maximum(first, 1)  # a window has a step before it
        if split == "train":
            first = np.maximum(first, np.minimum(self.section.context, end - horizon))
            stride, counts = self.section.stride, (end - horizon - first) // self.section.stride + 1
        else:
            stride, counts = horizon, -((first - end) // horizon)
        last = np.maximum(counts, 0).cumsum()
        return Windows(self.starts + first, self.grid_starts - self.starts, self.starts + end, last, stride)

    def has_targets(self, split: Split) -> np.ndarray:
        """Whether a window of the split has a value to forecast, by series: bool `[series]`."""
        known = np.concatenate([[0], np.isfinite(self.values).cumsum()])
        first, end = self.cuts[split]
        begin = self.starts + np.maximum(first, 1)
        num_windows = np.diff(self.windows(split).last, prepend=0)
        found: np.ndarray = (num_windows > 0) & (known[self.starts + end] > known[np.minimum(begin, self.starts + end)])
        return found

    def read(self, windows: Windows, numbers: np.ndarray) -> Batch:
        """The windows of these numbers."""
        target, place, end = windows.find(numbers)
        around = np.arange(-self.section.context, self.section.horizon)
        steps = target[:, None] + around
        values = np.where(steps < end[:, None], self.values[steps], np.nan)
        tokens = self._tokens[place[:, None] + around - (self._begin - self.section.context)]
        return window_batch(self.section, values, tokens, self.covariates[steps])

    def naive(self, split: Split, season: int) -> np.ndarray:
        """Values a season before each target, float32 `[windows, horizon]`, scaled as targets are.

        It is the last such value that is known when the forecast is made. Where it is missing, it is the mean of the
        context, 0.
        """
        windows = self.some_windows(split)
        ahead = np.arange(self.section.horizon)
        found = np.zeros((len(windows), len(ahead)), np.float32)
        for numbers in _blocks(windows):
            places = windows.find(numbers)[0][:, None] + ahead - season * (ahead // season + 1)
            is_there = places >= self.starts[np.searchsorted(windows.last, numbers, side="right")][:, None]
            values = np.where(is_there, self.values[np.maximum(places, 0)], np.nan)
            batch = self.read(windows, numbers)
            scaled = (values - batch["location"][:, None]) / batch["scale"][:, None]
            found[numbers] = np.nan_to_num(scaled, nan=0.0)
        return found

    @property
    def _begin(self) -> int:
        return int(self.grid_starts.min())

    @property
    def _end(self) -> int:
        return int((self.grid_starts + self.lengths).max())

    @cached_property
    def _tokens(self) -> np.ndarray:
        """The calendar's tokens of each place on the grid that a window may reach: int32 [places, features]."""
        places = np.arange(self._begin - self.section.context, self._end + self.section.horizon)
        return self.facts.calendar.tokens(self.facts.calendar.grid.times(places))


def window_batch(section: SeriesSection, values: np.ndarray, tokens: np.ndarray, covariates: np.ndarray) -> Batch:
    """Windows as `SeriesData` describes them, each scaled by the mean and the standard deviation of its context.

    Args:
        values: float64 `[rows, context + horizon]`, NaN where missing.
        tokens: int32 `[rows, context + horizon, features]`.
        covariates: float32 `[rows, context + horizon, features]`: `known`, then `past`.
    """
    context, num_known = section.context, len(section.known)
    observed = np.isfinite(values[:, :context])
    count = observed.sum(axis=1)
    known = np.where(observed, values[:, :context], 0.0)
    location = known.sum(axis=1) / np.maximum(count, 1)
    centred = np.where(observed, known - location[:, None], 0.0)
    deviation = np.sqrt(np.square(centred).sum(axis=1) / np.maximum(count, 1))
    otherwise = np.where(location == 0.0, 1.0, np.abs(location))
    scale = np.where(deviation > SMALLEST_SCALE * np.abs(location), deviation, otherwise)
    targets = values[:, context:]
    counts = np.isfinite(targets) & (count > 0)[:, None]
    scaled = np.where(counts, targets - location[:, None], 0.0) / scale[:, None]
    batch = {
        "inputs": centred / scale[:, None],
        "observed": observed,
        "targets": scaled,
        WEIGHTS: counts,
        "location": location,
        "scale": scale,
        "known": covariates[:, :, :num_known],
        "past": covariates[:, :context, num_known:],
    }
    batch = {name: np.array(array, np.float32) for name, array in batch.items() if array.size}
    return batch | ({"calendar": np.array(tokens, np.int32)} if tokens.size else {})


def series_spec(section: SeriesSection, calendar: Calendar) -> DataSpec:
    """The spec of windows: the horizon is `target_size`, the calendar's tokens are `vocab_size`."""
    steps = section.context + section.horizon
    tokens = np.zeros((1, steps, len(calendar.features)), np.int32)
    covariates = np.zeros((1, steps, len(section.known) + len(section.past)))
    arrays = window_batch(section, np.zeros((1, steps)), tokens, covariates)
    axes = ("time", None)
    fields = {name: Field(one.shape[1:], one.dtype.name, axes[: one.ndim - 1]) for name, one in arrays.items()}
    return DataSpec(fields, calendar.vocab_size or None, target_size=section.horizon)


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
    asked = data.some_windows(split)
    found = [trees.predict(_design(data.read(asked, numbers), horizon)) for numbers in _blocks(asked)]
    return np.concatenate(found).reshape(-1, horizon).astype(np.float32)


def _blocks(windows: Windows) -> list[np.ndarray]:
    """The numbers of windows, ROWS at a time."""
    return np.split(np.arange(len(windows)), range(ROWS, len(windows), ROWS))


def _design(batch: Batch, horizon: int) -> np.ndarray:
    """The inputs of trees `[windows * horizon, features]`: the window, its last covariates, and the step's own."""
    rows = len(batch["inputs"])
    observed = np.where(batch["observed"], batch["inputs"], np.nan)
    window = [observed] + ([batch["past"][:, -1]] if "past" in batch else [])
    steps = [np.tile(np.arange(horizon)[:, None], (rows, 1, 1))]
    steps += [batch[name][:, -horizon:] for name in ("calendar", "known") if name in batch]
    parts = [np.repeat(part[:, None], horizon, axis=1) for part in window] + steps
    return np.concatenate(parts, axis=2, dtype=np.float32).reshape(rows * horizon, -1)
