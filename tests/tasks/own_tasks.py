"""The projects of docs/tasks.md and the pages "Write your own", and their code changed to be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import inprocess
from documented import blocks

ROOT = Path(__file__).parents[2]
DATA = ROOT / "templates/custom-task/data/births.csv"


PARTS, TASK = blocks("tasks", "python")
(OBJECTIVE,) = blocks("own-objective", "python")
(SCALED,) = blocks("own-data", "python")
(FAMILY,) = blocks("own-family", "python")
TOML, *_ = blocks("tasks", "toml")
"""The project that names its parts."""

OWN_MODULES = ("births", "huber", "days", "my_rnn")
SHORT = """\
[train]
num_steps = 4
global_batch_size = 16
validate_every = 2
"""
TASK_TOML = f'[task]\nkind = "births:Births"\n[model]\nwidth = 8\n[data]\npath = "data/births.csv"\n{SHORT}'
PARTS_TOML = TOML.partition("[train]")[0] + SHORT


def make_project(root: Path, code: str, toml: str, *, days: int = 400) -> Path:
    """A project with `births.py` and the first days of its data."""
    (root / "data").mkdir(parents=True)
    lines = DATA.read_text().splitlines(keepends=True)
    (root / "data/births.csv").write_text("".join(lines[: days + 1]))
    (root / "births.py").write_text(code)
    (root / "aifx.toml").write_text(toml)
    return root


def replaced(code: str, old: str, new: str) -> str:
    assert old in code
    return code.replace(old, new)


def aifx(project: Path, *args: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    for name in OWN_MODULES:  # of another project, or before its file changed
        sys.modules.pop(name, None)
    done = inprocess.run(args, project, os.environ, stdin=stdin)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done
