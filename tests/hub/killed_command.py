"""A command that is killed before and after each change that it makes to files, one after the other.

    python killed_command.py COMMAND MODEL FOLDER

MODEL is the folder of a model. After each kill, the same command is asked for again: it ends well, says whether the
work was there already, and leaves what an undisturbed one leaves. The program prints the number of kills.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
from adapter_runs import make_adapter_run
from faulty_files import kill_at_each_change

from aifx.checkpoint.manifest import read_manifest
from aifx.checkpoint.stored import StoredArrays
from aifx.checkpoint.writing import write_checkpoint
from aifx.core.artifact import MANIFEST
from aifx.core.project import Project
from aifx.hub.importing import import_model

MODEL, FOLDER = (Path(argument) for argument in sys.argv[2:])
ARGUMENTS, MADE = {
    "import": (["import", str(MODEL), "--name", "made"], "project/runs/made"),
    "export": (["export", "../made", "--run", "base", "--shard-size", "4kB"], "made"),
    "orbax": (["export", "../made", "--run", "base", "--format", "orbax"], "made"),
    "adapters": (["export", "../made", "--run", "adapted", "--format", "peft"], "made"),
    "average": (["ckpt", "average", "0", "1", "--run", "base", "--name", "made"], "project/runs/made"),
}[sys.argv[1]]

VOLATILE = {"time", "saved_at", "run_id", "id", "hash", "records"}
"""Keys of files that differ between two runs of the same content."""


def prepare(root: Path) -> None:
    """A folder outside of any project for `import`; otherwise a project with the runs that the command needs."""
    project = Project(root / "project")
    project.root.mkdir(parents=True)
    if sys.argv[1] == "import":
        return
    project.config_path.write_text("")
    base = project.run(import_model(str(MODEL), project, "base").run)
    if sys.argv[1] == "adapters":
        make_adapter_run(project, base)
    if sys.argv[1] == "average":
        manifest = read_manifest(base.checkpoints / "0")
        stored = StoredArrays(base.checkpoints / "0", manifest.arrays)
        shapes = {name: tuple(slice(0, size) for size in entry.shape) for name, entry in manifest.arrays.items()}
        arrays = ((name, stored.read(name, shape).result() * np.float32(3)) for name, shape in shapes.items())
        write_checkpoint(base.checkpoints, 1, manifest.arrays, arrays, run=manifest.run)


def ask(root: Path) -> dict[str, Any]:
    """The command's document. `import` describes the run in a part of it."""
    done = inprocess.run([*ARGUMENTS, "--json"], root / "project", os.environ)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    if sys.argv[1] == "orbax":  # whose files have random names
        del document["files"]
    return document.pop("imported", document)


def write(root: Path) -> None:
    document = ask(root)
    if not (answer := FOLDER / "answer.json").exists():  # of the first, which nothing disturbs
        answer.write_text(json.dumps(document))


def content(root: Path) -> dict[str, Any]:
    """Each file that a run or an exported folder consists of, without what no two runs have in common.

    Files of arrays have random names, and are left to `aifx ckpt verify` and the digests in the manifest. Those of an
    exported tree are left to `manifest.json`, which aifx compares with them when it is asked again.
    """
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        in_checkpoint = "checkpoints" in path.parts and path.name != "manifest.json"
        is_tree = sys.argv[1] == "orbax" and name == "made/manifest.json"
        if "items" in path.parts or is_tree:
            found[name if is_tree else "items"] = None
        elif path.is_dir() or path.name == "lock" or in_checkpoint:
            found[name if path.is_dir() and not in_checkpoint else "checkpoints"] = None
        elif path.name == MANIFEST and "checkpoints" in path.parts:
            found[name] = _lasting(json.loads(path.read_text())["content"])
        elif path.suffix in (".json", ".jsonl") and "runs" in path.parts:
            found[name] = [_lasting(json.loads(line)) for line in _documents(path)]
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _documents(path: Path) -> list[str]:
    text = path.read_text()
    return text.splitlines() if path.suffix == ".jsonl" else [text]


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in VOLATILE}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def check(root: Path, calm: Path) -> None:
    """Ask again after a kill."""
    was_there = (root / MADE).exists()
    document = ask(root)
    assert document == {**json.loads((FOLDER / "answer.json").read_text()), "is_new": not was_there}
    found, expected = content(root), content(calm)
    assert found == expected, {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
    if "runs" in MADE:
        verified = inprocess.run(["ckpt", "verify", "--run", "made"], root / "project", os.environ)
        assert verified.returncode == 0, verified.stdout
    assert ask(root) == {**document, "is_new": False}


if __name__ == "__main__":
    kills = kill_at_each_change(FOLDER, prepare, write, check)
    assert (FOLDER / "root" / MADE).exists()
    sys.stdout.write(str(kills))
