"""Answers about a file of series of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from aifx.core.errors import ConfigError, DataError, UsageError
from aifx.core.project import Project
from aifx.data.columns import as_text, infer_kind, is_missing
from aifx.data.sections import SeriesSection
from aifx.data.series import SeriesFormat
from aifx.data.series_windows import SeriesData
from aifx.data.table_file import Table, read_table
from aifx.data.time_grid import infer_grid, parse_parts, parse_time

PARTS = (("year",), ("month",), ("day", "day_of_month", "date_of_month"), ("hour",), ("minute",), ("second",))
"""Names of columns that are a time together, if no column is one by itself: the first alone, or the first few."""

MOST_STEPS = 24
"""Most steps of the forecast. It reaches one season ahead if that is shorter."""

EPOCHS, BATCH_SIZE = 20, 64
"""Epochs and batch size of the training that the template of series describes."""

CONTEXT = 8
"""The model reads so many times what it forecasts."""


def series_answers(path: Path, answers: Mapping[str, Any], margin: float) -> dict[str, Any]:
    """Columns, windows, the split, and a gate that asks for an error smaller by `margin` than the seasonal naive's.

    Raises UsageError, DataError.
    """
    asked = _asked_horizon(answers)
    table = read_table(path, str(path))
    time = tuple(answers["time"].split(",")) if answers.get("time") else _time(table)
    named = {"time": list(time), **{key: [answers[key]] for key in ("series", "target") if answers.get(key)}}
    for key, names in named.items():
        for name in names:
            table.column(name, f"--answer {key}")
    times = _times(table, time)
    series = answers.get("series") or _series(table, time, times)
    target = answers.get("target") or _target(table, {*time, series})
    season, first, end = _extents(table, times, series, target)
    steps = int(np.median(end - first))
    horizon = asked or max(1, min(season, MOST_STEPS, steps // 20))
    context = max(1, min(CONTEXT * horizon, steps // 4))
    # With "date", series that end early would have fewer values in the test, or none.
    split = "last" if np.ptp(end) > horizon else "date"
    columns = {"time": time[0] if len(time) == 1 else list(time), "value": target, "series": series}
    windows = {"split": split, "context": context, "horizon": horizon}
    section = SeriesSection.model_validate({"path": str(path), **columns, **windows})
    with TemporaryDirectory() as assets:
        form, data = SeriesFormat.open(section, Project(Path.cwd()), Path(assets))
    error = min(_naive_error(data, lag) for lag in form.facts.calendar.grid.seasons)
    return {
        "time_columns": columns["time"],
        "target": target,
        "series": series or "",
        "step": str(form.facts.calendar.grid),
        **windows,
        "num_steps": min(max(EPOCHS * table.num_rows // BATCH_SIZE, 200), 1000) // 10 * 10,
        "pooling": [min(season, context), 1] if 1 < season <= context else [max(1, context // 8), 1],
        "gate": f"mean_absolute_error <= {float(f'{(1 - margin) * error:.3g}'):g}",
    }


def _time(table: Table) -> tuple[str, ...]:
    """The columns of the time: the first whose values all are one, or those of its parts."""
    for name, values in table.values.items():
        with suppress(ValueError):
            if infer_kind(values) != "numeric":
                for value in values:
                    parse_time(value)
                return (name,)
    found = {name.lower(): name for name in table.values}
    parts = [next((found[name] for name in names if name in found), None) for names in PARTS]
    there = parts[: parts.index(None)] if None in parts else parts
    if there:
        return tuple(part for part in there if part)
    what = f"{table.name}: no column of times such as 1988-12-31 or 1988-12-31T23:00"
    raise DataError(what, f"its columns are {', '.join(table.values)}", "--answer time=COLUMN, or year,month,day")


def _times(table: Table, columns: Sequence[str]) -> np.ndarray:
    """The time of each row, datetime64[us] `[rows]`. Raises DataError naming the line of one that is none."""
    times = []
    for number, row in enumerate(zip(*(table.values[name] for name in columns), strict=True)):
        try:
            times.append(parse_time(row[0]) if len(row) == 1 else parse_parts(row))
        except (ValueError, TypeError) as error:
            what = f"{table.place(number)}: no time in {', '.join(columns)}"
            raise DataError(what, str(error), "correct the row, or --answer time=COLUMN") from None
    return np.array(times, "M8[us]")


def _target(table: Table, others: set[str | None]) -> str:
    """The only column of numbers that is not the time. Raises UsageError if there is no such column, or several."""
    numeric = [name for name, values in table.values.items() if name not in others and infer_kind(values) == "numeric"]
    if len(numeric) == 1:
        return numeric[0]
    why = f"columns of numbers are {', '.join(numeric)}" if numeric else "it has no other column of numbers"
    hint = f"--answer target={numeric[-1] if numeric else 'COLUMN'}"
    raise UsageError(f"{table.name}: which column is to be forecast?", why, hint)


def _series(table: Table, time: Sequence[str], times: np.ndarray) -> str | None:
    """The column that names the series: None if each time is there once. Raises DataError if no column does."""
    if len(np.unique(times)) == len(times):
        return None
    for name, values in table.values.items():
        named = set(zip(times.tolist(), map(as_text, values), strict=True))
        if name not in time and infer_kind(values) != "numeric" and len(named) == len(times):
            return name
    first = set(np.unique(times, return_index=True)[1].tolist())
    twice = next(number for number in range(len(times)) if number not in first)
    what = f"{table.place(twice)}: the time {times[twice]} is also that of a row before"
    hint = "--answer series=COLUMN, if a column of numbers does; otherwise add up the rows of a time"
    raise DataError(what, "no column of texts names several series", hint)


def _asked_horizon(answers: Mapping[str, Any]) -> int | None:
    """The steps of `--answer horizon`. Raises UsageError."""
    text = str(answers.get("horizon") or "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise UsageError(f"--answer horizon={text} is no number of steps", "it is 1 or more", "--answer horizon=18")
    return int(text) if text else None


def _extents(table: Table, times: np.ndarray, series: str | None, target: str) -> tuple[int, np.ndarray, np.ndarray]:
    """The shortest season in steps, and the place of each series' first row and that after its last value `[series]`.

    Raises DataError for too few rows.
    """
    names = np.array([""] * len(times) if series is None else [as_text(value) for value in table.values[series]])
    which = np.unique(names, return_inverse=True)[1]
    order = np.argsort(which, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(which[order])) + 1)
    try:
        grid = infer_grid([times[part] for part in parts])
    except ValueError as error:
        raise DataError(f"{table.name}: too few rows", str(error), "add rows") from None
    places, _ = grid.places(times)
    is_known = ~np.array([is_missing(value) for value in table.values[target]])
    first = np.array([places[part].min() for part in parts])
    end = np.array([max(places[part][is_known[part]], default=places[part].min()) + 1 for part in parts])
    return grid.seasons[0], first, end


def _naive_error(data: SeriesData, season: int) -> float:
    """The mean absolute error of the value a season before, over the test split, in the unit of the data."""
    naive = data.naive("test", season)
    source = data.source("test", len(naive), seed=None)
    batch = source.read(0, slice(0, len(naive)))
    off = np.abs(naive - batch["targets"]) * batch["scale"][:, None] * batch["weights"]
    if not batch["weights"].any():
        raise ConfigError(f"{data.name}: no value in the test split", "the gate follows from some", "add rows")
    return float(off.sum()) / float(batch["weights"].sum())
