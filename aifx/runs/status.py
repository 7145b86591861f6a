"""The status of a run, read from its directory alone, whether its process runs or not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aifx.checkpoint.manifest import read_info, step_directories
from aifx.config.best_by import LOSS, BestBy, Score, parse_best_by
from aifx.core.errors import AifxError, UsageError
from aifx.core.files import RECORDS_LIMIT, read_file
from aifx.core.json_files import parse_line, read_jsonl
from aifx.core.json_values import number
from aifx.core.parsing import parse_toml
from aifx.core.project import RunDirectory
from aifx.core.results import Result
from aifx.core.statuses import Status, stop_status
from aifx.runs.lock import holder, is_held
from aifx.runs.manage import read_tags

BEGINNINGS = ("start", "resume")
"""Events that begin a process of the run. `stop` ends one, and its `status` says how."""


@dataclass(frozen=True)
class RunStatus(Result):
    """A run in one line: what `aifx runs watch --json` prints. Times are Unix times; None is not known yet."""

    run: str
    status: Status
    step: int
    num_steps: int | None
    loss: float | None
    validation_loss: float | None  # the last one
    best_validation_loss: float | None  # at best_step
    best_step: int | None
    best_by: str | None  # "max accuracy"
    best_value: float | None  # at best_step: the mean over best_over validations
    best_over: int | None
    unit: str | None  # what `units_per_s` counts: "tokens", "images"
    units_per_s: float | None
    started: float | None
    updated: float | None
    pid: int | None  # of the process that trains it now
    tags: tuple[str, ...]
    refused: str | None = None  # why the disk takes no checkpoint now, and since which step
    damage: str | None = None  # why the last checkpoint of a run that has ended cannot be used; arrays are not read

    @property
    def alive(self) -> bool:
        return self.status == "running"


@dataclass(frozen=True)
class RunList(Result):
    """The document that `aifx runs ls --json` prints."""

    runs: list[RunStatus]


def run_status(run: RunDirectory) -> RunStatus:
    """The status of `run` now. Never raises for files that a run lacks while it begins."""
    # The lock is asked first: a process that ends in between has then written its last event before it is read.
    held = is_held(run)
    who = holder(run) if held else None
    events = read_jsonl(run.events)
    settings = read_settings(run)
    num_steps, best_by = settings.get("train.num_steps"), _best_by(settings)
    last, validated = _read_metrics(run)
    losses = [loss for record in validated if (loss := validation_loss(record)) is not None]
    scored = _scored(validated, best_by, settings.get("checkpoint.best_over"))
    best = min(scored, key=lambda one: one[0].cost, default=None)
    process = _last_process(events)
    steps = [int(found["step"]) for found in (last, *process) if is_step(found.get("step"))]
    return RunStatus(
        run=run.name,
        status="running" if held else _ending(process),
        step=max(steps, default=0),  # not every step has a record
        num_steps=num_steps if isinstance(num_steps, int) else None,
        loss=number(last.get("loss")),
        validation_loss=losses[-1] if losses else None,
        best_validation_loss=validation_loss(best[1]) if best else None,
        best_step=best[1]["step"] if best else None,
        best_by=str(best_by),
        best_value=best[0].value if best else None,
        best_over=best[2] if best else None,
        unit=str(last["unit"]) if "unit" in last else None,
        units_per_s=number(last.get("units_per_s")),
        started=next((t for e in events if (t := number(e.get("time"))) is not None), None) or _written(run.config),
        updated=max((t for t in map(_written, (run.metrics, run.events, run.config)) if t is not None), default=None),
        pid=who.pid if who else None,
        tags=read_tags(run),
        refused=_refused(process),
        damage=None if held else _damage(run),
    )


def _scored(
    validated: Iterable[Mapping[str, Any]], best_by: BestBy, best_over: object
) -> list[tuple[Score, Mapping[str, Any], int]]:
    """The score of the checkpoint of each record with a finite metric, the record, and the number of values whose mean
    the score is."""
    num_values = best_over if isinstance(best_over, int) and best_over > 0 else 1
    recent: list[float] = []
    scored = []
    for record in validated:
        if (value := best_by.value(record["validation"])) is not None:
            recent = [*recent, value][-num_values:]
            scored.append((best_by.score(recent), record, len(recent)))
    return scored


def _refused(process: Sequence[Mapping[str, Any]]) -> str | None:
    last = next((e for e in reversed(process) if e.get("event") in ("checkpoint", "checkpoint_refused")), None)
    is_refused = last is not None and last["event"] == "checkpoint_refused"
    return f"since step {last.get('step')}: {last.get('why')}" if last and is_refused else None


def _damage(run: RunDirectory) -> str | None:
    try:
        steps = step_directories(run.checkpoints)
        info = read_info(steps[max(steps)]) if steps else None
    except AifxError as error:  # a link, or a format that this version does not know
        return error.what
    except OSError as error:
        return error.strerror or str(error)
    return f"checkpoint {info.step}: {info.damaged}" if info and info.damaged else None


def _read_metrics(run: RunDirectory) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last record of `metrics.jsonl`, and those that validated; what lies between is not parsed."""
    try:
        data = read_file(run.metrics, limit=RECORDS_LIMIT)
    except FileNotFoundError:
        data = b""
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    last = next((record for line in reversed(lines) if (record := parse_line(line)) is not None), {})
    marked = [record for line in lines if b'"validation"' in line and (record := parse_line(line)) is not None]
    return last, [r for r in marked if isinstance(r.get("validation"), Mapping) and is_step(r.get("step"))]


def validation_loss(record: Mapping[str, Any]) -> float | None:
    """The validation loss of a record of `metrics.jsonl`; None if that step did not validate."""
    validation = record.get("validation")
    return number(validation.get("loss")) if isinstance(validation, Mapping) else None


def is_step(value: Any) -> bool:
    """Whether `value`, of a line that may be damaged, is the number of a step or of a batch."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _last_process(events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The events of the run's last process, from the one that begins it."""
    begins = [i for i, event in enumerate(events) if event.get("event") in BEGINNINGS]
    return events[begins[-1] :] if begins else events


def _ending(process: Sequence[Mapping[str, Any]]) -> Status:
    stops = [event for event in process if event.get("event") == "stop"]
    return stop_status(stops[-1].get("status")) if stops else "killed"


def ending_before(run: RunDirectory, pid: int) -> Status | None:
    """The ending of the process of the run before that of `pid`, None if there was none."""
    events = read_jsonl(run.events)
    last = _last_process(events)
    if last and last[0].get("pid") == pid:
        last = _last_process(events[: len(events) - len(last)])
    return _ending(last) if last else None


def read_settings(run: RunDirectory) -> dict[str, Any]:
    """Every value of `config.toml` by key; empty if it cannot be read."""
    try:
        sections = parse_toml(read_file(run.config).decode())
    except (OSError, ValueError):
        return {}
    flat: dict[str, Any] = {}
    for section, values in sections.items():
        flat |= {f"{section}.{key}": v for key, v in values.items()} if isinstance(values, dict) else {section: values}
    return flat


def _best_by(settings: Mapping[str, Any]) -> BestBy:
    """The metric that ranks the checkpoints of a run; the loss if its configuration does not set it."""
    best_by = settings.get("checkpoint.best_by")
    try:
        return parse_best_by(best_by) if isinstance(best_by, str) else LOSS
    except UsageError:
        return LOSS


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
