"""The command `aifx data mix`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from subprocess import CompletedProcess

import inprocess
import pytest
from stored_versions import make_version

from aifx.core.project import Project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "aifx.toml").write_text('[data]\ndataset = "blend"\n')
    project = Project(tmp_path)
    for name in ("web", "books"):
        make_version(project, name, {"text": [f"{name} {number}" for number in range(5)]})
    return project


def aifx(project: Project, *args: str) -> CompletedProcess[str]:
    return inprocess.run(args, project.root, {**os.environ, "AIFX_CACHE_DIR": str(project.root / "cache")})


def test_it_makes_a_version_once(project: Project) -> None:
    made = json.loads(aifx(project, "data", "mix", "blend", "web:7", "books:3", "--json").stdout)
    assert made["is_new"]
    assert made["facts"]["mixed_rows"] == 10
    again = aifx(project, "data", "mix", "blend", "web:7", "books:3")
    assert again.returncode == 0
    assert again.stdout.startswith(f"{made['reference']}: 10 rows")
    assert "there already" in again.stdout
    assert "70.0%" in again.stdout
    assert aifx(project, "data", "verify", "blend").returncode == 0
    assert aifx(project, "config", "check").returncode == 0


def test_its_rows_are_those_of_its_sets(project: Project) -> None:
    made = json.loads(aifx(project, "data", "mix", "blend", "web:7", "books:3", "--json").stdout)
    listed = {one["reference"]: one for one in json.loads(aifx(project, "data", "ls", "--json").stdout)["versions"]}
    blend = listed.pop(made["reference"])
    assert (blend["rows"], len(listed)) == (10, 2)
    assert blend["size_bytes"] == sum(one["size_bytes"] for one in listed.values())
    lineage = json.loads(aifx(project, "data", "lineage", "blend", "--json").stdout)["versions"]
    assert [one["rows"] for one in lineage] == [10, 5, 5]
    assert {one["size_bytes"] for one in (made, lineage[0])} == {blend["size_bytes"]}
    assert made["rows"] == 10


@pytest.mark.parametrize("command", ["profile", "report", "diff"])
def test_it_has_no_rows_of_its_own_to_show(project: Project, command: str) -> None:
    made = json.loads(aifx(project, "data", "mix", "blend", "web:7", "books:3", "--json").stdout)
    refused = aifx(project, "data", command, "blend", "--json")
    error = json.loads(refused.stdout)["error"]
    assert refused.returncode == 2
    assert made["reference"] in error["what"]
    assert error["hint"] == f"aifx data {command} {made['parents'][0]}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["blend", "web:1", "boks:1"], "did you mean 'books'?"),
        (["blend", "web:1"], "two data sets"),
        (["latest", "web:1", "books:1"], "cannot name a data set"),
        (["blend", "web:1", "books:1", "--epochs", "bok:2"], "no data set of the mix"),
    ],
)
def test_a_mistake_is_named(project: Project, arguments: list[str], message: str) -> None:
    refused = aifx(project, "data", "mix", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert "hint:" in refused.stderr
    assert not (project.root / "datasets/blend").exists()


def test_config_check_names_a_data_set_that_is_missing(project: Project) -> None:
    refused = aifx(project, "config", "check")
    assert refused.returncode == 2
    assert "aifx.toml:2" in refused.stderr
    assert "no data set 'blend'" in refused.stderr


@pytest.mark.slow
def test_why_explains_rows_of_the_sets_of_a_mix(project: Project) -> None:
    aifx(project, "data", "mix", "blend", "web:7", "books:3")
    rows = json.loads(aifx(project, "data", "query", "web", "SELECT _row FROM data LIMIT 1", "--json").stdout)
    row = rows["rows"][0][0]
    found = aifx(project, "data", "why", row)
    assert found.returncode == 0, found.stderr
    assert row in found.stdout
