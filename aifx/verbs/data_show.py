"""The data of a project as the model sees it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from aifx.core.errors import UsageError
from aifx.core.json_files import read_jsonl
from aifx.core.project import Project, RunDirectory, find_project
from aifx.kinds import load_config, read_config
from aifx.runs.reading import find_skips
from aifx.tasks.registry import open_task
from aifx.tasks.row_views import ShownBatch, ShownData, ShownExample, ShownRow, ShownValues, show_batch, show_rows
from aifx.verbs.arguments import Settings, StrPath, overrides

if TYPE_CHECKING:
    from aifx.config import Config
    from aifx.data.splits import Split
    from aifx.tasks import Task


class _Asked(NamedTuple):
    """The project, or one of its runs."""

    project: Project
    run: RunDirectory | None
    config: Config

    @contextmanager
    def task(self) -> Iterator[Task]:
        with tempfile.TemporaryDirectory() as folder:
            yield open_task(self.config, self.project, self.run.assets if self.run else Path(folder))


def _asked(project: StrPath, run: str | None, settings: Settings) -> _Asked:
    found, given = find_project(Path(project)), overrides(settings)
    if run is None:
        return _Asked(found, None, load_config(found, given))
    directory = found.existing_run(run)
    return _Asked(found, directory, read_config(directory.config, found, given))


def data_show(
    split: Split = "train",
    *,
    rows: int = 2,
    first: int = 0,
    run: str | None = None,
    settings: Settings = None,
    project: StrPath = ".",
) -> ShownData:
    """Read rows as the model sees them: tokens, and which of them the loss counts, or a table's values.

    Args:
        split: "train", "validation" or "test".
        rows: number of rows.
        first: begin with this row.
        run: whose settings and tokenizer to use; by default those of aifx.toml.
        settings: values over those of the configuration, by key.
        project: a folder in the project.

    Example:
        >>> aifx.data_show("validation", rows=1).rows[0].row
        0
    """
    with _asked(project, run, settings).task() as task:
        return show_rows(task, split, first, rows)


def data_show_batch(
    step: int | None = None,
    *,
    batch: int | None = None,
    rows: int = 2,
    first: int = 0,
    run: str | None = None,
    settings: Settings = None,
    project: StrPath = ".",
) -> ShownBatch:
    """Read rows of the training batch that a step takes, or of the batch with a number.

    Args:
        step: from 1.
        batch: number of the batch, from 0, instead of a step.

    The other arguments are those of `data_show`.

    Example:
        >>> aifx.data_show_batch(1, rows=1).batch
        0
    """
    if step is not None and batch is not None:
        raise UsageError("--step and --batch cannot be used together", "each names a batch", "leave one of them out")
    asked = _asked(project, run, settings)
    if step is not None and step > asked.config.train.num_steps:
        why = f"train.num_steps = {asked.config.train.num_steps}"
        hint = f"aifx data show --batch {step - 1}    (of any number)"
        raise UsageError(f"--step {step} is after the last step", why, hint)
    skips = find_skips(read_jsonl(asked.run.events) if asked.run else ())
    left_out, reasons, number = skips.left_out, skips.reasons, batch or 0
    with asked.task() as task:
        return show_batch(task, asked.config, first, rows, step=step, batch=number, left_out=left_out, reasons=reasons)
