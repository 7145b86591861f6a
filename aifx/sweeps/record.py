"""The record of a sweep: `runs/NAME/sweep.jsonl`, which only grows, beside the runs of its trials.

A trial is recorded before its process starts, and its end when that is known. After a kill, the file therefore names
all trials, and each run's own checkpoints show its last step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # which pydantic asks for with Python 3.11

from aifx.core.errors import RunBusy, UsageError, did_you_mean
from aifx.core.json_files import JsonLines, read_jsonl
from aifx.core.json_values import plain
from aifx.core.project import Project, RunDirectory
from aifx.runs.lock import hold_run
from aifx.sweeps.space import SEED, Sampler, Space

SWEEP_FILE = "sweep.jsonl"
WIDTH = 3
"""Digits of a trial's number in the name of its run, at least."""

End: TypeAlias = Literal["completed", "early_stopped", "pruned", "diverged", "failed"]
"""The end of a trial."""

WITH_RESULT = ("completed", "early_stopped", "pruned", "diverged")
"""The ends of trials that are not started again."""


@dataclass(frozen=True)
class Design:
    """The part of a sweep that does not change while it goes on.

    Attributes:
        seed: of the sampler.
        best_by: what ranks the trials: "max accuracy".
        config_file: the configuration of the trials, if it isn't aifx.toml.
        base: the settings that change numbers, by key, as they are without the swept ones.
        pins: the model versions that trials begin with, by their names in the settings: "fraud@<64 digits>". An alias
            may move before the last trial starts.
    """

    space: Space
    sampler: Sampler
    seed: int
    best_by: str
    config_file: str | None
    base: Mapping[str, Any]
    pins: Mapping[str, str] = field(default_factory=dict)


class SweepStarted(TypedDict):
    """A line of sweep.jsonl: the design, and how many trials there shall be. The last of these lines counts."""

    time: float
    event: Literal["sweep"]
    design: Design
    num_trials: int
    prune: bool


class TrialStarted(TypedDict):
    """A line of sweep.jsonl: a trial, before its run begins."""

    time: float
    event: Literal["trial"]
    number: int
    run: str
    values: dict[str, Any]


class TrialPruned(TypedDict):
    """A line of sweep.jsonl: a trial is asked to stop, since the median of the others was better at `step`."""

    time: float
    event: Literal["pruned"]
    number: int
    step: int
    value: float
    median: float


class TrialEnded(TypedDict):
    """A line of sweep.jsonl: how a trial ended, its best value, reached at `step`, and the `error` of a failure."""

    time: float
    event: Literal["ended"]
    number: int
    status: End
    value: float | None
    step: int | None
    error: str | None


SweepLine: TypeAlias = SweepStarted | TrialStarted | TrialPruned | TrialEnded

_LINE: TypeAdapter[SweepLine] = TypeAdapter(SweepLine)


@dataclass(frozen=True)
class Trial:
    """A trial, with its end if that is known.

    Attributes:
        values: of the swept keys, `train.seed` included.
        status: how it ended; None if it has not.
        value: its best value, reached at `step`.
    """

    number: int
    run: str
    values: Mapping[str, Any]
    status: End | None = None
    value: float | None = None
    step: int | None = None
    error: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether it has a result. A trial that failed is started again with the sweep."""
        return self.status in WITH_RESULT

    @property
    def setting(self) -> dict[str, Any]:
        """Its values without the seed."""
        return {key: value for key, value in self.values.items() if key != SEED}


@dataclass
class Sweep:
    """A sweep as its file has it."""

    design: Design
    num_trials: int
    prune: bool
    trials: dict[int, Trial] = field(default_factory=dict)


def sweep_folder(project: Project, name: str) -> RunDirectory:
    """The folder of a sweep, which need not exist. Raises UsageError for a name that is a run's, or cannot be one."""
    folder = project.run(name)
    if folder.exists() and not is_sweep(folder):
        why = f"{folder.path} is a run, and a sweep has a folder of its own"
        raise UsageError(f"{name!r} cannot name a sweep", why, f"aifx sweep --name {name}-sweep --set KEY=A,B,C")
    return folder


def is_sweep(folder: RunDirectory) -> bool:
    return (folder.path / SWEEP_FILE).is_file()


def sweep_names(project: Project) -> list[str]:
    """The sweeps of a project, the one written last at the end."""
    found = [path for path in project.runs_path.glob(f"*/{SWEEP_FILE}") if path.is_file()]
    return [path.parent.name for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def existing_sweep(project: Project, name: str | None) -> tuple[str, Sweep]:
    """The sweep called `name`, or the one written last. Raises UsageError if there is none."""
    names = sweep_names(project)
    if name is None and not names:
        hint = "aifx sweep --set optimizer.learning_rate=1e-3,3e-3"
        raise UsageError(f"no sweeps in {project.runs_path}", "nothing was swept here yet", hint)
    name = names[-1] if name is None else name
    sweep = read_sweep(project.run(name))
    if sweep is None:
        raise UsageError(f"no sweep {name!r} in {project.runs_path}", did_you_mean(name, names), "aifx sweep show")
    return name, sweep


def read_sweep(folder: RunDirectory) -> Sweep | None:
    """The sweep in a folder; None if there is none. Raises UsageError for a file that is something else."""
    path = folder.path / SWEEP_FILE
    sweep: Sweep | None = None
    for number, line in enumerate(read_jsonl(path), 1):
        try:
            record = _LINE.validate_python(line)
            if record["event"] == "sweep":
                trials = sweep.trials if sweep is not None else {}
                sweep = Sweep(record["design"], record["num_trials"], record["prune"], trials)
            elif sweep is None:
                raise ValueError("it does not begin with the sweep's design")
            else:
                add_line(sweep, folder.name, record)
        except (ValidationError, ValueError, KeyError) as error:
            why = str(error).splitlines()[0]
            raise UsageError(f"{path}: record {number} cannot be read", why, f"rm {path}    (its runs stay)") from None
    return sweep


def add_line(sweep: Sweep, name: str, line: SweepLine) -> None:
    """Change a sweep by a line. Raises KeyError for a trial that is not there."""
    if line["event"] == "trial":
        if set(line["values"]) != set(sweep.design.space.keys):
            raise ValueError(f"trial {line['number']} has values for other keys than the design")
        sweep.trials[line["number"]] = Trial(line["number"], trial_name(name, line["number"]), line["values"])
    elif line["event"] == "pruned":
        before = sweep.trials[line["number"]]
        sweep.trials[before.number] = Trial(
            before.number, before.run, before.values, "pruned", line["value"], line["step"]
        )
    elif line["event"] == "ended":
        before, ending = sweep.trials[line["number"]], (line["status"], line["value"], line["step"], line["error"])
        sweep.trials[before.number] = Trial(before.number, before.run, before.values, *ending)


def trial_name(sweep: str, number: int) -> str:
    """The name of a trial's run."""
    return f"{sweep}-{number:0{WIDTH}}"


class SweepFile:
    """The file of a sweep that goes on. Each line reaches the disk before aifx acts on it."""

    def __init__(self, folder: RunDirectory, sweep: Sweep) -> None:
        self.name, self.sweep = folder.name, sweep
        self._lines = JsonLines(folder.path / SWEEP_FILE)

    def append(self, event: str, **fields: Any) -> None:
        line = {"time": time.time(), "event": event, **plain(fields)}
        self._lines.append(line)
        self._lines.sync()
        add_line(self.sweep, self.name, cast(SweepLine, line))

    def close(self) -> None:
        self._lines.close()


@contextmanager
def hold_sweep(folder: RunDirectory) -> Iterator[None]:
    """Hold a sweep, as a process holds a run. Raises RunBusy if another process goes on with it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_run(folder))
        except RunBusy as busy:
            what = f"another process goes on with sweep {folder.name!r}"
            raise RunBusy(what, busy.why, f"aifx sweep show {folder.name}    (or another sweep: --name NAME)") from None
        yield
