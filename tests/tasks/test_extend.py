"""`aifx.extend`: the names of docs/tasks.md, and the kind of data of docs/own-data.md."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from own_tasks import PARTS, PARTS_TOML, ROOT, SCALED, make_project

from aifx import extend
from aifx.core.project import Project
from aifx.data.arrays import ArrayDataset
from aifx.kinds import load_config
from aifx.tasks import Task, open_task

PAGES = ("tasks", "hooks", "own-family", "own-objective", "own-data", "own-reader")
PAGE = (ROOT / "docs/tasks.md").read_text()
NAMES = PAGE.partition("## Names\n")[2].partition("\n## ")[0]


def test_the_page_lists_the_names() -> None:
    rows = NAMES.partition("| for | names |\n")[2].strip().splitlines()[1:]
    listed = [name for row in rows for name in re.findall(r"`(\w+)[`(]", row.split("|")[2])]
    assert sorted(listed) == extend.__all__


@pytest.mark.parametrize("path", [*(f"docs/{page}.md" for page in PAGES), "templates/custom-task/births.py"])
def test_a_task_of_ones_own_needs_no_other_module(path: str) -> None:
    modules = set(re.findall(r"\baifx\.[a-z_]+(?:\.\w+)*", (ROOT / path).read_text())) - {"aifx.toml"}
    assert modules == {"aifx.extend"}


def test_checkers_of_types_find_the_same() -> None:
    (block,) = (node for node in ast.parse(Path(extend.__file__).read_text()).body if isinstance(node, ast.If))
    places = {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert places.keys() == set(extend.__all__)
    for name, module in places.items():
        assert getattr(extend, name) is getattr(sys.modules[str(module)], name)


def test_settings_and_data_import_no_jax() -> None:
    names = [name for name in extend.__all__ if re.search("Section|Kind|Family|Array[DFs]|array|rows|Spec$|Data", name)]
    names.remove("ArraySpec")
    code = f"import sys; from aifx.extend import {', '.join(names)}; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert {"Family", "DataKind", "ObjectiveKind", "ModelSection", "ArrayFormat", "read_rows", "DataSpec"} <= {*names}


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="Modle"):
        extend.Modle  # noqa: B018


def test_data_of_arrays_and_rows(tmp_path: Path) -> None:
    """The scale is made once and kept with the run. Rows come from lines of a format of its own, or from JSON lines."""
    toml = PARTS_TOML.replace("births:DATA", "days:DATA")
    project = Project(make_project(tmp_path / "births", PARTS, toml))
    (project.root / "days.py").write_text(SCALED)
    config = load_config(project, [], {})
    assets = project.root / "assets"
    assets.mkdir()
    task = open_task(config, project, assets)
    lines = [line.split(",") for line in (project.root / "data/births.csv").read_text().splitlines()]
    births = np.array([float(line[lines[0].index("births")]) for line in lines[1:]])
    scale = json.loads((assets / "scale.json").read_text())
    assert isinstance(task.dataset, ArrayDataset)
    assert task.dataset.splits["train"]["targets"].std() == pytest.approx(1)
    np.testing.assert_allclose(targets_of(task), np.sort(births / scale), rtol=1e-5)
    form = task.format
    assert isinstance(form, extend.ArrayFormat)
    (assets / "scale.json").write_text("1000")
    np.testing.assert_allclose(targets_of(open_task(config, project, assets)), np.sort(births / 1000), rtol=1e-5)
    for name, text in (("days.dat", "1988 12 25 7\n1988 12 26 1\n"), ("days.jsonl", '{"year": 1}\n{"year": 1988}\n')):
        path = tmp_path / name
        path.write_text(text)
        last = [*form.read_rows(extend.input_file(str(path)))][-1]
        assert (last.number, last.place, int(last.values["year"])) == (2, f"{path}:2", 1988)


def targets_of(task: Task) -> np.ndarray:
    """In order of their size."""
    assert isinstance(task.dataset, ArrayDataset)
    return np.sort(np.concatenate([arrays["targets"] for arrays in task.dataset.splits.values()]))
