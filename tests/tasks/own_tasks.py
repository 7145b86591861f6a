"""The project of docs/tasks.md, and its code changed to be wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import inprocess

ROOT = Path(__file__).parents[2]
DATA = ROOT / "templates/custom-task/data/births.csv"


def documented(language: str) -> list[str]:
    """The blocks of a language on the page."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/tasks.md").read_text(), re.DOTALL)


PARTS, OBJECTIVE, SCALED, TASK = documented("python")
TOML, *_ = documented("toml")
"""The project that names its parts."""

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
    sys.modules.pop("births", None)  # of another project, or before its file changed
    done = inprocess.run(args, project, os.environ, stdin=stdin)
    assert done.returncode == code, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    return done
