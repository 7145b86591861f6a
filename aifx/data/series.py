"""Files of series of numbers over time, as windows of what went before and what is to be forecast."""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from aifx.core.digests import Sha256, sha256_of_values
from aifx.core.errors import ConfigError, DataError
from aifx.core.files import read_file
from aifx.core.json_files import write_json
from aifx.core.json_values import plain
from aifx.core.parsing import parse_json
from aifx.core.plurals import counted, some_names
from aifx.core.project import Project
from aifx.data.arrays import WEIGHTS
from aifx.data.base import Batch, DataFormat, Labels, no_column
from aifx.data.columns import Source, as_number, is_missing, open_source, scale_of
from aifx.data.names import SPLIT
from aifx.data.readers.rows import FORMATS, Row, field, input_file, unknown_format
from aifx.data.readers.sources import SourceFile
from aifx.data.sections import SeriesSection
from aifx.data.series_windows import SeriesData, SeriesFacts, series_baselines, series_spec, window_batch
from aifx.data.spec import DataSpec
from aifx.data.splits import SPLITS, Split
from aifx.data.time_grid import TimeGrid, calendar_of, infer_grid, parse_parts, parse_time, time_texts

logger = logging.getLogger(__name__)

FACTS_FILE = "series.json"
"""In a run's assets: the `SeriesFacts` of its data."""

EPOCH = datetime(1970, 1, 1)
MICROSECOND = timedelta(microseconds=1)
TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class SeriesRows:
    """The rows of one series, by time."""

    name: str
    times: np.ndarray  # datetime64[us] [rows]
    numbers: np.ndarray  # float64 [rows, 1 + covariates]: the value and `known` and `past`, NaN where missing
    rows: np.ndarray  # int64 [rows]: the number of each in the file

    def until_last_value(self) -> SeriesRows:
        """Without the rows after the last value, which hold covariates of a time to come."""
        end = 1 + max(np.flatnonzero(np.isfinite(self.numbers[:, 0])), default=0)
        return SeriesRows(self.name, self.times[:end], self.numbers[:end], self.rows[:end])


def read_series(source: Source, section: SeriesSection) -> list[SeriesRows]:
    """The series of a .csv, .jsonl or .parquet file or a version, by name. Raises DataError naming file and line."""
    if source.part is None and source.file.format not in FORMATS:
        raise unknown_format(source.file, FORMATS)
    columns = (section.value, *section.known, *section.past)
    collected: dict[str, tuple[array[int], array[float], array[int]]] = {}  # times, numbers and rows
    for row in source.rows():
        try:
            name = "" if section.series is None else str(field(row.values, section.series))
            if isinstance(section.time, str):
                time = parse_time(field(row.values, section.time))
            else:
                time = parse_parts(field(row.values, column) for column in section.time)
            found = [_number(column, field(row.values, column)) for column in columns]
        except (ValueError, TypeError, OverflowError) as error:
            hint = "correct the row (the cell of a missing number is empty), or change [data]"
            raise DataError(f"{row.place}: the row cannot be used", str(error), hint) from None
        times, numbers, rows = collected.setdefault(name, (array("q"), array("d"), array("q")))
        times.append((time - EPOCH) // MICROSECOND)
        numbers.extend(found)
        rows.append(row.number)
    if not collected:
        raise DataError(f"{source.name}: no rows", "a series has a row per time", f"head {source.name}")
    series = []
    for name, (times, numbers, rows) in sorted(collected.items()):
        order = np.argsort(times, kind="stable")
        by_row = np.array(numbers).reshape(len(times), -1)[order]
        series.append(SeriesRows(name, np.array(times)[order].astype("M8[us]"), by_row, np.array(rows)[order]))
    return series


def check_places(source: Source, series: SeriesRows, grid: TimeGrid) -> np.ndarray:
    """The places of the rows on the grid, each once. Raises DataError naming the line."""
    places, is_on = grid.places(series.times)
    if not is_on.all():
        row = int(np.flatnonzero(~is_on)[0])
        (place,) = source.places(series.rows[[row]] - 1)
        what = f"{place}: a time between two steps"
        why = f"{series.times[row]} is no whole number of steps of {grid} from {grid.origin}"
        raise DataError(what, why, "round the times, or add up the values of each step")
    if (twice := np.flatnonzero(np.diff(places) == 0)).size:
        first, second = source.places(series.rows[twice[0] : twice[0] + 2] - 1)
        named = f" of series {series.name!r}" if series.name else ""
        what = f"{second}: the time{named} is also that of {first}"
        hint = 'series = "COLUMN" below [data], if a column names several series; otherwise remove a row'
        raise DataError(what, f"{series.times[int(twice[0]) + 1]}, and a step is {grid}", hint)
    return places


def _number(column: str, value: Any) -> float:
    """A value or a covariate, NaN if it is missing. Raises ValueError."""
    if is_missing(value):
        return math.nan
    if isinstance(value, str):
        value = TRUTH.get(value.strip().lower(), value)
    try:
        return as_number(value)
    except ValueError as error:
        raise ValueError(f"column {column!r}: {error}") from None


@dataclass(frozen=True)
class SeriesFormat(DataFormat):
    """Series: a file with a row per time, and windows of `data.context` steps with `data.horizon` steps to forecast."""

    section: SeriesSection
    spec: DataSpec
    facts: SeriesFacts

    @classmethod
    def describe(cls, section: SeriesSection, project: Project) -> DataSpec:
        why = "the time between rows, and with it the calendar's features, are known only with the data"
        raise ConfigError("data.kind = 'series' is described by its data", why, "aifx train")

    @classmethod
    def summary(cls, section: SeriesSection, project: Project) -> list[str]:
        """Lines about the series of `data.path` and their splits. Raises DataError."""
        data = _open(section, _source_of(section, project), None)
        return [*_described(data), *_left_out(data)]

    @classmethod
    def open(cls, section: SeriesSection, project: Project, assets: Path) -> tuple[SeriesFormat, SeriesData]:
        """Infers the step of time and divides each series in order, the test last. Reports what it found."""
        kept = assets / FACTS_FILE
        data = _open(section, _source_of(section, project), _facts(kept) if kept.exists() else None)
        if not kept.exists():
            write_json(kept, plain(data.facts))
        for line in _described(data):
            logger.info(line)
        for line in _left_out(data):
            logger.warning(line)
        data.source("train", 1, seed=0)  # raises if there is nothing to learn from
        return cls(section, data.spec, data.facts), data

    @classmethod
    def load(cls, section: SeriesSection, spec: DataSpec, assets: Path) -> SeriesFormat:
        return cls(section, spec, _facts(assets / FACTS_FILE))

    def open_file(self, path: Path) -> SeriesData:
        """All steps of a file after a context of its first steps, or of the first steps of each series."""
        data = _open(self.section, Source(input_file(str(path))), self.facts, is_split=False)
        for line in _left_out(data):
            logger.warning(line)
        return data

    def labels(self, dataset: SeriesData, split: Split, column: str | None) -> Labels | None:
        """The series of each window."""
        if column not in (None, self.section.series):
            raise no_column(str(column), dataset.name, filter(None, [self.section.series]))
        windows = dataset.some_windows(split)
        return Labels(dataset.names, np.searchsorted(windows.last, np.arange(len(windows)), side="right"))

    def split_digest(self, dataset: SeriesData, split: Split) -> str:
        first, end = (bounds.tolist() for bounds in dataset.cuts[split])
        values = np.ascontiguousarray(dataset.values[np.isfinite(dataset.values)])
        return sha256_of_values(dataset.names, first, end, self.section.horizon, values.tobytes().hex())

    def baselines(self, dataset: SeriesData, split: Split) -> Iterator[tuple[str, np.ndarray]]:
        return series_baselines(dataset, split)

    def read_rows(self, file: SourceFile) -> Iterator[Row]:
        """One row per series, with a list per column."""
        section, source = self.section, Source(file)
        for series in read_series(source, section):
            check_places(source, series, self.facts.calendar.grid)
            values = dict(zip((section.value, *section.known, *section.past), series.numbers.T, strict=True))
            place = f"{file.name}: series {series.name!r}" if section.series else file.name
            named: dict[str, Any] = {section.series: series.name} if section.series else {}
            yield Row(file.name, int(series.rows[-1]), place, named | {self._time: series.times.tolist()} | values)

    def skip_reason(self, row: Mapping[str, Any]) -> str:
        value = self.section.value
        values = row.get(value, "")
        is_empty = isinstance(values, Iterable) and not isinstance(values, str) and all(map(is_missing, values))
        return f"column {value!r} has no value" if is_empty else ""

    def encode(self, row: Mapping[str, Any]) -> Batch:
        """A series as the window after its last value: lists of times, values and covariates, by column."""
        section, calendar = self.section, self.facts.calendar
        times, numbers = self._steps(row)
        valued = np.flatnonzero(np.isfinite(numbers[:, 0]))
        if not len(valued):
            raise ValueError(f"column {section.value!r} has no value")
        places, is_on = calendar.grid.places(times)
        if not is_on.all():
            raise ValueError(f"{times[~is_on][0]} is no whole number of steps of {calendar.grid} from {times[0]}")
        length = section.context + section.horizon
        within = places - places[valued[-1]] + section.context - 1
        is_near = (within >= 0) & (within < length)
        window = np.full((length, numbers.shape[1]), np.nan)
        window[within[is_near]] = numbers[is_near]
        for i, column in enumerate(section.known, 1):
            if not np.isfinite(window[section.context :, i]).all():
                why = f"it is in data.known, and the {section.horizon} steps after the last value need it"
                raise ValueError(f"column {column!r} is missing in rows to forecast: {why}")
        around = places[valued[-1]] + np.arange(1 - section.context, section.horizon + 1)
        tokens = calendar.tokens(calendar.grid.times(around))
        covariates = _scaled(window[:, 1:], self.facts.covariates)
        batch = window_batch(section, window[None, :, 0], tokens[None], covariates[None])
        return {name: values for name, values in batch.items() if name not in ("targets", WEIGHTS)}

    def records(self, row: Row, prediction: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A record per step of the horizon: the file, the series, the time, and the prediction for it.

        A series without values has one, with the reason. Otherwise that is empty: text, as a column of Parquet needs.
        """
        section, grid = self.section, self.facts.calendar.grid
        named = {"file": row.file} | ({section.series: row.values[section.series]} if section.series else {})
        if "reason" in prediction:
            return [named | {self._time: "", **_of_step(prediction, 0)}]
        times, numbers = self._steps(row.values)
        (last,), _ = grid.places(times[np.isfinite(numbers[:, 0])][-1:])
        ahead = grid.times(np.arange(last + 1, last + 1 + section.horizon))
        steps = enumerate(time_texts(ahead))
        return [named | {self._time: text, **_of_step(prediction, step), "reason": ""} for step, text in steps]

    @property
    def _time(self) -> str:
        """The field of a row that holds the times."""
        return self.section.time if isinstance(self.section.time, str) else "time"

    def _steps(self, row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """The times and numbers of a series, in order of time."""
        section = self.section
        columns = [self._time, section.value, *section.known, *section.past]
        lists = [list(field(row, column)) for column in columns]
        if len(set(map(len, lists))) != 1:
            lengths = ", ".join(f"{name} {len(values)}" for name, values in zip(columns, lists, strict=True))
            raise ValueError(f"the columns of a series are equally long, and these are {lengths}")
        times = np.array([parse_time(value) for value in lists[0]], "M8[us]")
        order = np.argsort(times, kind="stable")
        named = zip(columns[1:], lists[1:], strict=True)
        return times[order], np.array([[_number(name, value) for value in values] for name, values in named]).T[order]


def _source_of(section: SeriesSection, project: Project) -> Source:
    """The file or version that `[data]` names. Raises UsageError, DataError."""
    source = open_source(section, project)
    if (part := source.part) is not None and part.has_column(SPLIT):
        parent = part.manifest.parents[0] if part.manifest.parents else "NAME@VERSION"
        why = "series are split by time, so that a forecast is measured on times after those of training"
        what = f"{part.reference} has a column {SPLIT}, which series cannot follow"
        raise DataError(what, why, f"aifx train --set data.dataset={parent}")
    return source


def _open(section: SeriesSection, source: Source, facts: SeriesFacts | None, *, is_split: bool = True) -> SeriesData:
    """The data set of a file or version: divided into splits, or all of it the test. Raises DataError."""
    name = source.name
    series = [one.until_last_value() for one in read_series(source, section)]
    try:
        grid = facts.calendar.grid if facts else infer_grid([one.times for one in series])
    except ValueError as error:
        raise DataError(f"{name}: too few rows", str(error), 'series = "COLUMN" below [data] names several') from None
    places = [check_places(source, one, grid) for one in series]
    lengths = np.array([found[-1] - found[0] + 1 for found in places])
    rows = sum(map(len, places))
    if lengths.sum() > 100 * rows + 10_000:
        why = f"{rows:,} rows, and {lengths.sum():,} steps of {grid} from the first to the last of each series"
        raise DataError(f"{name}: almost all steps are missing", why, "add up or average the values of longer steps")
    room = section.context + section.horizon
    starts = section.context + np.concatenate([[0], np.cumsum(lengths + room)[:-1]])
    numbers = np.full((int(starts[-1] + lengths[-1]) + section.horizon, series[0].numbers.shape[1]), np.nan)
    for one, found, start in zip(series, places, starts, strict=True):
        numbers[start + found - found[0]] = one.numbers
    grid_starts = np.array([found[0] for found in places])
    if is_split:
        cuts = _cuts(section, name, grid_starts, lengths)
    elif section.split == "date":  # all steps are the test, after a context: of the first steps
        cuts = {"test": (np.clip(grid_starts.min() + section.context - grid_starts, 0, lengths), lengths)}
    else:  # or of those of each series; a short series has less context
        cuts = {"test": (np.clip(lengths - section.horizon, 0, section.context), lengths)}
    if facts is None:
        is_trained = cuts["train"][1] > 0
        ends = grid_starts + cuts["train"][1]
        trained = [one.numbers[found < end, 1:] for one, found, end in zip(series, places, ends, strict=True)]
        steps = int(ends[is_trained].max() - grid_starts.min())
        facts = SeriesFacts(calendar_of(grid, steps), _means(np.concatenate(trained)))
    bounds = [(split, first.tolist(), end.tolist()) for split, (first, end) in cuts.items()]
    digest = Sha256(repr((plain(facts), bounds)).encode())
    digest.update(repr([(one.name, int(start)) for one, start in zip(series, grid_starts, strict=True)]).encode())
    digest.update(numbers)
    return SeriesData(
        section,
        series_spec(section, facts.calendar),
        digest.hexdigest(),
        name,
        facts,
        tuple(one.name for one in series),
        np.ascontiguousarray(numbers[:, 0]),
        _scaled(numbers[:, 1:], facts.covariates),
        starts,
        lengths,
        grid_starts,
        cuts,
        source.file_versions,
    )


def _described(data: SeriesData) -> Iterator[str]:
    """A line about the series, and one per split: its steps, their times, and the number of series."""
    calendar, is_last = data.facts.calendar, data.section.split == "last"
    yield (
        f"{data.name}: {counted(len(data.starts), 'series', '')}, {np.isfinite(data.values).sum():,} values, "
        f"a step is {calendar.grid}; calendar: {', '.join(calendar.features) or 'none'}"
    )
    for split, (first, end) in data.cuts.items():
        if not (steps := end - first).any():
            continue
        begin, until = (data.grid_starts + first)[steps > 0].min(), (data.grid_starts + end)[steps > 0].max()
        times = " to ".join(time_texts(calendar.grid.times(np.array([begin, until - 1]))))
        what = counted(int(until - begin), "step")
        if is_last:
            after, own = int((data.lengths - end).max()), counted(int(steps.max()), "step")
            before = f"all but the last {after:,} steps" if split == "train" else f"the {own} before the last {after:,}"
            what = f"of each series {before if after else f'the last {own}'}"
        series = f", {data.has_targets(split).sum():,} series" if data.section.series else ""
        yield f"{data.name}: {split} {times}, {what}{series}"


def _left_out(data: SeriesData) -> Iterator[str]:
    """The series that have no part in a split, a line per split."""
    for split, (first, end) in data.cuts.items():
        if (end > first).any() and len(missing := np.flatnonzero(~data.has_targets(split))):
            many = f"{len(missing):,} of {len(data.names):,} series have no window in the {split} split"
            named = f": {some_names([data.names[which] for which in missing])}" if data.section.series else ""
            yield f"{data.name}: {many}{named}"


def _cuts(
    section: SeriesSection, name: str, grid_starts: np.ndarray, lengths: np.ndarray
) -> dict[Split, tuple[np.ndarray, np.ndarray]]:
    """Where each split's targets begin and end, in steps from the first of each series: `SeriesData.cuts`.

    Counted from the last time of all series (`data.split = "date"`), or from the last of each ("last").
    """
    begin, last = int(grid_starts.min()), int((grid_starts + lengths).max())
    if section.split == "date":
        steps, ends = last - begin, last - grid_starts
        validation = section.validation_steps or round(section.validation_fraction * steps)
        test = section.test_steps or round(section.test_fraction * steps)
    else:
        steps, ends = int(lengths.max()), lengths
        validation = section.validation_steps or (section.horizon if section.validation_fraction else 0)
        test = section.test_steps or (section.horizon if section.test_fraction else 0)
    if test + validation >= steps:
        why = f"{validation} steps for validation and {test} for the test, of {steps}"
        raise DataError(f"{name}: no steps are left to train on", why, "lower data.validation_steps or data.test_steps")
    bounds = [np.clip(ends - held_out, 0, lengths) for held_out in (steps, test + validation, test, 0)]
    return dict(zip(SPLITS, pairwise(bounds), strict=True))


def _means(values: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Mean and standard deviation of each column, missing numbers left out; 1 for a constant one."""
    found = []
    for column in values.T:
        there = column[np.isfinite(column)]
        found.append((float(there.mean()), scale_of(there)) if len(there) else (0.0, 1.0))
    return tuple(found)


def _scaled(values: np.ndarray, covariates: Sequence[tuple[float, float]]) -> np.ndarray:
    means, deviations = np.array(covariates).reshape(-1, 2).T
    scaled: np.ndarray = np.nan_to_num((values - means) / deviations, nan=0.0)
    return scaled.astype(np.float32)


def _of_step(value: Any, step: int) -> Any:
    """The part of a prediction for one step: lists have an entry per step, a single number is that of the only step."""
    if isinstance(value, Mapping):
        return {name: _of_step(item, step) for name, item in value.items()}
    return value[step] if isinstance(value, list) else value


def _facts(path: Path) -> SeriesFacts:
    """The facts that `open` kept. Raises DataError if they are missing or cannot be used."""
    try:
        return TypeAdapter(SeriesFacts).validate_python(parse_json(read_file(path)))
    except (OSError, ValueError) as error:  # also pydantic's
        why = str(error).splitlines()[0]
        raise DataError(f"{path} does not describe the series of the run", why, f"restore {path}") from None
