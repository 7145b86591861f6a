"""Reading a run directory, alive or dead: settings, evaluations, predictions, skipped batches, metrics as they come."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aifx.checkpoint.manifest import step_directories
from aifx.core.files import open_file, read_file
from aifx.core.json_files import parse_lines, read_jsonl
from aifx.core.json_values import number
from aifx.core.parsing import parse_json
from aifx.core.project import RunDirectory
from aifx.machine.catalogue import utilization
from aifx.runs.status import is_step, read_settings, run_status

Quantity: TypeAlias = Literal["step_time_s", "units_per_s", "mfu", "memory_bytes"]

PLACES: Mapping[Quantity, tuple[str, str]] = {
    "step_time_s": ("time", "step_s"),
    "units_per_s": ("time", "units_per_s"),
    "mfu": ("time", "mfu"),
    "memory_bytes": ("memory", "total"),
}
"""Where a plan holds each quantity."""


@dataclass(frozen=True)
class Setting:
    """One value of a run's configuration that is not its default."""

    key: str  # "train.num_steps"
    value: Any
    origin: str  # "aifx.toml:12", "--set", "preset gpt2-124m"


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a checkpoint on one split."""

    step: int
    split: str
    metrics: Mapping[str, Any]
    gates: Sequence[Mapping[str, Any]]
    passed: bool
    measured_at: float | None  # Unix time


def changed_settings(run: RunDirectory) -> list[Setting]:
    """The values that are not the default, with who set them: `config.toml` notes that behind each."""
    from aifx.config.toml import written_origin
    from aifx.kinds import settings, variant_names

    values = read_settings(run)
    variants = {None, *variant_names(values)}
    defaults = {f"{s.section}.{s.key}": s.default for s in settings() if s.variant in variants}
    section, found = "", []
    for line in read_file(run.config).decode().splitlines() if values else ():
        if line.startswith("["):
            section = line.strip().strip("[]")
            continue
        key, origin = f"{section}.{line.partition('=')[0].strip()}", written_origin(line)
        is_default = key in defaults and values.get(key) == defaults[key]
        if key in values and origin and origin.kind != "default" and not is_default:
            found.append(Setting(key, values[key], origin.where))
    return found


def read_evaluations(run: RunDirectory) -> list[Evaluation]:
    """The evaluations in `eval/`, by step and split. One that is not a report is left out.

    Raises UnsafeFile for a link, a FIFO, a device or a folder.
    """
    found = []
    for path in run.eval.glob("*.json"):
        try:
            doc = parse_json(read_file(path, below=run.path))
            for split, entry in [*doc["splits"].items(), *_datasets(doc)]:
                gates, passed = entry.get("gates", []), bool(entry.get("passed", True))
                when = number(entry.get("measured_at"))
                found.append(Evaluation(int(doc["step"]), split, entry["metrics"], gates, passed, when))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return sorted(found, key=lambda e: (e.step, e.split))


def _datasets(doc: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The reports on data sets of a step, named by file and digest as splits are by name."""
    for entry in doc.get("datasets", []):
        quantized = "" if entry["quantize"] == "none" else f"-{entry['quantize']}"
        yield f"{entry['name']} ({entry['digest'][:12]}){quantized}", entry


@dataclass(frozen=True)
class Prediction:
    """A quantity of a run as predicted and as measured: the median over steps, and the peak of memory.

    Attributes:
        predicted: None without a plan of the run.
        low, high: the interval of the plan; None if it has none.
        measured: None while the run hasn't measured it.
    """

    quantity: Quantity
    predicted: float | None
    low: float | None
    high: float | None
    measured: float | None


def read_predictions(run: RunDirectory, records: Sequence[Mapping[str, Any]]) -> list[Prediction]:
    """Those of which one side is known. `records` are the lines of metrics.jsonl."""
    try:
        plan = parse_json(read_file(run.plan))
    except (OSError, ValueError):
        plan = None
    measured = _measured(run, records)
    both = [Prediction(name, *_planned(plan, *place), measured.get(name)) for name, place in PLACES.items()]
    return [one for one in both if one.predicted is not None or one.measured is not None]


def _planned(plan: Any, part: str, name: str) -> tuple[float | None, float | None, float | None]:
    """The value, and the ends of its interval."""
    try:
        figure = plan["plan"][part][name]
        return number(figure["value"]), number(figure.get("low")), number(figure.get("high"))
    except (KeyError, TypeError, AttributeError):
        return None, None, None


def _measured(run: RunDirectory, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {}
    for name in ("step_time_s", "units_per_s", "mfu"):
        # The first step of a process warms up.
        if values := _numbers(records[1:] or records, name):
            found[name] = statistics.median(values)
    if peaks := _numbers(read_jsonl(run.events), "peak_memory_bytes"):
        found["memory_bytes"] = peaks[-1]
    return found


def _numbers(records: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [value for record in records if (value := number(record.get(name))) is not None]


class MetricsTail:
    """The records of a `metrics.jsonl` that another process writes, taken as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._end = b""  # the last line read: a resumption cuts the file, which is then read again

    def read(self) -> tuple[list[dict[str, Any]], bool]:
        """The records since the last call, and whether the earlier ones are void."""
        try:
            with open(open_file(self._path), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                back = len(self._end)
                file.seek(self._offset - back)
                restart = size < self._offset or file.read(back) != self._end
                if restart:
                    self._offset, self._end = 0, b""
                    file.seek(0)
                data = file.read()
        except FileNotFoundError:
            return [], False
        whole = data[: data.rfind(b"\n") + 1]
        if whole:
            self._offset += len(whole)
            self._end = whole[whole.rfind(b"\n", 0, -1) + 1 :]
        return parse_lines(whole), restart


class WatchedRun:
    """The last reading of a run that another process trains: its status, the losses of its steps, its last record."""

    def __init__(self, run: RunDirectory) -> None:
        self.losses: list[float | None] = []
        self.last: dict[str, Any] = {}
        self._run = run
        self._tail = MetricsTail(run.metrics)
        self.look()

    def look(self) -> bool:
        """Read what is new. Returns whether the run is alive."""
        # The status first: once it says that the run has ended, its last record is there to be read.
        self.status = run_status(self._run)
        records, restart = self._tail.read()
        if restart:
            self.losses.clear()
        self.losses += [number(record.get("loss")) for record in records]
        self.last = records[-1] if records else self.last
        return self.status.alive

    @property
    def utilization(self) -> str:
        """ "MFU 31.0% (52.4%)" of the last step; empty if it is not known."""
        return utilization(number(self.last.get("mfu")), number(self.last.get("ceiling_fraction")))

    @property
    def saved_step(self) -> int | None:
        """The step of the last checkpoint."""
        return max(step_directories(self._run.checkpoints), default=None)

    @property
    def time_to_go_s(self) -> float | None:
        """At the speed of the last step; None if that is not known, or how many steps there are."""
        step_s, num_steps = number(self.last.get("step_time_s")), self.status.num_steps
        return step_s * (num_steps - self.status.step) if step_s and num_steps else None


@dataclass(frozen=True)
class Skips:
    """The batches of a run that taught it nothing, by their number from 0.

    Attributes:
        left_out: those that no step takes, in rising order.
        reasons: why, of each of them and of those whose update was not applied.
    """

    left_out: tuple[int, ...]
    reasons: Mapping[int, str]


def find_skips(events: Iterable[Mapping[str, Any]]) -> Skips:
    """The skipped batches that the events of a run, in order, name. A start from nothing discards the earlier ones."""
    left_out: set[int] = set()
    reasons: dict[int, str] = {}
    for event in events:
        match event.get("event"):
            case "start":
                left_out, reasons = set(), {}
            case "skip":
                why = f"the update of step {event.get('step')} was not applied ({event.get('reason')})"
                reasons |= dict.fromkeys(_batches([event.get("batch")]), why)
            case "rollback":
                batches = _batches(event.get("batches"))
                left_out |= batches
                went_back = f"went back from step {event.get('from_step')} ({event.get('reason')})"
                why = f"no step takes it since the run {went_back}"
                reasons |= dict.fromkeys(batches, why)
    return Skips(tuple(sorted(left_out)), reasons)


def _batches(numbers: Any) -> set[int]:
    """The numbers of batches in a list of a ledger; a damaged line has others too."""
    return {n for n in numbers if is_step(n)} if isinstance(numbers, list) else set()
