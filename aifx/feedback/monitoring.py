"""Rows of now beside the rows that a model was trained on: which columns and predictions drifted."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

from aifx.config.gates import parse_gate
from aifx.core.errors import DataError, ExitCode, UsageError, did_you_mean
from aifx.core.plurals import counted
from aifx.core.progress import report_progress
from aifx.core.results import Result
from aifx.curation.column_drift import LEAST_ROWS, MOST_ROWS, MOST_VALUES, ColumnDrift, compare_columns
from aifx.data.names import RESERVED, SPLIT
from aifx.data.readers.rows import Row
from aifx.loading.prediction import LoadedModel, predict_rows

PREDICTION = "prediction."
"""Before the name of a column of predictions."""

LENGTH, UNSEEN = ".length", ".unseen"
"""After the name of a column of texts: characters, and the share of pairs of words that the reference does not have."""

LEAST_TEXT = 40
"""Characters of a column's texts, by the median; shorter ones are names."""

MOST_CHARACTERS = 4000
"""Characters of a text whose words are compared."""

PARTS: Mapping[str, Callable[[datetime], int]] = {
    "4 hours of a day of the week": lambda time: time.weekday() * 6 + time.hour // 4,
    "day of the week": lambda time: time.weekday(),
}
"""Numbers of a time's part of the week, the finest first."""

LEAST_ROWS_OF_PART = 10

MOST_LEVELS = 20
"""Distinct numbers that are compared as values: 0 and 1, or classes, have no distance."""


@dataclass(frozen=True)
class Monitored(Result):
    """The document of `aifx monitor --json`. It has no value of a row but the medians of `monitor.shown`.

    Attributes:
        digest: of the model version, or of a run's checkpoint.
        source: of the rows of now.
        reference: what they are compared with.
        rows: that were compared, of `rows_read` in the window.
        part: of the week: rows are compared with those of the same one; "" if with all.
        columns: the drifted ones first. Those of predictions are named "prediction.NAME".
        left_out: columns that cannot be compared, with the reason.
        drifted: names of the columns that drifted beyond their limits.
    """

    model: str
    step: int
    digest: str
    source: str
    window: str | None
    rows: int
    rows_read: int
    reference: str
    reference_rows: int
    part: str
    columns: tuple[ColumnDrift, ...]
    left_out: Mapping[str, str]
    drifted: tuple[str, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.drifted else ExitCode.OK


@dataclass(frozen=True)
class MonitoredRows:
    """Rows of one side.

    Attributes:
        name: of the source.
        rows: read once.
        is_training: whether rows of another split than train are none of it.
    """

    name: str
    rows: Iterable[Row]
    is_training: bool = False


def monitor(
    model: LoadedModel,
    now: MonitoredRows,
    reference: MonitoredRows,
    *,
    limits: Sequence[str] = (),
    shown: Sequence[str] = (),
    time: str | None = None,
    window: timedelta | None = None,
    until: datetime | None = None,
) -> Monitored:
    """Compare rows and their predictions with those of a reference.

    Args:
        limits: the effect that a column may have, as "amount <= 0.2".
        shown: columns whose medians the report has: each is a value of a row.
        time: the column with the time of a row: rows are compared with those of the same part of the week.
        window: how long before `until`, by default now, a row of now may be.

    Raises UsageError for a limit of a column that is not there, DataError for rows that cannot be used or are too few.
    """
    least = _least(limits)
    if window is not None and time is None:
        raise UsageError("--window requires --time", "a row's time tells whether it is in the window", "--time COLUMN")
    until = until or datetime.now(UTC)
    old = _Sample(reference, time, None, until)
    new = _Sample(now, time, until - window if window is not None else None, until)
    part, parts = _parts(old.times, new.times)
    read = model.format.input_columns
    target = getattr(model.trained.config.data, "target", None)
    for sample in (old, new):
        there = set[str]().union(*(row.values for row in sample.rows))
        if lacking := [name for name in read if name not in there]:
            why = f"the model reads {', '.join(read)}"
            raise DataError(f"{sample.name} lacks {', '.join(map(repr, lacking))}", why, "name rows with these columns")
    columns, left_out = _columns(old.rows, new.rows, (*read, target) if read else None)
    for side, sample in zip(columns, (old, new), strict=True):
        side |= _predictions(model, sample)
    if unknown := [name for name in least if name not in columns[0]]:
        what = f"there is no column {unknown[0]!r} to limit"
        raise UsageError(what, did_you_mean(unknown[0], columns[0]), f"there are {', '.join(columns[0])}")
    lengths = [name for name in columns[0] if name.endswith(LENGTH)]
    found = tuple(
        one if one.column in shown else replace(one, medians=None)
        for one in compare_columns(*columns, parts, lengths=lengths, least=least)
    )
    return Monitored(
        model=model.run,
        step=model.step,
        digest=model.trained.run.model_digest or model.trained.manifest.state_digest,
        source=now.name,
        window=str(window) if window is not None else None,
        rows=len(new.rows),
        rows_read=new.read,
        reference=reference.name,
        reference_rows=len(old.rows),
        part=part,
        columns=found,
        left_out=left_out,
        drifted=tuple(dict.fromkeys(one.column for one in found if one.drifted)),
    )


def _least(limits: Iterable[str]) -> dict[str, float]:
    found = {}
    for limit in limits:
        gate = parse_gate(limit)
        if gate.op not in ("<=", "<"):
            raise UsageError(f"{limit!r} is not a limit", "it bounds an effect from above", f'"{gate.name} <= 0.2"')
        found[gate.name] = gate.bound
    return found


class _Sample:
    """As many rows of a side as are compared, each with the same probability.

    Attributes:
        read: rows that it was drawn from.
        times: of the rows; None without a column of times.
    """

    def __init__(self, side: MonitoredRows, time: str | None, since: datetime | None, until: datetime) -> None:
        self.name, self.read, self.rows = side.name, 0, list[Row]()
        self.times: list[datetime] | None = [] if time is not None else None
        draw, newest = random.Random(0), None
        with report_progress(f"reading {side.name}", None, "rows") as progress:
            for row in side.rows:
                progress.advance(1)
                if side.is_training and row.values.get(SPLIT, "train") != "train":
                    continue
                at = _time_of(row, time) if time is not None else None
                newest = max(newest or at, at) if at is not None else None
                if since is not None and at is not None and not since <= at <= until:
                    continue
                self.read += 1
                place = len(self.rows) if len(self.rows) < MOST_ROWS else draw.randrange(self.read)
                if place >= MOST_ROWS:
                    continue
                self.rows[place : place + 1] = [row]
                if self.times is not None and at is not None:
                    self.times[place : place + 1] = [at]
        if self.read < LEAST_ROWS:
            what = f"{side.name} has {counted(self.read, 'row')}{' of the window' if since is not None else ''}"
            last = f", and its newest row is of {newest:%Y-%m-%d %H:%M}" if since is not None and newest else ""
            hint = "--window 30d, or another length" if since is not None else "name a source with more rows"
            raise DataError(what, f"a comparison needs {LEAST_ROWS}{last}", hint)


def _time_of(row: Row, column: str) -> datetime:
    """The time of a row: a date, ISO 8601, or seconds since 1970. One without a zone is in UTC. Raises DataError."""
    if column not in row.values:
        raise DataError(
            f"{row.place}: there is no column {column!r}", did_you_mean(column, row.values), "--time COLUMN"
        )
    value: Any = row.values[column]
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            value = datetime.fromtimestamp(value, UTC)
        elif isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        time: datetime = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        return time
    except (ValueError, AttributeError, OverflowError, OSError):
        why = "it is none of a date, ISO 8601, or seconds since 1970"
        raise DataError(f"{row.place}: {column} = {value!r} is no time", why, "--time COLUMN") from None


def _parts(old: list[datetime] | None, new: list[datetime] | None) -> tuple[str, tuple[Any, Any] | None]:
    """The finest parts of the week of which the reference has rows wherever there are some now."""
    if old is None or new is None:
        return "", None
    for name, number in PARTS.items():
        parts = [np.array([number(time) for time in times]) for times in (old, new)]
        counts = np.bincount(parts[0], minlength=42)
        if counts[np.unique(parts[1])].min() >= LEAST_ROWS_OF_PART:
            return name, (parts[0], parts[1])
    return "", None


def _columns(
    old: Sequence[Row], new: Sequence[Row], chosen: Sequence[str | None] | None
) -> tuple[tuple[dict[str, Any], dict[str, Any]], dict[str, str]]:
    """The columns of both sides as `compare_columns` takes them, and those that cannot be compared with the reason.

    Args:
        chosen: the columns that count, if they are known: a number of a row always drifts.
    """
    found: tuple[dict[str, Any], dict[str, Any]] = {}, {}
    left_out: dict[str, str] = {}
    names = [dict.fromkeys(name for row in rows for name in row.values) for rows in (old, new)]
    for name in dict.fromkeys([*names[0], *names[1]]):
        if name in RESERVED or (chosen is not None and name not in chosen):
            continue
        if name not in names[0] or name not in names[1]:
            left_out[name] = "only now" if name in names[1] else "only in the reference"
            continue
        values = [row.values.get(name) for row in (*old, *new)]
        made = _comparable(values)
        if isinstance(made, str):
            left_out[name] = made
            continue
        for suffix, column in made.items():
            found[0][name + suffix], found[1][name + suffix] = column[: len(old)], column[len(old) :]
        if LENGTH in made:
            texts = [value or "" for value in values]
            found[0][name + UNSEEN], found[1][name + UNSEEN] = _unseen(texts[: len(old)], texts[len(old) :])
    return found, left_out


def _comparable(values: Sequence[Any]) -> dict[str, Any] | str:
    """What is compared of a column of both sides, by suffix of its name; otherwise why it cannot be."""
    there = [value for value in values if value is not None and value != ""]
    if not there:
        return "no values"
    numbers, distinct = _numbers(values), len(set(map(str, there)))
    if numbers is not None and distinct > MOST_LEVELS:
        return {"": numbers}
    if numbers is not None or all(isinstance(value, (str, bool)) for value in there):
        if distinct <= MOST_VALUES:
            return {"": [None if value is None else str(value) for value in values]}
        lengths = np.array([math.nan if value is None else len(value) for value in values])
        if np.nanmedian(lengths) >= LEAST_TEXT:
            return {LENGTH: lengths}
        return f"more than {MOST_VALUES} values"
    return f"values of type {type(there[0]).__name__}"


def _numbers(values: Sequence[Any]) -> Any:
    """Numbers, also those that a CSV file has as text; NaN is missing. None if there is another value."""
    if any(isinstance(value, bool) for value in values):
        return None
    try:
        return np.array([math.nan if value is None or value == "" else float(value) for value in values])
    except (TypeError, ValueError, OverflowError):
        return None


def _unseen(old: Sequence[str], new: Sequence[str]) -> tuple[Any, Any]:
    """The share of each text's pairs of words that no other text of the reference has."""
    pairs = [_pairs(text) for text in old]
    texts_with = Counter(pair for one in pairs for pair in one)

    def share(found: set[tuple[str, str]], own: int) -> float:
        return sum(texts_with[pair] <= own for pair in found) / len(found) if found else math.nan

    return np.array([share(one, 1) for one in pairs]), np.array([share(_pairs(text), 0) for text in new])


def _pairs(text: str) -> set[tuple[str, str]]:
    words = re.findall(r"\w+", text[:MOST_CHARACTERS].casefold())
    return set(itertools.pairwise(words))


def _predictions(model: LoadedModel, sample: _Sample) -> dict[str, Any]:
    """Columns of the predictions: numbers, labels, and the largest number of each list or mapping of them."""
    found: dict[str, list[Any]] = {}
    with report_progress(f"predicting {sample.name}", len(sample.rows), "rows") as progress:
        for _, prediction in predict_rows(model.trained, sample.rows):
            progress.advance(1)
            for name, value in prediction.items():
                if isinstance(value, Mapping):
                    value = list(value.values())
                if isinstance(value, list) and "probability" in prediction:
                    continue  # that of the likeliest class, or of each token
                if isinstance(value, list):
                    numbers = [one for one in value if isinstance(one, (int, float))]
                    value = max(numbers) if numbers else None
                found.setdefault(PREDICTION + name, []).append(value)
    columns = {name: _comparable(values) for name, values in found.items()}
    return {name: made[""] for name, made in columns.items() if isinstance(made, Mapping) and "" in made}
