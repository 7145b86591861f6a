"""The copy of a project in which drills train: short runs with the project's settings, beside its own runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aifx.checkpoint.local_folder import remove_local
from aifx.config import Config
from aifx.config.sections import TrainSection
from aifx.core.project import Project
from aifx.drills import seam
from aifx.kinds import load_config
from aifx.runs.manage import local_checkpoints

LEFT_OUT = ("runs", "__pycache__", ".*", "*.egg-info", "venv", "node_modules")
LINKED_BYTES = 1 << 20
"""Larger files of the project get a second name instead of a copy: nothing in a training writes them."""


@dataclass(frozen=True)
class Workplace:
    """A copy of a project, and the settings of its runs.

    Attributes:
        every: steps between checkpoints and validations; a run has four times as many.
        settings: `section.key=value` of all runs.
    """

    project: Project
    every: int
    settings: tuple[str, ...]
    config_file: Path | None
    config: Config

    @property
    def num_steps(self) -> int:
        return 4 * self.every

    @property
    def without_local(self) -> str:
        """The setting of a run that leaves `checkpoint.local_dir` alone."""
        return f"checkpoint.local_every={self.num_steps + 1}"

    def arguments(self, run: str, *more: str) -> list[str]:
        """Those of `aifx train`."""
        words = ["train", "--run", run, "--json"]
        if self.config_file is not None:
            words += ["--config", str(self.config_file)]
        return words + [word for setting in (*self.settings, *more) for word in ("--set", setting)]

    def environment(self, run: str, fault: seam.DataFault) -> dict[str, str]:
        """The variables of a process that trains `run` with a fault in its data."""
        path = self.fault_file(run)
        fault.write(path)
        return {**os.environ, seam.VARIABLE: str(path)}

    def fault_file(self, run: str) -> Path:
        return self.project.root / f"fault-{run}.json"


@contextmanager
def copied(
    project: Project, every: int, overrides: Sequence[str], file: Path | None, *, keep: bool
) -> Iterator[Workplace]:
    """Copy a project for the block, or for good with `keep`. Raises ConfigError, OSError."""
    config = load_config(project, overrides, file=file)
    project.runs_path.mkdir(exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix=".drill-", dir=project.runs_path))
    try:
        shutil.copytree(
            project.root, root, ignore=shutil.ignore_patterns(*LEFT_OUT), copy_function=_copy, dirs_exist_ok=True
        )
        copy = Project(root)
        copy.runs_path.mkdir()
        for run in project.runs():  # other runs may begin with them
            (copy.runs_path / run.name).symlink_to(run.path.resolve(), target_is_directory=True)
        kind = config.task.kind if ":" in config.task.kind else None
        data = None if kind else config.parts.names["data"]
        (root / f"{seam.MODULE}.py").write_text(seam.module_text(data, kind))
        named = f"task.kind={seam.TASK}" if kind else f"data.kind={seam.DATA}"
        moved = None if file is None else _moved(file, project, root)
        settings = (*overrides, *_short(config.train, config.checkpoint.keep_last, every), named)
        yield Workplace(copy, every, settings, moved, config)
    finally:
        for run in Project(root).runs():
            if not run.path.is_symlink() and (local := local_checkpoints(run)) is not None:
                remove_local(local)
        if not keep:
            shutil.rmtree(root, ignore_errors=True)


def _short(train: TrainSection, keep_last: int, every: int) -> list[str]:
    """Settings of a run of a few dozen steps that leaves traces at every step."""
    settings = {
        "train.num_steps": 4 * every,
        "train.validate_every": every if train.validate_every else 0,
        "train.validation_batches": min(train.validation_batches or 2, 2),
        "train.early_stopping": 0,
        "checkpoint.every": every,
        "checkpoint.keep_last": max(keep_last, 2),
        "log.every": 1,
        "log.trackers": "[]",
    }
    return [f"{key}={value}" for key, value in settings.items()]


def _copy(source: str, target: str) -> str:
    if os.path.getsize(source) > LINKED_BYTES:
        try:
            os.link(source, target)
            return target
        except OSError:
            pass
    return str(shutil.copy2(source, target))


def _moved(file: Path, project: Project, root: Path) -> Path:
    """The copy of a configuration, or the file itself if it lies outside of the project."""
    path = file.resolve()
    return root / path.relative_to(project.root) if path.is_relative_to(project.root) else path
