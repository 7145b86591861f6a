"""Reports of a run: one record per step, and a result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

from pydantic import TypeAdapter

from aifx.config import Config
from aifx.core.errors import AifxError, ErrorDocument, ExitCode, error_of
from aifx.core.json_values import plain
from aifx.core.licensing import LicenseConflict
from aifx.core.project import RunDirectory
from aifx.machine.catalogue import Peak, utilization
from aifx.runs.formats import MetricsRecord, RunEnd


@dataclass(frozen=True)
class RunInfo:
    """The facts about a run that are known when its first step is about to be taken."""

    run: RunDirectory
    config: Config
    first_step: int  # updates done before this process began
    recorded_step: int  # up to which records are kept: first_step, or the one before if its validation is pending
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
        """The formula of a record's `mfu`, in one line; in a second, that of the measured rate in brackets."""
        formula = f"MFU is unknown: the catalogue has no peak for {self.devices}"
        if self.peak is not None:
            formed = f"{self.flops_per_step:.4g} model FLOPs per step / step time / {self.peak.flops:.4g} FLOP/s"
            formula = f"MFU = {formed}; peak: {self.peak.formula}"
        if self.ceiling is not None:
            formula += f"\nin brackets: MFU relative to {self.ceiling.flops:.4g} FLOP/s, {self.ceiling.formula}"
        return formula

    def is_logged(self, record: Record) -> bool:
        """Whether metrics.jsonl and the trackers get it: `log.every` steps, the last, those validated or skipped."""
        is_due = record.step % self.config.log.every == 0 or record.step == self.num_steps
        return is_due or record.is_skipped or record.validation is not None


@dataclass(frozen=True)
class Record:
    """One optimizer step; docs/metrics.md is the documentation."""

    step: int  # updates done, this one included
    loss: float
    grad_norm: float
    learning_rate: float
    unit: str
    units: int  # tokens or images so far, over the whole run
    units_per_s: float
    step_time_s: float
    mfu: float | None
    ceiling_fraction: float | None
    data_wait_s: float
    time: float
    validation: Mapping[str, Any] | None = None
    is_skipped: bool = False  # the update was not applied: loss or gradient is not finite

    @property
    def utilization(self) -> str:
        """MFU and, in brackets, the fraction of the measured ceiling; empty without either."""
        return utilization(self.mfu, self.ceiling_fraction)

    @property
    def line(self) -> str:
        """The record in one line of about 80 characters, for a log."""
        used = utilization(self.mfu, self.ceiling_fraction).replace("MFU", "  mfu")
        line = f"step {self.step:>6}  loss {self.loss:.4f}  lr {self.learning_rate:.2e}  grad {self.grad_norm:.2f}"
        line += f"  {self.units_per_s:,.0f} {self.unit}/s{used}"
        if self.validation is not None and isinstance(loss := self.validation.get("loss"), float):
            line += f"  validation {loss:.4f}"
        return line

    def document(self) -> MetricsRecord:
        """The line of metrics.jsonl."""
        line = dict(vars(self))
        if self.validation is None:
            del line["validation"]
        if not self.is_skipped:
            del line["is_skipped"]
        return cast(MetricsRecord, line)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Record:
        """The record of a document, in which a number that is not finite is null."""
        return cls(**{**document, **{k: math.nan for k in ("loss", "grad_norm") if document[k] is None}})


@dataclass(frozen=True, kw_only=True)
class TrainDocument(RunEnd):
    """The result of a training as `aifx train --json` prints it.

    Attributes:
        error: says why a run diverged.
        license_conflicts: among the sources of its data set; null if the run had ended before, or ended at once.
        request: the id of the request.
        is_repeated: whether an earlier call with the same id ended the run, and this is what that call reported.
    """

    run: str
    num_steps: int | None
    error: ErrorDocument | None
    license_conflicts: tuple[LicenseConflict, ...] | None
    request: str | None = None
    is_repeated: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainResult(RunEnd):
    """The end of a run, or its present state."""

    run: RunDirectory
    num_steps: int | None
    error: AifxError | None = None
    already: bool = field(default=False, compare=False)  # it had ended before this process looked
    license_conflicts: tuple[LicenseConflict, ...] | None = field(default=None, compare=False)  # of process 0
    request: str | None = field(default=None, compare=False)
    is_repeated: bool = field(default=False, compare=False)

    @property
    def exit_code(self) -> ExitCode:
        codes = {"interrupted": ExitCode.INTERRUPTED, "preempted": ExitCode.PREEMPTED, "diverged": ExitCode.VERDICT}
        return codes.get(self.status, ExitCode.OK)

    def document(self) -> dict[str, Any]:
        """The fields of `TrainDocument`."""
        error = None if self.error is None else self.error.document()
        conflicts = plain(self.license_conflicts)
        named = {"run": self.run.name, "num_steps": self.num_steps}
        asked = {"request": self.request, "is_repeated": self.is_repeated}
        return {**named, **self.end(), "error": error, "license_conflicts": conflicts, **asked}

    @classmethod
    def repeated(cls, run: RunDirectory, document: Mapping[str, Any]) -> TrainResult:
        """The result of a request that was done before, by the document that was reported then."""
        first = TypeAdapter(TrainDocument).validate_python(document)
        values = {f.name: getattr(first, f.name) for f in fields(TrainDocument)}
        error = None if first.error is None else error_of(first.error)
        return cls(**{**values, "run": run, "error": error, "already": True, "is_repeated": True})

    def end(self) -> dict[str, Any]:
        """The fields of `RunEnd`: what the `stop` event says."""
        return {f.name: getattr(self, f.name) for f in fields(RunEnd)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers among nested values: {"validation": {"loss": 1.0}} -> ("validation/loss", 1.0)."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
