"""Families, objectives and kinds of data are found by name, and imported no earlier than a configuration names them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOY = Path(__file__).parent / "toy"

PREAMBLE = """
import json, sys
from pathlib import Path

def rooms():  # what is loaded of the rooms that `config` does not know, and of the toy
    above = ("aifx.kinds", "aifx.models", "aifx.objectives", "aifx.data", "aifx.tasks", "toy", "jax")
    return sorted(m for m in sys.modules if any(m == name or m.startswith(name + ".") for name in above))

"""


def python(code: str, folder: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + code], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NAMED = """\
[model]
family = "toy"
[objective]
kind = "toy:OBJECTIVE"
[data]
kind = "toy:DATA"
"""

HELP = """
from aifx.commands.main import main
sys.argv = ["aifx", *%r]
try:
    main()
except SystemExit as ended:
    assert not ended.code
at_help = rooms()

import aifx.models
aifx.models.__path__.append("models")
from aifx.core.project import Project
from aifx.kinds import load_config
parts = load_config(Project(Path.cwd())).parts
kinds = {section: [type(kind).__name__, kind.name] for section, kind in parts.kinds.items()}
print(json.dumps({"at_help": at_help, "kinds": kinds, "loaded": rooms()}))
"""


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"]], ids=" ".join)
def test_help_imports_none_and_each_is_found(command: list[str], tmp_path: Path) -> None:
    for folder in (tmp_path / "models", tmp_path):  # among the families of aifx, and in a project
        shutil.copytree(TOY, folder / "toy", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "aifx.toml").write_text(NAMED)
    found = python(HELP % command, tmp_path)
    assert found["at_help"] == []
    assert found["kinds"] == {
        "model": ["Family", "toy"],
        "objective": ["ObjectiveKind", "huber"],
        "data": ["DataKind", "waves"],
    }
    assert {"aifx.models.toy", "toy"} <= set(found["loaded"])
    assert not {"aifx.models.toy.model", "toy.objective", "toy.data", "jax"} & set(found["loaded"])


CONFIG = """
import importlib, pkgutil
import aifx.config
for module in pkgutil.iter_modules(aifx.config.__path__):
    importlib.import_module(f"aifx.config.{module.name}")

from aifx.config.kinds import Kinds
from aifx.config.load import load_config
from aifx.config.parts import Kind, TaskParts
from aifx.config.sections import DataSection, ModelSection, ObjectiveSection
from aifx.core.project import Project

class Net(ModelSection):
    width: int = 8

known = {
    "model": {"net": Kind("net", Net, "nowhere:Net", {"wide": {"width": 64}})},
    "objective": {"least": Kind("least", ObjectiveSection, "nowhere:Least")},
    "data": {"none": Kind("none", DataSection, "nowhere:Data")},
}
task = {"model": "net", "objective": "least", "data": "none"}
kinds = {section: known[section][name] for section, name in task.items()}
parts = TaskParts("tiny", None, task, kinds, {section: kind.section for section, kind in kinds.items()})
config = load_config(
    Kinds({"tiny": task}, known.__getitem__, lambda kind, names, project: parts), Project(Path.cwd()), [], {}
)
print(json.dumps({"model": config.values()["model"], "loaded": rooms()}))
"""


def test_a_configuration_knows_the_kinds_that_it_is_given_alone(tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").write_text('[task]\nkind = "tiny"\n[model]\npreset = "wide"\n')
    found = python(CONFIG, tmp_path)
    assert found["model"] == {"family": None, "preset": "wide", "width": 64}
    assert found["loaded"] == []
