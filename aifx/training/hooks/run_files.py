"""Files that every run writes of its steps: metrics.jsonl, the log file, an optional trace."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TextIO

import jax

from aifx.core.files import make_folders, open_file
from aifx.core.project import RunDirectory
from aifx.core.sanitize import one_line
from aifx.runs.records import MetricsWriter, last_record
from aifx.training.hook import Hook
from aifx.training.records import Record, RunInfo, TrainResult


class MetricsFile(Hook):
    """Writes metrics.jsonl. A record is in the file when `on_record` returns: before its step's checkpoint is saved."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._writer: MetricsWriter | None = None
        self._last: list[Any] | None = None  # the step and the time of the last record in the file

    def recorded(self, step: int) -> list[Any] | None:
        """The step and the time of the last record up to `step`."""
        is_last = self._last is not None and self._last[0] <= step
        return self._last if is_last else last_record(self._run.metrics, step)

    def sync(self) -> None:
        """Make what is written survive a loss of power."""
        if self._writer is not None:
            self._writer.sync()

    def start(self, info: RunInfo) -> None:
        self._info = info
        self._writer = MetricsWriter(self._run.metrics, info.recorded_step)

    def on_record(self, record: Record) -> None:
        assert self._writer is not None
        if self._info.is_logged(record):
            document = record.document()
            self._writer.write(document)
            self._last = [document["step"], document["time"]]

    def on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name == "rollback" and self._writer is not None:  # the records of what was given up are cut
            self._writer.close()
            self._writer = MetricsWriter(self._run.metrics, fields["to_step"])
            self._last = None

    def stop(self, result: TrainResult | None) -> None:
        if self._writer is not None:
            self._writer.close()


class LogFile(Hook):
    """Writes train.log: the story of the run in lines for people, with times."""

    EVERY_S = 10.0

    def __init__(self, run: RunDirectory) -> None:
        run.path.mkdir(parents=True, exist_ok=True)
        handle = open_file(run.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._file: TextIO = open(handle, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - stop closes it
        self._last = 0.0

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a copy for people; other files report a full disk
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def start(self, info: RunInfo) -> None:
        self.write(
            f"run {info.run.name}: step {info.first_step} of {info.num_steps}, {info.num_parameters:,} parameters"
        )
        self.write(f"{info.devices}, {info.dtype} computation")
        self.write(info.mfu_formula)

    def on_record(self, record: Record) -> None:
        if record.validation is None and record.time - self._last < self.EVERY_S:
            return
        self._last = record.time
        self.write(record.line)

    def on_event(self, name: str, fields: Mapping[str, Any]) -> None:
        if name == "warning":  # `log_lines` wrote it
            return
        values: list[str] = []
        for key, value in fields.items():
            if isinstance(value, list):  # the changes of settings
                values += map(str, value)
            elif not isinstance(value, Mapping):
                values.append(f"{key}={one_line(value) if isinstance(value, str) else value}")
        self.write(f"{name}: {', '.join(values)}" if values else name)

    def stop(self, result: TrainResult | None) -> None:
        if result is not None:
            loss = "" if result.loss is None else f", loss {result.loss:.4f}"
            self.write(f"{result.status} at step {result.step} of {result.num_steps}{loss}")
        with suppress(OSError):
            self._file.close()


class Trace(Hook):
    """Traces a few steps with jax.profiler into the run's `profile` folder, once the first ones have warmed up."""

    WARM_UP = 3
    STEPS = 4

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._first: int | None = None
        self._active = False

    def on_record(self, record: Record) -> None:
        self._first = self._first if self._first is not None else record.step
        if record.step == self._first + self.WARM_UP:
            make_folders(self._run.profile, below=self._run.path)
            jax.profiler.start_trace(str(self._run.profile), create_perfetto_trace=True)
            self._active = True
        elif record.step == self._first + self.WARM_UP + self.STEPS:
            self.stop(None)

    def stop(self, result: TrainResult | None) -> None:
        if self._active:
            self._active = False
            jax.profiler.stop_trace()
