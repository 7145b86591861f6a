"""How good predictions were by their outcomes: over all rows, by model, and over time, each with an interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aifx.data.columns import MISSING as MISSING_TEXTS
from aifx.data.versions.sql import identifier, quoted
from aifx.evaluation.resampling import LEAST_GROUPS, Interval, mean_interval, share_interval

MOST_PERIODS = 31
UNITS = ("hour", "day", "week", "month", "year")
"""Lengths of a period: the first of which there are at most MOST_PERIODS."""

DIGITS = 6


def has_value(column: str) -> str:
    """SQL for whether a column has a value, as training sees it."""
    texts = ", ".join(map(quoted, sorted(MISSING_TEXTS)))
    return f"{column} IS NOT NULL AND lower(trim({column}::VARCHAR)) NOT IN ({texts})"


def metrics_sql(columns: Mapping[str, str], prediction: str, outcome: str) -> dict[str, str]:
    """SQL for the metrics of a row, by name: NULL for an outcome that the model does not know. Empty for none.

    Args:
        columns: of the predictions.
        prediction, outcome: table of the predictions, and column of the outcomes.
    """
    of = {name: f"{prediction}.{identifier(name)}" for name in ("label", "probabilities", "value") if name in columns}
    text = f"trim({outcome}::VARCHAR)"
    if "label" in of:
        right = f"({of['label']}::VARCHAR = {text})::DOUBLE"
        if "probabilities" not in of:
            return {"accuracy": right}
        by_class = f"({of['probabilities']}::JSON::MAP(VARCHAR, DOUBLE))"
        squares = f"list_sum(list_transform(map_values({by_class}), lambda p: p * p))"
        is_known = f"map_contains({by_class}, {text})"
        brier = f"{squares} - 2 * {by_class}[{text}] + 1"
        return {name: f"CASE WHEN {is_known} THEN {sql} END" for name, sql in (("accuracy", right), ("brier", brier))}
    if "value" in of:
        sides = (f"TRY_CAST({one} AS DOUBLE)" for one in (f"{of['value']}::VARCHAR", text))  # NULL of a list
        return {"mean_absolute_error": f"abs({' - '.join(sides)})"}
    return {}


def measure(connection: Any, metrics: list[str]) -> dict[str, Any]:
    """The metrics of all rows, of each model's, and of periods of their predictions.

    Args:
        connection: with the table `judged`: the time and the model of each row's prediction, whether its outcome is
            known, and the metrics.
    """
    sums = "".join(f", count({name}), fsum({name}), stddev_samp({name})" for name in metrics)
    found = "count(*), count(*) FILTER (is_known)" + sums

    def rows(by: str, where: str = "true") -> list[Any]:
        sql = f"SELECT {by} AS part, {found} FROM judged WHERE {where} GROUP BY 1 ORDER BY 1"
        return connection.execute(sql).fetchall()  # type: ignore[no-any-return]

    def metrics_of(row: Any) -> list[dict[str, Any]]:
        parts = zip(metrics, *(iter(row[3:]),) * 3, strict=True)
        return [_metric(name, *part) for name, *part in parts if part[0]]

    unit = _unit(connection)
    whole = rows("true")
    return {
        "metrics": metrics_of(whole[0]),
        "models": [{"model": row[0], "rows": row[1], "metrics": metrics_of(row)} for row in rows("model", "is_known")],
        "period": unit,
        "periods": [
            {"start": f"{row[0].isoformat()}Z", "scored": row[1], "joined": row[2], "metrics": metrics_of(row)}
            for row in rows(f"date_trunc('{unit}', timezone('UTC', scored))::TIMESTAMP")
        ],
    }


def _unit(connection: Any) -> str:
    spans = ", ".join(f"date_diff('{unit}', min(scored), max(scored)) + 1" for unit in UNITS)
    counts = connection.execute(f"SELECT {spans} FROM judged").fetchone()
    return next((unit for unit, count in zip(UNITS, counts, strict=True) if count <= MOST_PERIODS), UNITS[-1])


def _metric(name: str, count: int, total: float, deviation: float | None) -> dict[str, Any]:
    """A metric with its 95 % interval; that of a mean needs as many rows as an evaluation's."""
    found: Interval | None = None
    if name == "accuracy":
        found = share_interval(total, count)
    elif count >= LEAST_GROUPS and deviation is not None:
        found = mean_interval(total / count, deviation, count)
    ends = (None, None) if found is None else (_rounded(found.low), _rounded(found.high))
    return {"metric": name, "rows": count, "value": _rounded(total / count), "low": ends[0], "high": ends[1]}


def _rounded(value: float) -> float:
    """So that the order in which threads add up makes no other version."""
    return float(f"{value:.{DIGITS}g}")
