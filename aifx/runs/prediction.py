"""What `aifx plan --run` predicted of a run, beside what the run measured."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from aifx.core.files import read_file
from aifx.core.json_files import read_jsonl
from aifx.core.parsing import parse_json
from aifx.core.project import RunDirectory
from aifx.runs.status import number

Quantity: TypeAlias = Literal["step_time_s", "units_per_s", "mfu", "memory_bytes"]

PLACES: Mapping[Quantity, tuple[str, str]] = {
    "step_time_s": ("time", "step_s"),
    "units_per_s": ("time", "units_per_s"),
    "mfu": ("time", "mfu"),
    "memory_bytes": ("memory", "total"),
}
"""Where a plan holds each quantity."""


@dataclass(frozen=True)
class Prediction:
    """A quantity of a run as predicted and as measured: the median over steps, and the peak of memory.

    Attributes:
        predicted: None without a plan of the run.
        measured: None while the run hasn't measured it.
    """

    quantity: Quantity
    predicted: float | None
    measured: float | None


def read_predictions(run: RunDirectory, records: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    """Those of which one side is known. `records` are the lines of metrics.jsonl."""
    plan, measured = _read_plan(run), _measured(run, records)
    both = [Prediction(name, _planned(plan, *place), measured.get(name)) for name, place in PLACES.items()]
    return [one for one in both if one.predicted is not None or one.measured is not None]


def _read_plan(run: RunDirectory) -> Any:
    try:
        return parse_json(read_file(run.plan))
    except (OSError, ValueError):
        return None


def _planned(plan: Any, part: str, name: str) -> float | None:
    try:
        return number(plan["plan"][part][name]["value"])
    except (KeyError, TypeError):
        return None


def _measured(run: RunDirectory, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for name in ("step_time_s", "units_per_s", "mfu"):
        # The first step of a process warms up.
        if values := list(_numbers(records[1:] or records, name)):
            found[name] = statistics.median(values)
    if peaks := list(_numbers(read_jsonl(run.events), "peak_memory_bytes")):
        found["memory_bytes"] = peaks[-1]
    return found


def _numbers(records: Sequence[Mapping[str, Any]], name: str) -> Iterator[float]:
    for record in records:
        if (value := number(record.get(name))) is not None:
            yield value
