"""`aifx config`, and that the pages which describe documents say what commands print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tomli
from program import assert_three_lines, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "aifx.toml").write_text('[train]\nnum_steps = 40\n[data]\ntrain = ["a.txt"]\n')
    (tmp_path / "a.txt").write_text("text")
    return tmp_path


def documents(page: str) -> list[dict[str, Any]]:
    """The JSON documents of a page."""
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)]


def test_show_is_toml_of_every_section(project: Path) -> None:
    done = run(project, "config", "show", "--set", "train.seed=3", AIFX_LOG__EVERY="4")
    document = tomli.loads(done.stdout)
    assert (document["train"]["num_steps"], document["train"]["seed"], document["log"]["every"]) == (40, 3, 4)
    assert "  # " not in done.stdout
    assert done.stderr == ""


def test_show_says_who_set_what(project: Path) -> None:
    done = run(project, "config", "show", "--origin", "--set", "train.seed=3", AIFX_LOG__EVERY="4")
    assert re.search(r"^num_steps = 40 +# aifx.toml:2$", done.stdout, re.M)
    assert re.search(r"^seed = 3 +# --set$", done.stdout, re.M)
    assert re.search(r"^every = 4 +# AIFX_LOG__EVERY$", done.stdout, re.M)
    assert re.search(r"^global_batch_size = 16 +# default$", done.stdout, re.M)
    document = json.loads(run(project, "config", "show", "--origin", "--json", "--set", "train.seed=3").stdout)
    assert document["config"]["train"]["seed"] == 3
    assert document["origins"]["train"]["seed"] == "--set"


def test_show_from_a_folder_below(project: Path) -> None:
    (project / "data").mkdir()
    assert "num_steps = 40" in run(project / "data", "config", "show").stdout


def test_show_of_a_run(project: Path) -> None:
    (project / "runs" / "old").mkdir(parents=True)
    written = run(project, "config", "show", "--origin", "--set", "train.seed=9").stdout
    (project / "runs" / "old" / "config.toml").write_text(written)
    assert run(project, "config", "show", "--origin", "--run", "old").stdout == written
    done = run(project, "config", "show", "--run", "odl")
    assert done.returncode == 2
    assert "'old'" in done.stderr


def test_check(project: Path) -> None:
    assert run(project, "config", "check").returncode == 0
    assert json.loads(run(project, "config", "check", "--json").stdout)["valid"] is True
    done = run(project, "config", "check", "--set", "train.sed=1")
    assert done.returncode == 2
    assert_three_lines(done.stderr)
    (project / "aifx.toml").write_text("[train]\nsed = 1\nnum_steps = 0\n")
    done = run(project, "config", "check")
    assert done.returncode == 2
    assert "aifx.toml:2" in done.stderr
    assert "aifx.toml:3" in done.stderr


def test_schema_is_a_schema(project: Path) -> None:
    assert json.loads(run(project, "config", "schema").stdout)["title"] == "aifx.toml"


def test_keys(tmp_path: Path) -> None:
    text = run(tmp_path, "config", "keys", "optimizer").stdout
    assert "optimizer.learning_rate = 0.001\n" in text
    assert "train." not in text
    keys = json.loads(run(tmp_path, "config", "keys", "--json").stdout)["keys"]
    assert {"train.seed", "model.num_layers", "data.image_size"} <= {f"{key['section']}.{key['key']}" for key in keys}


def test_an_error_of_a_page_is_what_the_command_says(project: Path) -> None:
    (project / "aifx.toml").write_text("\n" * 10 + "[train]\nnum_step = 3\n")
    said = run(project, "config", "check").stderr
    assert said in (ROOT / "docs" / "exit-codes.md").read_text()
    document = json.loads(run(project, "config", "check", "--json").stdout)
    assert document == documents("json.md")[0]
