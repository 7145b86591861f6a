"""Projects to sweep in, and a trainer that takes no time: control flow needs no real training."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inprocess
import pytest

from aifx.core.json_files import read_jsonl
from aifx.core.project import Project

TOML = """\
[train]
num_steps = 12
validate_every = 4
"""

TINY = """\
[task]
kind = "tiny:TinyTask"

[train]
num_steps = 12
global_batch_size = 8
validate_every = 4

[checkpoint]
every = 4
"""

TRAINER = """
import json, os, signal, sys, time
from pathlib import Path

def option(name):
    return [sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == name]

run = Path("runs", option("--run")[0])
settings = dict(text.split("=", 1) for text in option("--set"))
with open("starts", "a") as file:
    file.write(json.dumps([run.name, settings, os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
Path(run, "config.toml").touch()

def end(code, **fields):
    os.write(1, json.dumps(fields).encode())  # a signal handler may not print
    os._exit(code)

behaviour = json.loads(Path("behaviour.json").read_text()).get(run.name, {}) if Path("behaviour.json").exists() else {}
if "error" in behaviour:
    end(behaviour.get("code", 2), error={"what": behaviour["error"], "why": "a reason", "hint": "", "exit_code": 2})
if "exit" in behaviour:
    end(behaviour["exit"], status=behaviour.get("status", "preempted"), best_value=None, best_step=None)
if "signal" in behaviour:
    os.kill(os.getpid(), behaviour["signal"])
loss = behaviour.get("loss", float(settings.get("optimizer.learning_rate", 1)))
signal.signal(signal.SIGTERM, lambda *_: end(75, status="preempted", best_value=None, best_step=None))
signal.signal(signal.SIGINT, lambda *_: end(130, status="interrupted", best_value=None, best_step=None))
if behaviour.get("waits"):
    Path("waits").touch()
    time.sleep(600)
for step in (4, 8, 12):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "loss": 0.0, "validation": {"loss": loss}}) + "\\n")
    if behaviour.get("lingers") and step == 4:
        time.sleep(600)
end(0, status="completed", best_value=loss, best_step=12)
"""
"""Stands for `aifx train`: its validation loss is the learning rate; `behaviour.json` may say otherwise for a run."""


@dataclass(frozen=True)
class Swept:
    """A project to sweep in."""

    project: Project

    @property
    def root(self) -> Path:
        return self.project.root

    def command(self, *args: str, **environ: str) -> tuple[int, str, str]:
        """`aifx sweep args` in this process: exit code, stdout and stderr."""
        done = inprocess.run(["sweep", *args], self.root, {**os.environ, **environ})
        return done.returncode, done.stdout, done.stderr

    def lines(self, name: str = "sweep") -> list[dict[str, Any]]:
        """sweep.jsonl without times."""
        lines = read_jsonl(self.project.runs_path / name / "sweep.jsonl")
        return [{key: value for key, value in line.items() if key != "time"} for line in lines]

    def starts(self) -> list[Any]:
        """The runs that the trainer was started for, in order, with their settings and GPUs."""
        return read_lists(self.root / "starts")


def read_lists(path: Path) -> list[Any]:
    import json

    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Swept:
    """A project whose trials are trained by TRAINER."""
    monkeypatch.setattr("aifx.core.processes.PROGRAM", TRAINER)
    (tmp_path / "aifx.toml").write_text(TOML)
    return Swept(Project(tmp_path))


@pytest.fixture
def tiny_sweep(tmp_path: Path) -> Swept:
    """A project whose trials are trained in earnest, in seconds."""
    (tmp_path / "aifx.toml").write_text(TINY)
    shutil.copy(Path(__file__).parents[1] / "training" / "tiny.py", tmp_path)
    return Swept(Project(tmp_path))


@pytest.fixture
def behave(swept: Swept) -> Callable[..., None]:
    """Say what the trainer does for a run: `behave(**{"sweep-002": {"error": "no data"}})`."""
    import json

    def write(**by_run: dict[str, Any]) -> None:
        (swept.root / "behaviour.json").write_text(json.dumps(by_run))

    return write
