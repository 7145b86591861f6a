"""The suites by name, and the context that each gets."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.benchmarking.results import Measured
from aifx.benchmarking.timing import Effort, Samples

if TYPE_CHECKING:
    from aifx.config import Config
    from aifx.core.project import Project, RunDirectory
    from aifx.programs.build import Programs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suite:
    """A part of what is measured: the module of its name, imported in the launch alone, whose `measure(bench)` yields
    one result after another.

    Attributes:
        leaves_devices: whether they have to be free for processes that it starts: a TPU belongs to one process, and
            JAX takes most of a GPU's memory.
        needs_target: it is given what to measure, so that it is no part of `all`.
        slice_s, quick_s: seconds for the samples of one result in one launch.
    """

    name: str
    needs_project: bool = True
    leaves_devices: bool = False
    needs_target: bool = False
    slice_s: float = 1.0
    quick_s: float = 0.15


SUITES = {
    suite.name: suite
    for suite in (
        Suite("hardware", needs_project=False),
        Suite("kernels", needs_project=False, slice_s=0.5),
        Suite("train", slice_s=4.0, quick_s=1.0),
        Suite("data"),
        Suite("checkpoint"),
        Suite("startup", leaves_devices=True),
        Suite("serve", needs_project=False, leaves_devices=True, needs_target=True),
    )
}


@dataclass
class Bench:
    """The context of a suite within a launch.

    A suite logs what it does. Its warnings become notes of the report. Parts that take long report their progress: a
    launch that is silent for long is ended.
    """

    suite: Suite
    quick: bool
    options: dict[str, Any]
    folder: Path = field(default_factory=Path.cwd)

    @property
    def effort(self) -> Effort:
        return Effort(self.suite.quick_s if self.quick else self.suite.slice_s)

    @cached_property
    def project(self) -> Project:
        """The project around the folder. Raises UsageError outside of one."""
        from aifx.core.project import find_project

        return find_project(self.folder)

    @cached_property
    def config(self) -> Config:
        from aifx.kinds import load_config

        return load_config(self.project, self.options.get("set") or ())

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the disk of the project's runs, gone afterwards."""
        place = self.project.runs_path if self.project.runs_path.is_dir() else self.project.root
        with tempfile.TemporaryDirectory(prefix=".bench-", dir=place) as folder:
            yield Path(folder)

    def build(self, config: Config, folder: Path) -> tuple[RunDirectory, Programs]:
        """Build the run and the programs of `aifx train`, before its first step. Raises ConfigError, DataError."""
        from aifx.core.project import RunDirectory
        from aifx.kernels.choice import run_choices
        from aifx.parallel.checks import check_batch
        from aifx.parallel.layout import local_layout
        from aifx.programs.build import build
        from aifx.tasks.registry import open_task

        run = RunDirectory(folder)
        if config.mesh.auto:
            from aifx.training.auto_mesh import with_found_mesh

            config = with_found_mesh(config, run, self.project)
        layout = local_layout(config.train.devices, config.mesh)
        check_batch(layout, config.train.global_batch_size, config.train.gradient_accumulation)
        run.assets.mkdir(parents=True, exist_ok=True)
        task = open_task(config, self.project, run.assets)
        return run, build(config, task, layout, kernels=run_choices(run, config.kernels))

    def name(self, thing: str) -> str:
        """The name of a result of this suite."""
        return f"{self.suite.name}.{thing}"

    def measured(self, thing: str, samples: Samples, **more: Any) -> Measured:
        """A result of what was timed, with the time of its first call and more fields of `Measured`. Logs the notes of
        the samples."""
        figures = {"first_call_s": samples.first_s} | more.pop("figures", {})
        found = Measured(name=self.name(thing), samples_s=samples.seconds, figures=figures, **more)
        for note in samples.notes:
            logger.warning(f"{found.title} {note}")
        return found
