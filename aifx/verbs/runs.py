"""Runs: what they have on disk. Nothing here imports JAX."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.checkpoint.manifest import CheckpointInfo, list_checkpoints
from aifx.core.errors import AifxError, UsageError
from aifx.core.json_files import read_jsonl
from aifx.core.json_values import number
from aifx.core.project import find_project
from aifx.core.results import Result
from aifx.machine.catalogue import utilization
from aifx.runs.bill import Bill, Spent, headline, read_bill, remarks, spent
from aifx.runs.index import list_runs
from aifx.runs.provenance import read_provenance
from aifx.runs.reading import Evaluation, Prediction, Setting, changed_settings, read_evaluations, read_predictions
from aifx.runs.status import RunList, RunStatus, run_status
from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.runs.comparison import Comparison, Pair
    from aifx.runs.reading import WatchedRun

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunDetails(RunStatus):
    """A run in full: what `aifx runs show --json` prints.

    Attributes:
        config: settings that are not the default.
        last: the last record of metrics.jsonl.
        bill: where the time went; None for a run without events.
        predictions: of `aifx plan --run`, beside what the run measured.
    """

    config: list[Setting]
    last: Mapping[str, Any] | None
    bill: Bill | None
    predictions: list[Prediction]
    checkpoints: list[CheckpointInfo]
    evaluations: list[Evaluation]
    provenance: Mapping[str, Any]

    @property
    def utilization(self) -> str:
        """ "MFU 31.0% (52.4%)" of the last step; empty if it is not known."""
        last = self.last or {}
        return utilization(number(last.get("mfu")), number(last.get("ceiling_fraction")))

    def bill_in_words(self) -> tuple[str, list[Spent], Iterator[str]] | None:
        """The line above the table of `bill`, its rows, and the lines below."""
        return None if self.bill is None else (headline(self.bill), spent(self.bill), remarks(self.bill))


def runs_ls(
    tag: str | None = None, *, on_error: Callable[[Exception], None] | None = None, project: StrPath = "."
) -> RunList:
    """List the runs of a project, the newest at the end.

    Args:
        tag: list only runs with this tag.
        on_error: called for a run that cannot be read, which does not hide the others; by default it is logged.
        project: a folder in the project.

    Example:
        >>> "main" in [run.run for run in aifx.runs_ls().runs]
        True
    """
    found = list_runs(find_project(Path(project)), tag, on_error or (lambda error: log.warning("%s", error)))
    if not found.runs:
        runs_path = find_project(Path(project)).runs_path
        log.info(f"no run has the tag {tag}" if tag else f"no runs in {runs_path}: `aifx train` makes one")
    return found


def runs_show(
    run: str | None = None, *, records: Sequence[Mapping[str, Any]] | None = None, project: StrPath = "."
) -> RunDetails:
    """Read one run: its settings, losses, checkpoints, evaluations and provenance.

    Args:
        run: name of the run; by default the run written last.
        records: its `runs_metrics`, if they are read already.
        project: a folder in the project.

    Example:
        >>> details = aifx.runs_show("main")
        >>> details.step, [checkpoint.step for checkpoint in details.checkpoints]
        (3, [3])
    """
    found = find_project(Path(project))
    directory = found.existing_run(run)
    records = read_jsonl(directory.metrics) if records is None else records
    return RunDetails(
        **vars(run_status(directory)),
        config=changed_settings(directory),
        last=records[-1] if records else None,
        bill=read_bill(directory, found, records),
        predictions=read_predictions(directory, records),
        checkpoints=list_checkpoints(directory.checkpoints),
        evaluations=read_evaluations(directory),
        provenance=read_provenance(directory),
    )


def runs_metrics(run: str | None = None, *, project: StrPath = ".") -> list[dict[str, Any]]:
    """Read the records of a run's steps, from metrics.jsonl.

    Args:
        run: name of the run; by default the run written last.
        project: a folder in the project.

    Example:
        >>> [record["step"] for record in aifx.runs_metrics("main")]
        [1, 2, 3]
    """
    return read_jsonl(find_project(Path(project)).existing_run(run).metrics)


def runs_compare(first: str, second: str, *, project: StrPath = ".") -> Comparison:
    """Compare two runs: different settings, validation, smoothed losses and evaluations.

    Args:
        first: name of a run.
        second: name of another.
        project: a folder in the project.

    Example:
        >>> compared = aifx.runs_compare("main", "other")
        >>> [(pair.key, pair.values) for pair in compared.config if pair.key == "train.num_steps"]
        [('train.num_steps', (3, 4))]
    """
    from aifx.runs.comparison import compare_runs

    if first == second:
        raise UsageError(f"cannot compare {first!r} with itself", "a comparison needs two runs", "aifx runs ls")
    found = find_project(Path(project))
    return compare_runs(found.existing_run(first), found.existing_run(second))


def runs_watch(run: str | None = None, *, project: StrPath = ".") -> WatchedRun:
    """Open a run that another process trains, to look at it again and again.

    The result has the `status`, the `losses` and the `last` record that were read so far. `look()` reads what is new,
    and returns whether the run is alive.

    Args:
        run: name of the run; by default the run written last.
        project: a folder in the project.

    Example:
        >>> watched = aifx.runs_watch("main")
        >>> watched.look(), watched.status.step
        (False, 3)
    """
    from aifx.runs.reading import WatchedRun

    return WatchedRun(find_project(Path(project)).existing_run(run))


def runs_report(run: str | None = None, *, html: StrPath | None = None, project: StrPath = ".") -> Path:
    """Write a run as one page: curves, time, checkpoints, evaluations, samples, settings and provenance.

    The page is one file, which loads nothing and runs nothing. Returns its path.

    Args:
        run: name of the run; by default the run written last.
        html: file to write; by default NAME.html in the working directory.
        project: a folder in the project.

    Example:
        >>> aifx.runs_report("main", html="main.html").stat().st_size > 10_000
        True
    """
    from aifx.core.pages import write_page
    from aifx.runs.page import run_page

    found = find_project(Path(project))
    directory = found.existing_run(run)
    path = Path(html or f"{directory.name}.html")
    write_page(run_page(directory, found), path)
    return path


@dataclass(frozen=True)
class RemovedRun:
    run: str
    size_bytes: int


@dataclass(frozen=True)
class RemovedRuns(Result):
    """Document of `aifx runs rm --json`."""

    removed: list[RemovedRun]
    dry_run: bool


@dataclass(frozen=True)
class RenamedRun(Result):
    """Document of `aifx runs rename --json`."""

    run: str
    renamed_from: str


@dataclass(frozen=True)
class TaggedRun(Result):
    """Document of `aifx runs tag --json`: the tags that the run has now."""

    run: str
    tags: tuple[str, ...]


def runs_tag(run: str, *tags: str, remove: Sequence[str] = (), project: StrPath = ".") -> TaggedRun:
    """Add tags to a run, remove tags, or read them.

    Args:
        run: name of the run.
        tags: to add.
        remove: tags to remove.
        project: a folder in the project.

    Example:
        >>> aifx.runs_tag("main", "baseline", "paper").tags
        ('baseline', 'paper')
        >>> aifx.runs_tag("main", remove=["paper"]).tags
        ('baseline',)
    """
    from aifx.runs.manage import change_tags

    directory = find_project(Path(project)).existing_run(run)
    return TaggedRun(directory.name, change_tags(directory, tags, remove))


def runs_rename(run: str, new: str, *, project: StrPath = ".") -> RenamedRun:
    """Rename a run. Its checkpoints, metrics and reports keep their content. Trackers keep the old name.

    A run that is being trained cannot be renamed.

    Args:
        run: name of the run.
        new: its new name.
        project: a folder in the project.

    Example:
        >>> aifx.runs_rename("other", "longer").run
        'longer'
    """
    from aifx.runs.manage import rename_run

    found = find_project(Path(project))
    return RenamedRun(rename_run(found, found.existing_run(run), new).name, run)


def runs_rm(
    *runs: str,
    dry_run: bool = False,
    confirm: Callable[[RemovedRuns], None] | None = None,
    project: StrPath = ".",
) -> RemovedRuns:
    """Delete runs with their checkpoints, metrics and reports. A run that is being trained cannot be deleted.

    Args:
        runs: names of the runs.
        dry_run: delete nothing.
        confirm: called with the runs before they are deleted. What it raises ends the deletion.
        project: a folder in the project.

    Example:
        >>> [one.run for one in aifx.runs_rm("longer").removed]
        ['longer']
    """
    from aifx.runs.lock import is_held
    from aifx.runs.manage import remove_run, size_of

    found = find_project(Path(project))
    directories = [found.existing_run(name) for name in dict.fromkeys(runs)]
    removed = RemovedRuns([RemovedRun(one.name, size_of(one)) for one in directories], dry_run)
    for one in directories:
        if is_held(one):
            raise AifxError(f"run {one.name!r} is being trained", "stop it first", f"aifx runs watch {one.name}")
    if dry_run:
        return removed
    if confirm is not None:
        confirm(removed)
    for one in directories:
        remove_run(found, one)
    return removed
