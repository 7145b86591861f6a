"""How a run stands, read from its directory alone, whether its process lives or not."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.project import RunDirectory
from aifx.runs.files import parse_line, read_jsonl
from aifx.runs.lock import holder, is_held

BEGINNINGS = ("start", "resume")
"""Events that begin a process of the run; `stop` ends one and says how in its `status`."""


@dataclass(frozen=True)
class RunStatus:
    """A run in one line. Times are Unix times; what is not known yet is None."""

    name: str
    status: (
        str  # running, killed, or the last stop's: completed, early_stopped, interrupted, preempted, diverged, failed
    )
    step: int
    num_steps: int | None
    loss: float | None
    validation_loss: float | None  # the last one
    best_validation_loss: float | None
    best_step: int | None
    tokens_per_s: float | None
    started: float | None
    updated: float | None
    pid: int | None  # of the process that trains it now

    @property
    def alive(self) -> bool:
        return self.status == "running"


def run_status(run: RunDirectory) -> RunStatus:
    """How `run` stands now. Never raises for what a run in the making lacks."""
    # The lock is asked first: a process that ends in between has then written its last event before it is read.
    held = is_held(run)
    who = holder(run) if held else None
    events = read_jsonl(run.events)
    metrics = read_metrics(run)
    last = metrics.last or {}
    return RunStatus(
        name=run.name,
        status="running" if held else _ending(events),
        step=int(last.get("step") or 0),
        num_steps=_num_steps(run),
        loss=number(last.get("loss")),
        validation_loss=metrics.validation_loss,
        best_validation_loss=metrics.best_validation_loss,
        best_step=metrics.best_step,
        tokens_per_s=number(last.get("tokens_per_s")),
        started=next((number(e.get("time")) for e in events), None) or _written(run.config),
        updated=max((t for t in map(_written, (run.metrics, run.events, run.config)) if t is not None), default=None),
        pid=who.pid if who else None,
    )


@dataclass(frozen=True)
class MetricsSummary:
    """The ends of `metrics.jsonl`, without parsing what lies between."""

    last: dict[str, Any] | None
    validation_loss: float | None
    best_validation_loss: float | None
    best_step: int | None


def read_metrics(run: RunDirectory) -> MetricsSummary:
    """The last record, and the last and best of those that validated."""
    try:
        data = run.metrics.read_bytes()
    except FileNotFoundError:
        data = b""
    last: dict[str, Any] | None = None
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    for line in reversed(lines):
        if (last := parse_line(line)) is not None:
            break
    latest: float | None = None
    best: tuple[float, int] | None = None
    for line in lines:
        if b'"validation"' not in line or (record := parse_line(line)) is None:
            continue
        loss = validation_loss(record)
        if loss is not None:
            latest = loss
            if best is None or loss < best[0]:
                best = (loss, int(record.get("step") or 0))
    return MetricsSummary(last, latest, best[0] if best else None, best[1] if best else None)


def validation_loss(record: Mapping[str, Any]) -> float | None:
    """The validation loss of a record of `metrics.jsonl`, None where it did not validate."""
    validation = record.get("validation")
    return number(validation.get("loss")) if isinstance(validation, Mapping) else None


def number(value: Any) -> float | None:
    """`value` as a finite float, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _ending(events: list[dict[str, Any]]) -> str:
    for event in reversed(events):
        if event.get("event") == "stop":
            return str(event.get("status") or "completed")
        if event.get("event") in BEGINNINGS:
            break
    return "killed"


def _num_steps(run: RunDirectory) -> int | None:
    try:
        steps = tomllib.loads(run.config.read_text(encoding="utf-8"))["train"]["num_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return steps if isinstance(steps, int) else None


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
