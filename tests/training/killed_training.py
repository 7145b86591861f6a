"""`aifx train --request` that is killed before and after each change of a file in its project, one after the other.

    python killed_training.py train|fork FOLDER

After each kill, the same command comes again under the name of another day. It ends as an undisturbed one does, and
there is no other run. The program prints the number of kills.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import inprocess
from faulty_files import kill_at_each_change

from aifx.core.project import Project

TOML = """\
[task]
kind = "tiny:TinyTask"

[train]
num_steps = 3
global_batch_size = 8
validate_every = 0

[checkpoint]
every = 1
"""
KIND, FOLDER = sys.argv[1], Path(sys.argv[2])


def prepare(root: Path) -> None:
    root.mkdir()
    (root / "aifx.toml").write_text(TOML)
    shutil.copy(Path(__file__).with_name("tiny.py"), root)
    if KIND == "fork":
        train(root, "--run", "main", "--set", "train.num_steps=1")


def train(root: Path, *args: str) -> dict[str, Any]:
    done = inprocess.run(["train", "--json", *args], root, os.environ)
    assert done.returncode == 0, done.stderr + done.stdout
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def ask(root: Path, name: str) -> dict[str, Any]:
    options = ["--fork", name] if KIND == "fork" else ["--run", name]
    return train(root, *options, "--request", "tick-7.train")


def write(root: Path) -> None:
    ask(root, "x-1")


def runs(root: Path) -> list[str]:
    return sorted(run.name for run in Project(root).runs())


def check(root: Path, calm: Path) -> None:
    document = ask(root, "x-2")
    name = document["run"]
    assert runs(root) == sorted({name, *(["main"] if KIND == "fork" else [])})
    expected = ask(calm, "x-3")
    assert expected["is_repeated"]
    for key in ("status", "step", "loss", "state_digest"):
        assert document[key] == expected[key], key
    assert ask(root, "x-3") == {**document, "is_repeated": True}
    assert runs(root) == sorted({name, *(["main"] if KIND == "fork" else [])})


if __name__ == "__main__":
    sys.stdout.write(str(kill_at_each_change(FOLDER, prepare, write, check)))
