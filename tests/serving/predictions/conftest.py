"""Small runs of other tasks than text, and servers of them in threads."""

from __future__ import annotations

import csv
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import inprocess
import numpy as np
import pytest
from made_once import made_once

from aifx.core.project import Project
from aifx.core.web.server import Ending, bind, url_of
from aifx.core.web.traffic import AccessLog
from aifx.loading.restore import RestoredRun, restore_run
from aifx.serving.http.app import open_server
from aifx.serving.http.services import open_service

TABLE = """
[task]
kind = "tabular"
[data]
path = "data/rows.csv"
target = "kind"
[model]
width = 8
num_layers = 1
[train]
global_batch_size = 16
num_steps = 3
[checkpoint]
every = 1
keep_last = 10
[eval]
checkpoint = "last"
batch_size = 8
[serve]
watch_every_s = 0.05
"""
PICTURES = """
[task]
kind = "vision"
[objective]
kind = "multilabel"
[data]
path = "data/pictures.csv"
image_size = [8, 8]
channels = 3
[model]
channels = [4, 4]
[train]
global_batch_size = 8
num_steps = 2
[eval]
batch_size = 4
"""


WAIT_S = 120.0
"""Only ends a hang."""


class Served:
    """A run that is served in a thread."""

    def __init__(self, project: Project, key: str = "", overrides: tuple[str, ...] = ()) -> None:
        self.trained: RestoredRun = restore_run(project.run("main"), project, overrides=overrides)
        self.log_file = project.root / "access.jsonl"
        settings = self.trained.config.serve
        self.service = open_service(self.trained, name="main", settings=settings, log=AccessLog(self.log_file), key=key)
        self.state: Any = self.service.state
        self.predictor = self.state.engine
        bound = bind("127.0.0.1", 0, port_hint="")
        self.url = url_of(bound)
        self.server = open_server(self.state, bound)
        self.ending: Ending | None = None
        listening = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(listening.set,), daemon=True)
        self.thread.start()
        assert listening.wait(WAIT_S)
        self.http = httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False)

    def _run(self, on_listening: Callable[[], None]) -> None:
        self.ending = self.server.run(on_listening)

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.stop()
            self.thread.join(WAIT_S)
        assert not self.thread.is_alive()
        self.http.close()


def train_in(root: Path, config: str) -> None:
    (root / "aifx.toml").write_text(config)
    ended = inprocess.run(["train", "--run", "main"], root, dict(os.environ))
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(made_once(tmp_path_factory, "table", train_table))


def train_table(root: Path) -> None:
    (root / "data").mkdir()
    rng = np.random.default_rng(0)
    with (root / "data/rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["length", "weight", "kind"])
        for length, weight in rng.normal(size=(200, 2)).round(3):
            writer.writerow([length, weight, "long" if length > weight else "short"])
    train_in(root, TABLE)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Pictures with several labels each."""
    return Project(made_once(tmp_path_factory, "pictures", train_pictures))


def train_pictures(root: Path) -> None:
    from PIL import Image

    (root / "data").mkdir()
    rng = np.random.default_rng(0)
    lines = ["file,labels"]
    for number in range(40):
        labels = [name for name in ("blue", "red") if rng.random() < 0.6]
        values = rng.integers(0, 100, (8, 8, 3))
        values[..., 0] += 100 * ("red" in labels)
        values[..., 2] += 100 * ("blue" in labels)
        Image.fromarray(values.astype(np.uint8)).save(root / f"data/{number}.png")
        lines.append(f"{number}.png,{';'.join(labels)}")
    (root / "data/pictures.csv").write_text("\n".join(lines) + "\n")
    train_in(root, PICTURES)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(project: Project, **options: Any) -> Served:
        started.append(Served(project, **options))
        return started[-1]

    yield start
    for served in started:
        served.close()


@pytest.fixture(scope="module")
def rows_served(table: Project) -> Iterator[Served]:
    """One server for the tests of a module that change nothing of it."""
    one = Served(table)
    yield one
    one.close()


@pytest.fixture
def watched(table: Project, tmp_path: Path) -> Project:
    """Only the checkpoint of step 1 is there."""
    shutil.copytree(table.root, tmp_path / "project")
    for step in (2, 3):
        shutil.rmtree(tmp_path / f"project/runs/main/checkpoints/{step}")
    return Project(tmp_path / "project")


def png(values: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()
