"""Completions on Tab, asked for as bash, zsh and fish do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from program import PROGRAM

from aifx.verbs.completion import complete_setting


def complete(cwd: Path, line: str, shell: str = "bash") -> list[str]:
    words = line.split(" ")
    env = {**os.environ, "_AIFX_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    env |= {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(PROGRAM, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.split("\n")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "aifx.toml").write_text("")
    for name in ("main", "wide", "wider"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.toml").write_text("")
    return tmp_path


def test_commands(project: Path) -> None:
    assert complete(project, "aifx conf") == ["config", ""]
    assert {"show", "check", "schema"} <= set(complete(project, "aifx config "))


def test_options(project: Path) -> None:
    assert {"--origin", "--json", "--run", "--set"} <= set(complete(project, "aifx config show --"))


@pytest.mark.slow
def test_a_group_with_a_default_offers_its_commands_and_the_default_options(project: Path) -> None:
    assert {"node", "fleet", "serve", "rules"} <= set(complete(project, "aifx doctor "))
    for line in ("aifx doctor --o", "aifx doctor node --o", "aifx doctor --json --o"):
        assert complete(project, line) == ["--only", ""]
    assert complete(project, "aifx doctor fleet --ho") == ["--hosts", ""]


def test_names_of_runs(project: Path) -> None:
    assert complete(project, "aifx config show --run wi") == ["wide", "wider", ""]


def test_keys_of_the_configuration(project: Path) -> None:
    assert "train.num_steps=" in complete(project, "aifx config show --set train.n")


def test_values_of_one_key() -> None:
    """A candidate that is alone gets a space behind it, and a space behind `=` would end the setting."""
    for incomplete, offered in {
        "train.n": ["train.num_steps=", "train.num_steps=1000"],
        "optimizer.kind=": ["optimizer.kind=adamw", "optimizer.kind=muon"],
        "optimizer.kind=m": ["optimizer.kind=muon"],
        "model.rem": ["model.remat=", "model.remat=none", "model.remat=dots", "model.remat=full"],
        "data.tra": ["data.train="],
        "nothing=": [],
    }.items():
        assert [value for value, _ in complete_setting(incomplete)] == offered


@pytest.mark.slow
def test_templates_sections_and_tags(project: Path) -> None:
    assert complete(project, "aifx init new --template vis") == ["vision-inspection", ""]
    assert complete(project, "aifx config keys opt") == ["optimizer", ""]
    (project / "runs/wide/tags.json").write_text('{"tags": ["baseline", "no tag; at all", 3]}')
    assert complete(project, "aifx runs ls --tag ") == ["baseline", ""]
    assert complete(project, "aifx runs rm main wid") == ["wide", "wider", ""]


def test_outside_of_a_project_there_are_no_runs(tmp_path: Path) -> None:
    assert set(complete(tmp_path, "aifx config show --run ")) == {""}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells(project: Path, shell: str) -> None:
    assert "wider" in "\n".join(complete(project, "aifx config show --run wi", shell))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(tmp_path: Path, shell: str) -> None:
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [*PROGRAM, "--show-completion", shell], env=env, capture_output=True, text=True, timeout=300, check=True
    )
    assert "_AIFX_COMPLETE" in done.stdout


def test_a_shell_that_cannot_be_told_is_a_usage_error(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "SHELL": "/bin/false"}
    done = subprocess.run(
        [*PROGRAM, "--show-completion"], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
