"""A run as a page that can be mailed: curves, the bill of its time, checkpoints, evaluations, samples, provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aifx.checkpoint.manifest import list_checkpoints
from aifx.core.json_files import read_jsonl, readable_bytes
from aifx.core.json_values import number
from aifx.core.pages import date, render
from aifx.core.plurals import mean_of
from aifx.core.project import Project, RunDirectory
from aifx.machine.catalogue import utilization
from aifx.runs.bill import read_bill
from aifx.runs.bill_words import headline, remarks, spent
from aifx.runs.curves import curves
from aifx.runs.provenance import read_provenance
from aifx.runs.reading import Evaluation, Prediction, changed_settings, read_evaluations, read_predictions
from aifx.runs.status import RunStatus, run_status

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
        events=[(event, _words(event)) for event in events if _is_shown(event.get("event"))][-MOST_EVENTS:],
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
        shown = {
            "step_time_s": f"{value:.3g} s",
            "units_per_s": f"{value:,.0f} {unit}/s",
            "mfu": f"{value:.1%}",
            "memory_bytes": readable_bytes(int(value)),
        }
        return shown[one.quantity]

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


def _is_shown(event: Any) -> bool:
    return isinstance(event, str) and event not in FREQUENT


def _words(event: Mapping[str, Any]) -> str:
    """The fields of an event in one line."""
    left_out = ("event", "time", "state_digest")
    words = []
    for name, value in event.items():
        if name in left_out or value is None or isinstance(value, Mapping):
            continue
        shown = figure(value) if isinstance(value, float) else ", ".join(map(str, _as_list(value)))
        words.append(f"{name} {shown}")
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
