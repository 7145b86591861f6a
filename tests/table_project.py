"""A project with a small table, whose network trains in a second."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import inprocess
import numpy as np

from aifx.core.project import Project

TOML = """\
[task]
kind = "tabular"

[data]
path = "rows.csv"
target = "label"
ignore = ["number"]
validation_fraction = 0.25
test_fraction = 0.25

[objective]
threshold_by = "f1"

[model]
width = 8
num_layers = 1
embed_dim = 2
dropout = 0.1

[train]
num_steps = 6
global_batch_size = 32
validate_every = 2

[optimizer]
learning_rate = 0.005

[checkpoint]
every = 2
"""


def make_table_project(root: Path, num_rows: int = 160) -> Project:
    """Rows that are known by their "number", of a class that "x" and "y" nearly decide."""
    root.mkdir()
    (root / "aifx.toml").write_text(TOML)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, num_rows)).round(4)
    labels = np.where(x + y + rng.normal(size=num_rows) > 0, "up", "down")
    with open(root / "rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "x", "y", "label"])
        writer.writerows(zip(range(num_rows), x, y, labels, strict=True))
    return Project(root)


def train_table_project(folder: Path) -> None:
    """Make `folder/project`, with a trained run."""
    project = make_table_project(folder / "project", 480)
    done = inprocess.run(["train", "--set", "train.num_steps=2"], project.root, os.environ)
    assert done.returncode == 0, done.stderr
