"""The documents in a run directory, as types: `python -m aifx.verbs.schemas` makes docs/schemas/files from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from aifx.checkpoint.manifest import Manifest
from aifx.config.config import Difference
from aifx.config.gates import GateResult
from aifx.config.sections import Quantization
from aifx.core.artifact import ManifestFile
from aifx.core.statuses import ProcessStatus
from aifx.machine.energy import EnergyBasis
from aifx.runs.records import Activity


class MetricsRecord(TypedDict):
    """A line of metrics.jsonl; docs/metrics.md explains the numbers."""

    step: int
    loss: float | None
    grad_norm: float | None
    learning_rate: float
    unit: str
    units: int
    units_per_s: float
    step_time_s: float
    mfu: float | None
    ceiling_fraction: float | None
    data_wait_s: float
    time: float
    validation: NotRequired[dict[str, Any]]
    is_skipped: NotRequired[Literal[True]]


class CountedEnergy(TypedDict):
    """Joules that the devices used in so many seconds, and how they are known."""

    joules: float
    seconds: float
    basis: EnergyBasis


class Account(TypedDict):
    """The activities that the time since the last line of the same process was spent on."""

    elapsed_s: float  # since the process began
    seconds: dict[Activity, float]
    steps: NotRequired[tuple[int, int]]  # the steps after the first, up to the second, were done
    unfinished_s: NotRequired[float]  # of the seconds of "step", those after the last step that was done
    energy: NotRequired[CountedEnergy]


class _Event(TypedDict):
    time: float
    account: NotRequired[Account]


class ProcessStarted(_Event):
    event: Literal["start", "resume"]
    step: int
    pid: int
    hosts: list[str]  # of each process


class Progressed(_Event):
    """Nothing but an account."""

    event: Literal["progress"]


class Compiling(_Event):
    event: Literal["compile"]


class Compiled(_Event):
    event: Literal["compiled"]
    duration_s: float


class CheckpointSaved(_Event):
    event: Literal["checkpoint"]
    step: int
    validation_loss: float | None
    size_bytes: int


class LocalCheckpointSaved(_Event):
    """In `checkpoint.local_dir`."""

    event: Literal["local_checkpoint"]
    step: int
    size_bytes: int


class CheckpointRefused(_Event):
    """The disk keeps refusing checkpoints, and training goes on. The next `checkpoint` ends that."""

    event: Literal["checkpoint_refused"]
    step: int
    why: str


class Validated(_Event):
    event: Literal["validation"]
    step: int
    loss: float | None
    improved: bool
    duration_s: float


class TextSampled(_Event):
    """The text that the model wrote after `log.sample`."""

    event: Literal["sample"]
    step: int
    prompt: str
    text: str


class SettingsChanged(_Event):
    event: Literal["settings_changed"]
    changes: list[Difference]


class KernelChoice(TypedDict):
    implementation: str
    config: dict[str, int]
    reason: str
    source: str


class KernelReplaced(_Event):
    event: Literal["kernel_replaced"]
    op: str
    old: KernelChoice
    new: KernelChoice


class NotFinite(_Event):
    event: Literal["nan"]
    step: int
    loss: float | None
    grad_norm: float | None
    batch: str
    rows: int


class StepSkipped(_Event):
    """The update of a step was not applied. `rows`: those of `batch` that each process read, `[first, end]`."""

    event: Literal["skip"]
    step: int
    reason: Literal["non_finite"]
    batch: int
    rows: list[tuple[int, int]]
    fault: str | None
    loss: float | None
    grad_norm: float | None


class RolledBack(_Event):
    """The run went back to the checkpoint `to_step`, and leaves out `batches`."""

    event: Literal["rollback"]
    from_step: int
    to_step: int
    step: int
    reason: Literal["non_finite", "spike"]
    batches: list[int]


class SlowProcess(_Event):
    """A process of a job that takes much longer than the others until it has started a step."""

    event: Literal["slow_process"]
    step: int
    process: int
    host: str
    own_s: float
    others_s: float


class Warned(_Event):
    event: Literal["warning"]
    text: str


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """The end of a training process."""

    status: ProcessStatus
    step: int
    loss: float | None = None  # of the last update, bit-equal to its record; None if there was none
    unit: str | None = None
    units_per_s: float | None = None  # over the steps of this process
    state_digest: str | None = None
    validation_loss: float | None = None
    best_step: int | None = None
    best_validation_loss: float | None = None  # at best_step
    best_by: str | None = None  # "max accuracy"
    best_value: float | None = None  # at best_step: the mean over best_over validations
    best_over: int | None = None
    duration_s: float | None = None
    resumed_from: int | None = None
    peak_memory_bytes: int | None = None  # of a device; on a CPU that of the process


@dataclass(frozen=True, kw_only=True)
class ProcessEnded(RunEnd):
    """A training process ended in order."""

    time: float
    event: Literal["stop"]
    account: Account | None = None


class ProcessEndedAbruptly(_Event):
    """A signal ended the process at once."""

    event: Literal["stop"]
    status: ProcessStatus
    why: str


class ProcessFailed(_Event):
    event: Literal["stop"]
    status: Literal["failed"]
    error: str | None


Event = (
    ProcessStarted
    | Progressed
    | Compiling
    | Compiled
    | CheckpointSaved
    | LocalCheckpointSaved
    | CheckpointRefused
    | Validated
    | TextSampled
    | SettingsChanged
    | KernelReplaced
    | NotFinite
    | StepSkipped
    | RolledBack
    | SlowProcess
    | Warned
    | ProcessEnded
    | ProcessEndedAbruptly
    | ProcessFailed
)
"""A line of events.jsonl."""


class GitState(TypedDict):
    commit: str
    branch: str | None
    dirty: bool | None


class Hardware(TypedDict):
    host: str
    os: str
    cpu: str
    cores: int | None
    memory_bytes: int
    platform: str | None
    device_kind: str | None
    num_devices: int
    num_processes: int


class FinetunedFrom(TypedDict):
    """The weights that training began with.

    Attributes:
        run: a run, or "NAME@<64 digits>" of the registry.
        digest: of the weights.
        data: the versions of data sets behind a version of the registry.
    """

    run: str
    step: int
    digest: str
    data: NotRequired[list[str]]


class AveragedFrom(TypedDict):
    run: str
    steps: list[int]
    state_digests: list[str]


class RefittedFrom(TypedDict):
    """The best checkpoint of the run whose settings were trained on all rows, with as many steps."""

    run: str
    step: int
    state_digest: str


class DatasetPartRecord(TypedDict):
    """A data set of a mix."""

    reference: str
    weight: float
    epochs: float | None


class DatasetRecord(TypedDict):
    """The version of a data set that a run trains on: "name@<64 digits>"."""

    reference: str
    parts: NotRequired[list[DatasetPartRecord]]


class FilesRecord(TypedDict):
    """The files that a key of the configuration names.

    Attributes:
        sha256: of their names and digests.
        files: their number.
    """

    sha256: str
    files: int


class Provenance(TypedDict):
    """provenance.json."""

    schema_version: Literal[1]
    time: float
    versions: dict[str, str]
    git: GitState | None
    data_digest: str
    dataset: NotRequired[DatasetRecord | None]
    sources: NotRequired[dict[str, FilesRecord]]
    hardware: Hardware
    command: list[str]
    environment: dict[str, str]
    forked_from: str | None
    finetuned_from: FinetunedFrom | None
    averaged_from: NotRequired[AveragedFrom]
    refitted_from: NotRequired[RefittedFrom]


class KeptChoice(KernelChoice):
    call: str


class KernelsFile(TypedDict):
    """kernels.json: the choices for each kind of device."""

    schema_version: Literal[3]
    devices: dict[str, list[KeptChoice]]


class KernelsDigest(TypedDict):
    count: int
    sha256: str


class SettingsDigest(TypedDict):
    sha256: str
    values: dict[str, Any]


class DataDigests(TypedDict):
    """The digest of a run's batches, and each version of a data set, "name@<64 digits>"."""

    digest: str
    versions: list[str]


class DigestsFile(TypedDict):
    """digests.json."""

    schema_version: Literal[2]
    run_id: str
    settings: SettingsDigest
    assets: dict[str, str]
    kernels: dict[str, KernelsDigest]
    base: FinetunedFrom | None
    records: dict[str, str]
    data: DataDigests | None


class TagsFile(TypedDict):
    """tags.json."""

    schema_version: Literal[1]
    tags: list[str]


class _KeptReport(TypedDict):
    metrics: dict[str, Any]
    gates: list[GateResult]
    passed: bool
    measured_at: float
    baselines: dict[str, dict[str, float]]
    slices: dict[str, Any]
    settings: dict[str, Any]  # that the figures depend on
    settings_digest: str


class SplitReport(_KeptReport):
    data: str  # the versions of data sets that the split is of
    data_digest: str


class DatasetReport(_KeptReport):
    name: str
    digest: str
    quantize: Quantization


class EvaluationFile(TypedDict):
    """eval/STEP.json. A split's name ends in -int8 or -float8 if the matrices were quantized."""

    schema_version: Literal[1]
    run: str
    step: int
    model: str | None  # digest of the model version that was measured
    splits: dict[str, SplitReport]
    datasets: list[DatasetReport]
    comparisons: list[dict[str, Any]]  # as `aifx eval --against --json` prints them


class RunBinding(TypedDict):
    """The run that saved a checkpoint, and digests of its files that its numbers depend on, and of its data."""

    id: str
    settings: str
    assets: dict[str, str]
    kernels: dict[str, KernelsDigest]
    base: FinetunedFrom | None
    records: dict[str, str]
    data: DataDigests | None


@dataclass(frozen=True)
class CheckpointContent(Manifest):
    """`host` belongs to the training loop."""

    run: RunBinding


class CheckpointFile(ManifestFile):
    """checkpoints/STEP/manifest.json."""

    kind: Literal["checkpoint"]
    version: Literal[5]
    content: CheckpointContent
    notes: dict[str, Any]
