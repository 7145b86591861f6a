"""Help: quick, and examples first."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from program import ESCAPE, environ, run

import aifx
from aifx.commands.app import COMMANDS

DOCTOR = [f"doctor {name}" for name in ("node", "fleet", "bisect", "serve", "diff", "rules", "slurm")]


def test_help_begins_with_examples_and_groups_commands(tmp_path: Path) -> None:
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    text = done.stdout
    assert text.index("Examples:") < text.index("Usage:") < text.index("Options:")
    groups = [text.index(title) for title in ("Start a project:", "Train and use a model:", "Look at runs", "Set up:")]
    assert groups == sorted(groups)
    for name in COMMANDS:
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
    assert max(map(len, text.splitlines())) <= 80


def test_alone_it_shows_its_help(tmp_path: Path) -> None:
    assert (
        run(tmp_path).stdout
        == run(tmp_path, "-h").stdout
        == run(tmp_path, "help").stdout
        == run(tmp_path, "--help").stdout
    )
    assert (
        run(tmp_path, "config").stdout
        == run(tmp_path, "config", "--help").stdout
        == run(tmp_path, "help", "config").stdout
    )
    assert run(tmp_path, "config").returncode == 0


@pytest.mark.parametrize("command", [*COMMANDS, "config show", "config check", "config schema", "config keys", *DOCTOR])
def test_help_of_each_command_begins_with_examples(tmp_path: Path, command: str) -> None:
    done = run(tmp_path, *command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("Examples:") < done.stdout.index("Usage:")
    assert f"aifx {command}" in done.stdout
    assert ESCAPE.search(done.stdout) is None
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search(r"<(str|path|list\[)", done.stdout)
    assert run(tmp_path, *command.split(), "-h").stdout == done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["--version"],
        ["trian"],
        ["doctor", "fleet", "--help"],
        ["train", "--help"],
        ["bench", "train", "--help"],
        ["config", "show"],
    ],
)
def test_nothing_heavy_is_imported(args: list[str], tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").write_text("")
    heavy = {"jax", "orbax", "grain", "numpy", "scipy", "matplotlib", "tokenizers", "copier", "httpx", "optax"}
    heavy |= {"ClusterShell", "prometheus_client"}
    code = (
        "import sys; from aifx.commands.main import run; code = run(sys.argv[1:]); "
        f"print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=tmp_path,
        env=environ(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_help_imports_neither_configuration_nor_rich_nor_shlex(tmp_path: Path) -> None:
    code = (
        "import sys; from aifx.commands.main import run; run(['--help']); "
        "print({'pydantic', 'rich.console', 'shlex'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_version(tmp_path: Path) -> None:
    assert run(tmp_path, "--version").stdout == f"aifx {aifx.__version__}\n"
    assert json.loads(run(tmp_path, "--version", "--json").stdout) == {"schema_version": 1, "version": aifx.__version__}
