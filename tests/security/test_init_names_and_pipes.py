"""Names of projects that would steer a terminal, and readers that go away while a project is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import inprocess
import pytest

from aifx.core.errors import ConfigError, UsageError
from aifx.core.project import find_project
from aifx.kinds import load_config
from aifx.scaffold.projects import parse_answers, scaffold

NAMES = ["evil\x1b]0;title\x07", "evil\x9b2J", "two\nlines\x00", "gnp\u202eexe"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_with_control_characters_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be"):
        parse_answers([f"project_name={name}"])
    with pytest.raises(UsageError) as caught:  # by the template itself, as at its question
        scaffold(tmp_path / "made", "language-model", data={"project_name": name}, ask=False)
    assert "printable" in caught.value.why
    folder = tmp_path / name.replace("\0", "").replace("\n", "")
    if "\n" not in name:
        with pytest.raises(UsageError, match=r"^the folder .*cannot be"):
            scaffold(folder, "language-model", data={}, ask=False)
    assert list(tmp_path.iterdir()) == []


def test_a_configured_name_with_control_characters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "aifx.toml").write_text('[project]\nname = "a\\u001b[31m"\n')
    with pytest.raises(ConfigError, match=r"aifx\.toml:2: project\.name"):
        load_config(find_project(tmp_path), ())


def test_ordinary_names_are_accepted(tmp_path: Path) -> None:
    made = scaffold(tmp_path / "Größe 日本", "language-model", data={}, ask=False)
    assert 'name = "Größe 日本"' in (made.project / "aifx.toml").read_text()


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A template whose messages and names of files attack."""
    folder = tmp_path / "template"
    folder.mkdir()
    messages = '_message_before_copy: "before \\e[2J\\x9b1m"\n_message_after_copy: "after\\e]0;x\\a"\n'
    (folder / "copier.yml").write_text(messages + "q: {type: str, default: x}\n")
    (folder / "n\x1b[31m\x9bame.txt").write_text("whole")
    return folder


def test_a_template_steers_no_terminal(tmp_path: Path, template: Path) -> None:
    done = inprocess.run(["init", "made", "--yes", "--template", str(template)], tmp_path, os.environ)
    assert done.returncode == 0
    assert "before" in done.stderr
    assert "after" in done.stderr
    assert not {"\x1b", "\x9b", "\x07"}.intersection(done.stdout + done.stderr)


@pytest.mark.parametrize("gone", ["at once", "after a line"])
def test_a_project_is_made_whole_though_its_reader_is_gone(tmp_path: Path, template: Path, gone: str) -> None:
    """As with `aifx init ... 2>&1 | head -1`."""
    command = [sys.executable, "-m", "aifx.commands.main", "init", "made", "--yes", "--template", str(template)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    if gone == "after a line":
        process.stdout.readline()
    process.stdout.close()
    assert process.wait(500) == 0
    assert [path.read_text() for path in (tmp_path / "made").iterdir()] == ["whole"]
