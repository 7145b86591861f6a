"""What can be measured: the suites by name, and what each is given."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.benchmarking.results import Measured
from aifx.benchmarking.timing import Effort, Samples

if TYPE_CHECKING:
    from aifx.config import Config
    from aifx.core.project import Project

logger = logging.getLogger(__name__)

Measure = Callable[["Bench"], Iterator[Measured]]


@dataclass(frozen=True)
class Suite:
    """A part of what is measured.

    Attributes:
        module: whose `measure(bench)` yields one result after another. Imported in the launch alone.
        needs_project: whether it measures the project that it is called in.
        leaves_devices: whether they have to be free for processes that it starts: a TPU belongs to one process, and
            JAX takes most of a GPU's memory.
        slice_s, quick_s: seconds for the samples of one result in one launch.
    """

    name: str
    module: str
    summary: str
    needs_project: bool = False
    leaves_devices: bool = False
    slice_s: float = 1.0
    quick_s: float = 0.15


SUITES = {
    suite.name: suite
    for suite in (
        Suite("hardware", "aifx.benchmarking.hardware", "what this machine's silicon reaches"),
        Suite("kernels", "aifx.benchmarking.kernels", "each implementation of each op of jax_kernels", slice_s=0.5),
        Suite("train", "aifx.benchmarking.train", "the project's step", needs_project=True, slice_s=4.0, quick_s=1.0),
        Suite("data", "aifx.benchmarking.data", "the project's batches", needs_project=True),
        Suite("checkpoint", "aifx.benchmarking.checkpoint", "saving and restoring its state", needs_project=True),
        Suite(
            "startup", "aifx.benchmarking.startup", "from the command to the first step",
            needs_project=True, leaves_devices=True,
        ),
    )
}  # fmt: skip


@dataclass
class Bench:
    """What a suite works with, within a launch.

    A suite logs what it does. Its warnings become notes of the report. Parts that take long report their progress: a
    launch that is silent for long is ended.

    Attributes:
        options: the request's.
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
        """Raises UsageError outside of one."""
        from aifx.core.project import find_project

        return find_project(self.folder)

    @cached_property
    def config(self) -> Config:
        from aifx.config import load_config

        return load_config(self.project, self.options.get("set") or ())

    def name(self, thing: str) -> str:
        """The name of a result of this suite."""
        return f"{self.suite.name}.{thing}"

    def measured(self, thing: str, samples: Samples, **more: Any) -> Measured:
        """A result of what was timed, with the time of its first call. Logs the notes of the samples.

        Args:
            more: fields of `Measured`: params, flops, num_bytes, bound_s, figures.
        """
        figures = {"first_call_s": samples.first_s} | more.pop("figures", {})
        found = Measured(name=self.name(thing), samples_s=samples.seconds, figures=figures, **more)
        for note in samples.notes:
            logger.warning(f"{found.title} {note}")
        return found


def measure_of(suite: Suite) -> Measure:
    measure: Measure = importlib.import_module(suite.module).measure
    return measure
