"""The project as `aifx train` would train it, with a run directory that is gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aifx.core.project import Project, RunDirectory

if TYPE_CHECKING:
    from aifx.benchmarking.suites import Bench
    from aifx.config import Config
    from aifx.programs.build import Programs


@dataclass(frozen=True)
class Prepared:
    """What a run has before its first step.

    Attributes:
        run: in a temporary folder beside the project's runs, so that its files lie on the same disk.
    """

    project: Project
    config: Config
    run: RunDirectory
    programs: Programs

    @property
    def rows(self) -> slice:
        return slice(0, self.config.train.global_batch_size)


@contextmanager
def prepared(bench: Bench) -> Iterator[Prepared]:
    """Raises ConfigError, DataError, and EnvironmentFault where there is no room for the folder."""
    from aifx.parallel.layout import local_layout
    from aifx.programs.build import build
    from aifx.tasks.registry import open_task

    project, config = bench.project, bench.config
    layout = local_layout(config.train.devices, config.mesh)
    layout.check_batch(config.train.global_batch_size, config.train.gradient_accumulation)
    with scratch(project) as folder:
        run = RunDirectory(folder / "bench")
        run.assets.mkdir(parents=True)
        yield Prepared(project, config, run, build(config, open_task(config, project, run.assets), layout))


@contextmanager
def scratch(project: Project) -> Iterator[Path]:
    """A folder on the disk of the project's runs, gone afterwards."""
    place = project.runs_path if project.runs_path.is_dir() else project.root
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=place) as folder:
        yield Path(folder)
