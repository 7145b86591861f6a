"""Rows of now beside the rows that a model was trained on: which columns and predictions drifted."""

from __future__ import annotations

import calendar
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np

from aifx.config.gates import Gate, parse_gate
from aifx.core.errors import DataError, ExitCode, UsageError, did_you_mean
from aifx.core.plurals import counted
from aifx.core.progress import report_progress
from aifx.core.results import Result
from aifx.curation.column_drift import LEAST_ROWS, MISSING, MOST_ROWS, ColumnDrift, compare_columns
from aifx.data.images import ImageFormat
from aifx.data.names import RESERVED, ROW, SPLIT
from aifx.data.readers.formats import IMAGE
from aifx.data.readers.rows import Row
from aifx.feedback.columns import LENGTH, Columns, columns_of
from aifx.feedback.performance import ESTIMATE, OUTCOME, Performance, Predicted, measure_performance
from aifx.feedback.pictures import DISTANCE, distances
from aifx.loading.prediction import LoadedModel, hidden_rows, predict_rows

PREDICTION = "prediction."
"""Before the name of a column of predictions."""

PARTS: Mapping[str, Callable[[datetime], int]] = {
    "4 hours of a day of the week": lambda time: time.weekday() * 6 + time.hour // 4,
    "day of the week": lambda time: time.weekday(),
}
"""Numbers of a time's part of the week, the finest first."""

LEAST_ROWS_OF_PART = 10

MOST_AHEAD = timedelta(days=1)
"""Of a row's time that is taken: times without a zone are up to 14 hours ahead."""

MOST_PICTURES = 2000
"""Rows of each side that are compared if they hold pictures, which fill memory."""


@dataclass(frozen=True)
class Monitored(Result):
    """The document of `aifx monitor --json`. It has no value of a row but the medians of `monitor.shown`.

    Attributes:
        digest: of the model version, or of a run's checkpoint.
        source: of the rows of now.
        reference: what they are compared with.
        rows: that were compared, of `rows_read` in the window.
        part: of the week: rows are compared with those of the same one; "" if with all, or "none: " and why in spite of
            a column of times.
        columns: the drifted ones first. Those of predictions are named "prediction.NAME".
        left_out: columns that cannot be compared, with the reason.
        drifted: names of the columns that drifted beyond their limits.
        performance: metrics by outcomes, and an estimate without; None if there is neither.
        unmeasured: metrics that are not known, with the reason.
        breached: gates and limits that a metric's whole interval is outside of.
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
    performance: Performance | None
    unmeasured: Mapping[str, str]
    breached: tuple[str, ...]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.VERDICT if self.drifted or self.breached else ExitCode.OK


@dataclass(frozen=True)
class MonitoredRows:
    """Rows of one side.

    Attributes:
        name: of the source.
        read: yields the rows.
        splits: of the rows that count, by their column `_split`; empty if all do.
    """

    name: str
    read: Callable[[], Iterable[Row]]
    splits: tuple[str, ...] = ()


def _values_of(row: Row, chosen: Sequence[str] | None, time: str | None) -> dict[str, Any]:
    """The values that are compared.

    Args:
        chosen: the columns that count, if they are known: a number of a row always drifts.
    """
    names = [name for name in row.values if name not in RESERVED and name != time] if chosen is None else chosen
    return {name: row.values[name] for name in names if name in row.values}


def monitor(
    model: LoadedModel,
    now: MonitoredRows,
    reference: MonitoredRows,
    unseen: MonitoredRows | None,
    *,
    limits: Sequence[str] = (),
    shown: Sequence[str] = (),
    time: str | None = None,
    window: timedelta | None = None,
    until: datetime | None = None,
) -> Monitored:
    """Compare rows and their predictions with those of a reference.

    Args:
        unseen: rows of the reference that the model was not trained on, whose predictions are compared; None if there
            are none.
        limits: the effect that a column may have, as "amount <= 0.2", and conditions on metrics, as
            "outcome.accuracy >= 0.9" and "estimate.accuracy >= 0.9". Those of `eval.gates` are among them.
        shown: columns whose medians the report has: each is a value of a row.
        time: the column with the time of a row: rows are compared with those of the same part of the week.
        window: how long before `until`, by default now, a row of now may be.

    Raises UsageError for a limit of a column that is not there, DataError for rows that cannot be used or are too few.
    """
    gates = [parse_gate(limit) for limit in limits]
    of_metrics = [gate for gate in gates if gate.name.startswith((OUTCOME, ESTIMATE))]
    least = _least(gate for gate in gates if gate not in of_metrics)
    if window is not None and time is None:
        raise UsageError("--window requires --time", "rows are chosen by their time", "--time COLUMN")
    until = until or datetime.now(UTC)
    read, target = model.format.input_columns, getattr(model.trained.config.data, "target", None)
    chosen = [name for name in (*read, target) if name is not None and name != time] if read else None
    old = _Sample(reference, time, None, until)
    new = _Sample(now, time, until - window if window is not None else None, until)
    for sample in (old, new):
        there = set[str]().union(*(row.values for row in sample.rows))
        if lacking := [name for name in read if name not in there]:
            why = f"the model reads {', '.join(read)}"
            raise DataError(f"{sample.name} lacks {', '.join(map(repr, lacking))}", why, "name rows with these columns")
    part, parts = _parts(old.times, new.times)
    columns = columns_of(*([_values_of(row, chosen, time) for row in sample.rows] for sample in (old, new)))
    # Beside rows that the model was not trained on: it is surer of those that it knows.
    fresh = old if unseen is reference else None
    if unseen is not None and fresh is None:
        with suppress(DataError):  # too few rows
            fresh = _Sample(unseen, time, None, until)
    found_now = _predictions(model, new)
    found_before = None if fresh is None else _predictions(model, fresh)
    predictions = Columns()
    if found_before is None:
        why = f"{reference.name} has fewer than {LEAST_ROWS} rows that were held out, and a model is surer of others"
        columns.left_out["predictions"] = why
    else:
        predictions = columns_of(*([_flat(one) for one in every] for every in (found_before, found_now)))
        if fresh is not None and isinstance(model.format, ImageFormat):
            predictions.add(IMAGE + DISTANCE, *_distances(model, old, fresh, new))
    known = [*columns.sides[0], *predictions.sides[0]]
    known += [name + MISSING for name in known if isinstance(columns.sides[0].get(name), np.ndarray)]
    if unknown := [name for name in least if name not in known]:
        what = f"there is no column {unknown[0]!r} to limit"
        raise UsageError(what, did_you_mean(unknown[0], known), f"there are {', '.join(known)}")
    lengths = [name for name in known if name.endswith(LENGTH)]
    compared = [*compare_columns(*columns.sides, parts, lengths=lengths, least=least)]
    if fresh is not None:
        fresh_part, fresh_parts = _parts(fresh.times, new.times)
        part = part if fresh_part == part else f"{part}; predictions by {fresh_part}"
        compared += compare_columns(*predictions.sides, fresh_parts, least=least)
    performance, unmeasured = None, dict[str, str]()
    if model.format.outcome_column:
        performance, unmeasured = measure_performance(
            model.trained.task.objective,
            model.trained.task.data,
            _with_outcomes(model, new, found_now),
            None if fresh is None or found_before is None else _with_outcomes(model, fresh, found_before),
            gates=[parse_gate(gate) for gate in model.trained.config.eval.gates],
            limits=of_metrics,
        )
    found = [one if one.column in shown else replace(one, medians=None) for one in compared]
    found = sorted(found, key=lambda one: (not one.drifted, -one.effect / max(one.least, 1e-9)))
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
        columns=tuple(found),
        left_out={**columns.left_out, **predictions.left_out},
        drifted=tuple(dict.fromkeys(one.column for one in found if one.drifted)),
        performance=performance,
        unmeasured=unmeasured,
        breached=performance.breached if performance is not None else (),
    )


def _least(limits: Iterable[Gate]) -> dict[str, float]:
    found = {}
    for gate in limits:
        if gate.op not in ("<=", "<"):
            why = f"it bounds the effect of a column from above; {OUTCOME} and {ESTIMATE} name metrics"
            raise UsageError(f"{gate.expr!r} is not a limit", why, f'"{gate.name} <= 0.2"')
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
        draw, newest, most = random.Random(0), None, MOST_ROWS
        with report_progress(f"reading {side.name}", None, "rows") as progress:
            for row in side.read():
                progress.advance(1)
                if side.splits and row.values.get(SPLIT, "train") not in side.splits:
                    continue
                at = _time_of(row, time) if time is not None else None
                newest = max(newest or at, at) if at is not None else None
                if since is not None and at is not None and at > until + MOST_AHEAD:
                    why = f"{time!r} is {at:%Y-%m-%d %H:%M}, and a window ends now"
                    raise DataError(f"{row.place}: the row is from the future", why, "correct it, or leave it out")
                if since is not None and at is not None and not since <= at <= until:
                    continue
                self.read += 1
                if self.read == 1 and any(isinstance(value, np.ndarray) for value in row.values.values()):
                    most = MOST_PICTURES
                place = len(self.rows) if len(self.rows) < most else draw.randrange(self.read)
                if place >= most:
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
        raise DataError(f"{row.place}: {column!r} is no time", why, "--time COLUMN") from None


def _parts(old: list[datetime] | None, new: list[datetime] | None) -> tuple[str, tuple[Any, Any] | None]:
    """The finest parts of the week of which the reference has rows wherever there are some now."""
    if old is None or new is None:
        return "", None
    for name, number in PARTS.items():
        parts = [np.array([number(time) for time in times]) for times in (old, new)]
        counts = np.bincount(parts[0], minlength=42)
        if counts[np.unique(parts[1])].min() >= LEAST_ROWS_OF_PART:
            return name, (parts[0], parts[1])
    days = [calendar.day_name[day] for day in np.unique(parts[1]).tolist() if counts[day] < LEAST_ROWS_OF_PART]
    return f"none: the reference has fewer than {LEAST_ROWS_OF_PART} rows of {days[0]}", None


def _predictions(model: LoadedModel, sample: _Sample) -> list[dict[str, Any]]:
    found = []
    with report_progress(f"predicting {sample.name}", len(sample.rows), "rows") as progress:
        for _, prediction in predict_rows(model.trained, sample.rows):
            progress.advance(1)
            found.append(prediction)
    return found


def _distances(model: LoadedModel, old: _Sample, fresh: _Sample, new: _Sample) -> list[Any]:
    """The distances of pictures of both sides to those of the reference, in the model's last layer."""
    known = hidden_rows(model.trained, old.rows)
    if fresh is old:
        return [distances(known, known, are_known=True), distances(hidden_rows(model.trained, new.rows), known)]
    return [distances(hidden_rows(model.trained, side.rows), known) for side in (fresh, new)]


def _flat(prediction: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers, labels, label sets as text, and the largest number of each list or mapping of them."""
    flat = {}
    for name, value in prediction.items():
        if isinstance(value, Mapping):
            value = list(value.values())
        if isinstance(value, list):
            if "probability" in prediction:
                continue  # that of the likeliest class, or of each label
            numbers = [one for one in value if isinstance(one, (int, float))]
            value = max(numbers) if numbers else " ".join(sorted(map(str, value)))
        flat[PREDICTION + name] = value
    return flat


def _with_outcomes(model: LoadedModel, sample: _Sample, predictions: Sequence[Mapping[str, Any]]) -> Predicted:
    """Predictions of the rows of a sample, with outcomes and groups by `eval.group` or `data.group_column`."""
    config = model.trained.config
    column = config.eval.group or getattr(config.data, "group_column", None) or ROW
    groups = [row.values.get(column) for row in sample.rows] if column != ROW else None
    outcomes = [row.values.get(model.format.outcome_column) for row in sample.rows]
    return Predicted(predictions, outcomes, None if groups is None or None in groups else groups)
