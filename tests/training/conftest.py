"""A project with a task of its own that trains in a second, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inprocess
import pytest
import warm
from made_once import made_once

from aifx.config import Config
from aifx.core.project import Project, RunDirectory
from aifx.kinds import load_config

TOML = """\
[task]
kind = "tiny:TinyTask"

[train]
num_steps = 12
global_batch_size = 8
validate_every = 4

[optimizer]
learning_rate = 0.02

[checkpoint]
every = 4
"""

TIMES = {"time", "step_time_s", "units_per_s", "mfu", "ceiling_fraction", "data_wait_s"}
"""Fields of a record that tell of the machine rather than of the model."""


@dataclass(frozen=True)
class Tiny:
    """A project, and ways to train in it."""

    project: Project

    @property
    def root(self) -> Path:
        return self.project.root

    def run(self, name: str = "main") -> RunDirectory:
        return self.project.run(name)

    def config(self, *settings: str) -> Config:
        return load_config(self.project, settings, {})

    def train(self, *settings: str, run: str = "main", **options: Any) -> Any:
        from aifx.training.run import train

        return train(self.project, self.config(*settings), run, **options)

    def programs(self, *settings: str, devices: int | str = 1) -> Any:
        from aifx.parallel.layout import local_layout
        from aifx.programs.build import build
        from aifx.tasks.registry import open_task

        config = self.config(*settings)
        return build(config, open_task(config, self.project, self.root), local_layout(devices))  # type: ignore[arg-type]

    def records(self, run: str = "main") -> list[dict[str, Any]]:
        """metrics.jsonl without what a clock decided."""
        lines = self.run(run).metrics.read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]

    def events(self, run: str = "main") -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.run(run).events.read_text().splitlines()]

    def start(self, *args: str, env: dict[str, str] | None = None, ignored: int = 0) -> warm.Process:
        """`aifx args` in a process of its own; `ignored` is a signal that it ignores from its start."""
        return warm.Process(args, self.root, {**os.environ, **(env or {})}, ignored=ignored)

    def command(self, *args: str) -> tuple[int, str, str]:
        """`aifx args` in this process: its exit code, stdout and stderr."""
        done = inprocess.run(args, self.root, os.environ)
        return done.returncode, done.stdout, done.stderr


def make_project(root: Path) -> Tiny:
    root.mkdir()
    (root / "aifx.toml").write_text(TOML)
    shutil.copy(Path(__file__).with_name("tiny.py"), root)
    return Tiny(Project(root))


def copied(tiny: Tiny, root: Path) -> Tiny:
    return Tiny(Project(Path(shutil.copytree(tiny.root, root))))


@pytest.fixture(scope="session")
def tiny_type() -> type[Tiny]:
    """For projects of another configuration. A test cannot import it: `conftest` may be that of another folder."""
    return Tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return make_project(tmp_path / "project")


@dataclass(frozen=True)
class Whole:
    """A run "main" that was not interrupted, with no settings but checkpoint.keep_last = 3. Not to be changed."""

    tiny: Tiny
    result: Any

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.tiny.records()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    tiny = make_project(tmp_path_factory.mktemp("whole") / "project")
    return Whole(tiny, tiny.train("checkpoint.keep_last=3"))


@pytest.fixture
def trained(whole: Whole, tmp_path: Path) -> Tiny:
    """A copy of the project of `whole`."""
    return copied(whole.tiny, tmp_path / "trained")


@pytest.fixture(scope="session")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose run "main" ended, with checkpoints of steps 8 and 12. Not to be changed."""
    return (
        made_once(tmp_path_factory, "ended", lambda at: make_project(at / "project").train("checkpoint.keep_best=0"))
        / "project"
    )


@pytest.fixture
def start(tiny: Tiny) -> Iterator[Callable[..., warm.Process]]:
    """`tiny.start`, and no process outlives the test."""
    started: list[warm.Process] = []

    def begin(*args: str, **options: Any) -> warm.Process:
        started.append(tiny.start(*args, **options))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()
