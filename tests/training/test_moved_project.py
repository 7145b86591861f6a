"""A project whose data is gone says which file it misses, and its stopped run stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stopping import StopAt

from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.kinds import load_config
from aifx.runs.status import run_status
from aifx.tasks.registry import open_task
from aifx.training.run import train

SETTINGS = """\
[task]
kind = "tabular"
[data]
path = "../points.csv"
target = "y"
[objective]
kind = "regression"
[model]
width = 8
num_layers = 1
[train]
num_steps = 6
global_batch_size = 8
validate_every = 0
[checkpoint]
every = 2
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    rows = np.random.default_rng(0).standard_normal((80, 2))
    (tmp_path / "points.csv").write_text("x,y\n" + "\n".join(f"{x},{y}" for x, y in rows) + "\n")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "aifx.toml").write_text(SETTINGS)
    return Project(tmp_path / "project")


def moved(project: Project) -> Project:
    target = project.root.parent / "elsewhere" / "project"
    target.parent.mkdir()
    project.root.rename(target)
    return Project(target)


def check_error(error: DataError, project: Project) -> None:
    assert "data.path" in f"{error.what} {error.hint}"
    assert str(project.root.parent / "points.csv") in error.why


def test_the_error_names_the_key_and_the_file(project: Project, tmp_path: Path) -> None:
    there = moved(project)
    with pytest.raises(DataError) as error:
        open_task(load_config(there, [], {}), there, tmp_path)
    check_error(error.value, there)


@pytest.mark.slow
def test_a_stopped_run_stays_stopped_and_resumes(project: Project) -> None:
    observer = StopAt(3)
    first = train(project, load_config(project, [], {}), "main", hooks=[observer], stop=observer.signals)
    there = moved(project)
    for _ in range(2):
        with pytest.raises(DataError) as error:
            train(there, load_config(there, [], {}), "main")
        check_error(error.value, there)
        assert run_status(there.run("main")).status == "preempted"
    (project.root.parent / "points.csv").rename(there.root.parent / "points.csv")
    result = train(there, load_config(there, [], {}), "main")
    assert (result.status, result.resumed_from) == ("completed", first.step)


@pytest.mark.slow
def test_a_run_that_never_trained_has_failed(project: Project) -> None:
    there = moved(project)
    with pytest.raises(DataError):
        train(there, load_config(there, [], {}), "main")
    assert run_status(there.run("main")).status == "failed"
