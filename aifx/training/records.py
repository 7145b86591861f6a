"""What a run tells while it goes: one record a step, a few events, a result; and who listens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from aifx.config import Config
from aifx.core.errors import AifxError, ErrorDocument, ExitCode
from aifx.core.project import RunDirectory
from aifx.core.statuses import ProcessStatus
from aifx.machine.catalogue import Peak
from aifx.runs.formats import MetricsRecord, RunEnd


@dataclass(frozen=True)
class RunInfo:
    """What is known when the first step is about to run."""

    run: RunDirectory
    config: Config
    first_step: int  # updates done before this process began
    recorded_step: int  # whose record stands: first_step, or the one before where its validation is to be made up
    num_steps: int
    unit: str  # "tokens", "images"
    num_parameters: int
    flops_per_step: int  # forward and backward, of the whole global batch
    peak: Peak | None  # None where the catalogue does not know the device
    devices: str  # "2 x NVIDIA H100 80GB HBM3"
    dtype: str  # of the computation
    ceiling: Peak | None = None  # what products reached on this machine; None where that was not measured

    @property
    def mfu_formula(self) -> str:
        """How `mfu` of a record is formed, in one line; in a second, what it is held against besides."""
        if self.ceiling is None:
            return self._of_peak
        return f"{self._of_peak}\nin brackets: of {self.ceiling.flops:.4g} FLOP/s, {self.ceiling.formula}"

    @property
    def _of_peak(self) -> str:
        if self.peak is None:
            return f"MFU is not told: no peak is known for {self.devices}"
        formed = f"{self.flops_per_step:.4g} model FLOPs a step / step time / {self.peak.flops:.4g} FLOP/s"
        return f"MFU = {formed}; peak: {self.peak.formula}"

    def is_logged(self, record: Record) -> bool:
        """Whether metrics.jsonl and the trackers get it: `log.every` steps, the last, and those that validated."""
        is_due = record.step % self.config.log.every == 0 or record.step == self.num_steps
        return is_due or record.validation is not None


@dataclass(frozen=True)
class Record:
    """One optimizer step; docs/metrics.md is the documentation."""

    step: int  # updates done, this one included
    loss: float
    grad_norm: float
    learning_rate: float
    units: int  # tokens or images so far, over the whole run
    units_per_s: float
    step_time_s: float
    data_wait_s: float
    mfu: float | None
    time: float
    unit: str
    ceiling_fraction: float | None = None
    validation: Mapping[str, Any] | None = None

    def document(self) -> MetricsRecord:
        """The line of metrics.jsonl."""
        doc: MetricsRecord = {
            "step": self.step,
            "loss": self.loss,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "unit": self.unit,
            "units": self.units,
            "units_per_s": self.units_per_s,
            "step_time_s": self.step_time_s,
            "mfu": self.mfu,
            "ceiling_fraction": self.ceiling_fraction,
            "data_wait_s": self.data_wait_s,
            "time": self.time,
        }
        if self.validation is not None:
            doc["validation"] = dict(self.validation)
        return doc


class TrainDocument(RunEnd):
    """What `aifx train --json` prints. `error` says why a run diverged."""

    run: str
    num_steps: int | None
    error: ErrorDocument | None


@dataclass(frozen=True)
class TrainResult:
    """How a run ended, or stands.

    loss: of the last update, bit-equal to its record; None where there was none.
    units_per_s: over the steps of this process.
    peak_memory_bytes: of a device; on a CPU that of the process.
    """

    run: RunDirectory
    status: ProcessStatus
    step: int
    num_steps: int | None
    loss: float | None = None
    unit: str | None = None
    units_per_s: float | None = None
    state_digest: str | None = None
    validation_loss: float | None = None
    best_step: int | None = None
    best_validation_loss: float | None = None  # at best_step
    best_by: str | None = None  # "max accuracy"
    best_value: float | None = None
    duration_s: float | None = None
    resumed_from: int | None = None
    peak_memory_bytes: int | None = None
    error: AifxError | None = None
    already: bool = field(default=False, compare=False)  # it had ended before this process looked

    @property
    def exit_code(self) -> ExitCode:
        return {
            "interrupted": ExitCode.INTERRUPTED,
            "preempted": ExitCode.PREEMPTED,
            "diverged": ExitCode.VERDICT,
        }.get(self.status, ExitCode.OK)

    def document(self) -> TrainDocument:
        error = None if self.error is None else self.error.document()
        return {"run": self.run.name, "num_steps": self.num_steps, **self.end(), "error": error}

    def end(self) -> RunEnd:
        """What the `stop` event says."""
        return {
            "status": self.status,
            "step": self.step,
            "loss": self.loss,
            "unit": self.unit,
            "units_per_s": self.units_per_s,
            "state_digest": self.state_digest,
            "validation_loss": self.validation_loss,
            "best_step": self.best_step,
            "best_validation_loss": self.best_validation_loss,
            "best_by": self.best_by,
            "best_value": self.best_value,
            "duration_s": self.duration_s,
            "resumed_from": self.resumed_from,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


class Observer(Protocol):
    """Told what a run does, in order, from the training thread: quick, or handing on to a thread of its own.

    Events are those of the ledger (docs/run-directory.md), "stop" excepted; "checkpoint" comes from another thread.
    """

    def start(self, info: RunInfo) -> None: ...

    def record(self, record: Record) -> None: ...

    def event(self, name: str, fields: Mapping[str, Any]) -> None: ...

    def stop(self, result: TrainResult | None) -> None:
        """The run's end; None when it failed."""
        ...


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers among nested values: {"validation": {"loss": 1.0}} -> ("validation/loss", 1.0)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
