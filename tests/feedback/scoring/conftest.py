"""A project with a trained model of a table, and rows to score."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from made_once import made_once
from score_rows import write_rows
from table_project import train_table_project

ROWS = 40


@pytest.fixture
def project(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the run "main", which reads "x" and "y", and `new.csv` with `order` as key."""
    root = tmp_path / "project"
    shutil.copytree(made_once(tmp_path_factory, "table-run", train_table_project) / "project", root, symlinks=True)
    write_rows(root, range(ROWS))
    return root
