"""A run as a page that can be mailed: curves, the bill of its time, checkpoints, evaluations, samples, provenance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from aifx.checkpoint.manifest import list_checkpoints
from aifx.core.json_files import read_jsonl, readable_bytes
from aifx.core.json_values import number
from aifx.core.pages import date, render
from aifx.core.pages.canvas import Canvas, Picture, canvas, ticks
from aifx.core.plurals import mean_of
from aifx.core.project import Project, RunDirectory
from aifx.machine.catalogue import utilization
from aifx.runs.bill import headline, read_bill, remarks, spent
from aifx.runs.provenance import read_provenance
from aifx.runs.reading import Evaluation, Prediction, changed_settings, read_evaluations, read_predictions
from aifx.runs.status import RunStatus, is_step, run_status

MOST_CONFUSED = 40
"""Classes up to which the confusion matrix is shown."""

MOST_SAMPLES = 5
MOST_EVENTS = 100
QUANTITIES = {"step_time_s": "step time", "units_per_s": "speed", "mfu": "MFU", "memory_bytes": "peak memory"}
FREQUENT = ("checkpoint", "local_checkpoint", "validation", "sample", "time")
"""Events that have a place of their own on the page."""


def run_page(run: RunDirectory, project: Project) -> str:
    """The page of a run, whether it goes on or has ended. Raises ConfigError if `[costs]` cannot be read."""
    status, records, events = run_status(run), read_jsonl(run.metrics), read_jsonl(run.events)
    bill = read_bill(run, project, records)
    samples = [event for event in events if event.get("event") == "sample"]
    return render(
        "aifx.runs",
        "run.html",
        title=f"run {run.name}",
        command=f"aifx runs report {run.name}",
        status=status.status,
        run=status,
        tiles=dict(_tiles(status, records)),
        pictures=curves(records),
        bill=bill and {"headline": headline(bill), "rows": spent(bill), "remarks": "\n".join(remarks(bill))},
        predictions=[(QUANTITIES[one.quantity], *_sides(one, status.unit)) for one in read_predictions(run, records)],
        checkpoints=list_checkpoints(run.checkpoints),
        evaluations=[(one, _numbers(one), _confusion(one)) for one in read_evaluations(run)],
        samples=samples[-MOST_SAMPLES:],
        num_samples=len(samples),
        events=[(event, _words(event)) for event in events if _is_listed(event.get("event"))][-MOST_EVENTS:],
        settings=changed_settings(run),
        origin=dict(_origin(read_provenance(run))),
        date=_moment,
        number=figure,
        size=readable_bytes,
    )


def figure(value: Any) -> str:
    """A number in four digits or places, a count in full; a dash for anything else."""
    found = number(value)
    if found is None:
        return "-"
    if found.is_integer() and abs(found) < 1e15:
        return f"{found:,.0f}"
    return f"{found:.4f}" if 1e-3 <= abs(found) < 1e4 else f"{found:.4g}"


def _tiles(status: RunStatus, records: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    last = records[-1] if records else {}
    of = "" if status.num_steps is None else f" of {status.num_steps:,}"
    yield "step", f"{status.step:,}{of}"
    if status.loss is not None:
        yield "training loss", figure(status.loss)
    if status.best_value is not None:
        at = f"at step {status.best_step:,}{mean_of(status.best_over)}"
        yield f"{status.best_by} on validation, {at}", figure(status.best_value)
    if status.units_per_s is not None:
        yield f"{status.unit} per second", f"{status.units_per_s:,.0f}"
    if used := utilization(number(last.get("mfu")), number(last.get("ceiling_fraction"))):
        yield "MFU", used.removeprefix("MFU ")


def _sides(one: Prediction, unit: str | None) -> tuple[str, str]:
    def text(value: float | None) -> str:
        if value is None:
            return "-"
        formatted = {
            "step_time_s": f"{value:.3g} s",
            "units_per_s": f"{value:,.0f} {unit}/s",
            "mfu": f"{value:.1%}",
            "memory_bytes": readable_bytes(int(value)),
        }
        return formatted[one.quantity]

    is_interval = one.low is not None and one.high is not None
    return f"{text(one.low)} to {text(one.high)}" if is_interval else text(one.predicted), text(one.measured)


def _numbers(one: Evaluation) -> dict[str, float]:
    return {name: value for name, value in one.metrics.items() if number(value) is not None}


def _confusion(one: Evaluation) -> list[tuple[str, Sequence[int]]]:
    """The rows of the confusion matrix with their classes; none if there are too many."""
    classes, confusion = one.metrics.get("per_class"), one.metrics.get("confusion")
    if not isinstance(classes, Mapping) or not isinstance(confusion, list) or len(confusion) > MOST_CONFUSED:
        return []
    return list(zip(classes, confusion, strict=False))


def _is_listed(event: Any) -> bool:
    return isinstance(event, str) and event not in FREQUENT


def _words(event: Mapping[str, Any]) -> str:
    """The fields of an event in one line."""
    left_out = ("event", "time", "state_digest")
    words = []
    for name, value in event.items():
        if name in left_out or value is None or isinstance(value, Mapping):
            continue
        text = figure(value) if isinstance(value, float) else ", ".join(map(str, _as_list(value)))
        words.append(f"{name} {text}")
    return "; ".join(words)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _origin(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    hardware, git = provenance.get("hardware") or {}, provenance.get("git") or {}
    if command := provenance.get("command"):
        yield "command", " ".join(map(str, command))
    if commit := git.get("commit"):
        yield "code", f"{commit}{', with changes' if git.get('dirty') else ''}"
    if dataset := provenance.get("dataset"):
        yield "data set", str(dataset.get("reference"))
    if digest := provenance.get("data_digest"):
        yield "data", str(digest)
    if hardware:
        yield "devices", f"{hardware.get('num_devices')} x {hardware.get('device_kind')} on {hardware.get('host')}"
        yield "processor", f"{hardware.get('cpu')}, {hardware.get('cores')} cores"
        yield "processes", str(hardware.get("num_processes"))
    for name, version in (provenance.get("versions") or {}).items():
        yield name, str(version)
    for name, value in (provenance.get("environment") or {}).items():
        yield name, str(value)


def _moment(time: Any) -> str:
    found = number(time)
    return "-" if found is None else date(found)


MOST_POINTS = 300
"""Points of a line: more would make a page of megabytes and show nothing more."""

MOST_CURVES = 6
"""Pictures of metrics of validation."""

CURVES = {
    "loss": "Loss",
    "units_per_s": "Throughput",
    "step_time_s": "Step time, in seconds",
    "data_wait_s": "Wait for data, in seconds",
    "mfu": "MFU",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
}

LARGEST = 1e100
"""Larger numbers overflow where matplotlib squares them."""

Points = tuple[np.ndarray, np.ndarray]


def curves(records: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """A picture for each number of the records, and for each metric of their validations but the loss, which is in the
    picture of the loss. A number that no record has gets none."""
    records = [record for record in records if is_step(record.get("step"))]
    validations = ((record["step"], record.get("validation")) for record in records)
    validated = [(step, metrics) for step, metrics in validations if isinstance(metrics, Mapping)]
    drawn, others = [], []
    for name, title in CURVES.items():
        points = _points([(record["step"], record.get(name)) for record in records])
        if name == "loss":
            held_out = _points([(step, metrics.get("loss")) for step, metrics in validated])
            drawn.append(_curve(name, title, "", points, held_out))
        else:
            unit = f", in {records[-1].get('unit')} per second" if name == "units_per_s" and records else ""
            others.append(_curve(name, f"{title}{unit}", "", points))
    names = dict.fromkeys(name for _, metrics in validated for name in metrics if name != "loss")
    found = [(name, _points([(step, metrics.get(name)) for step, metrics in validated])) for name in names]
    moving = [(name, points) for name, points in found if len(np.unique(points[1])) > 1]  # not the counts of the data
    for name, points in moving[:MOST_CURVES]:
        drawn.append(_curve(f"validation-{name}", name, "on the validation split", None, points))
    return [picture for picture in (*drawn, *others) if picture is not None]


def _points(pairs: Sequence[tuple[int, Any]]) -> Points:
    """The finite numbers among (step, value)."""
    kept = [(step, found) for step, value in pairs if (found := _drawable(value)) is not None]
    steps, values = zip(*kept, strict=True) if kept else ((), ())
    return np.asarray(steps, float), np.asarray(values, float)


def _drawable(value: Any) -> float | None:
    """`value` as a number that matplotlib can place: ranges of larger ones overflow."""
    found = number(value)
    return found if found is not None and abs(found) < LARGEST else None


def _curve(
    name: str, title: str, caption: str, points: Points | None, held_out: Points | None = None
) -> Picture | None:
    """Numbers of training, of validation, or both. None with fewer than two points."""
    visible = [one for one in (points, held_out) if one is not None and len(one[0])]
    if not any(len(steps) > 1 for steps, _ in visible):
        return None
    with canvas(name) as on:
        if points is not None:
            _line(on, *points)
        if held_out is not None:
            _dots(on, *held_out)
        if len(visible) > 1:
            on.key("training", 0)
            on.key("validation", 1)
        ticks(on.axes.xaxis, MaxNLocator(5, integer=True), lambda step: f"{step:,.0f}")
        ticks(on.axes.yaxis, MaxNLocator(5), _short)
        on.axes.set_xlabel("step")
        return on.picture(title, caption)


def _line(on: Canvas, steps: np.ndarray, values: np.ndarray) -> None:
    """The mean of each of MOST_POINTS bins, in a band from the least to the largest of the bin."""
    bins = np.array_split(np.arange(len(steps)), min(MOST_POINTS, len(steps))) if len(steps) else []
    middle = [steps[part].mean() for part in bins]
    if len(bins) < len(steps):
        low, high = [values[part].min() for part in bins], [values[part].max() for part in bins]
        on.axes.fill_between(middle, low, high, color="C0", alpha=0.2, lw=0)
    on.axes.plot(middle, [values[part].mean() for part in bins], color="C0")


def _dots(on: Canvas, steps: np.ndarray, values: np.ndarray) -> None:
    on.axes.plot(steps, values, color="C1", lw=1)
    every = max(math.ceil(len(steps) / MOST_POINTS), 1)
    for step, value in zip(steps[::every], values[::every], strict=True):
        on.dot(step, value, f"step {step:,.0f}: {_short(value)}", "C1", markersize=3)


def _short(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.4g}"
