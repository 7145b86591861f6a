"""A project with a trained model of a table, and rows to score."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import inprocess
import pytest
from made_once import made_once
from score_rows import write_rows
from table_project import make_table_project

ROWS = 40


def _train(folder: Path) -> None:
    project = make_table_project(folder / "project")
    done = inprocess.run(["train", "--set", "train.num_steps=2"], project.root, os.environ)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the run "main", which reads "x" and "y", and `new.csv` with `order` as key."""
    root = tmp_path / "project"
    shutil.copytree(made_once(tmp_path_factory, "scored", _train) / "project", root, symlinks=True)
    write_rows(root, range(ROWS))
    return root
