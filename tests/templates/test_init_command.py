"""`aifx init` as a person meets it on a terminal, and as a script does."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import inprocess
import pytest

PROGRAM = [sys.executable, "-c", "import sys; from aifx.commands.main import run; sys.exit(run(sys.argv[1:]))"]
# The terminal becomes the process's own, so that Ctrl-C reaches it.
TAKE = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
AT_TERMINAL = [sys.executable, "-c", TAKE + PROGRAM[-1]]
TIMEOUT_S = 120


def aifx(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return inprocess.run(args, cwd, os.environ)


class Person:
    """Someone at a terminal who answers when asked."""

    def __init__(self, cwd: Path, *args: str) -> None:
        self.master, slave = pty.openpty()
        environ = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        self.process = subprocess.Popen(
            [*AT_TERMINAL, *args],
            cwd=cwd,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environ,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = ""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{self.seen}"
            self.read()

    def read(self) -> bool:
        if not select.select([self.master], [], [], 0.2)[0]:
            return True
        try:
            got = os.read(self.master, 65536)
        except OSError:  # the terminal's other end is closed
            return False
        self.seen += got.decode(errors="replace")
        if b"\x1b[6n" in got:  # where is the cursor? a terminal answers
            os.write(self.master, b"\x1b[1;1R")
        return bool(got)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        deadline = time.monotonic() + TIMEOUT_S
        while self.read() and time.monotonic() < deadline:
            pass
        code = self.process.wait(timeout=TIMEOUT_S)
        os.close(self.master)
        return code


def test_questions_on_a_terminal(tmp_path: Path) -> None:
    person = Person(tmp_path, "init", "pequod")
    person.wait_for("Which template?")
    person.type("language-model\n")
    person.wait_for("What is the project called?")
    person.type("-2\r")
    person.wait_for("What is it for, in one line?")
    person.type("\r")
    person.wait_for("Which experiment tracker")
    person.type("\r")
    person.wait_for("aifx train")
    assert person.end() == 0
    text = (tmp_path / "pequod/aifx.toml").read_text()
    assert 'name = "pequod-2"' in text
    assert "Moby-Dick" in text


@pytest.mark.slow
def test_an_answer_that_is_given_is_not_asked(tmp_path: Path) -> None:
    person = Person(tmp_path, "init", "a", "-t", "vision-inspection", "-a", "project_name=b", "-a", "tracker=none")
    person.wait_for("What is it for, in one line?")
    assert "called" not in person.seen
    person.type("\r")
    assert person.end() == 0


def test_control_c_at_a_question_leaves_nothing(tmp_path: Path) -> None:
    person = Person(tmp_path, "init", "pequod", "--template", "language-model")
    person.wait_for("What is the project called?")
    person.type("\x03")
    assert person.end() == 130
    assert "Traceback" not in person.seen
    assert not list(tmp_path.iterdir())


def test_for_scripts(tmp_path: Path) -> None:
    made = aifx(tmp_path, "init", "a b", "--json")
    assert made.returncode == 0, made.stderr
    document = json.loads(made.stdout)
    assert document["schema_version"] == 1
    assert document["project"] == str(tmp_path / "a b")
    assert document["template"] == "language-model"
    assert "ci/gate.sh" in document["files"]
    assert document["set_beside"] == []
    assert document["next"] == ["cd 'a b'", "sh data/prepare.sh", "aifx train", "aifx eval"]
    listed = json.loads(aifx(tmp_path, "init", "--list", "--json").stdout)
    names = ["custom-task", "fine-tune", "language-model", "series", "tabular", "vision-inspection"]
    assert [t["name"] for t in listed["templates"]] == names


def test_without_a_folder_the_working_directory_is_it(tmp_path: Path) -> None:
    made = aifx(tmp_path, "init", "--yes")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "aifx.toml").is_file()
    assert "cd" not in made.stdout.split()
    again = aifx(tmp_path, "init", "--yes")
    assert again.returncode == 2
    assert "not empty" in again.stderr
    assert "--force" in again.stderr
    forced = aifx(tmp_path, "init", "--yes", "--force")
    assert forced.returncode == 0, forced.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["x", "--template", "vision-inspektion"], ["vision-inspection"]),
        (["x", "--answer", "trakcer=none"], ["tracker"]),
        (["x", "--answer", "tracker"], ["KEY=VALUE"]),
        (["x", "--tmplate", "y"], ["--template"]),
    ],
)
def test_mistakes(tmp_path: Path, args: list[str], words: list[str]) -> None:
    failed = aifx(tmp_path, "init", *args)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert "hint:" in failed.stderr
    for word in words:
        assert word in failed.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["custom-task", "fine-tune", "language-model", "series", "tabular", "vision-inspection"]
)
def test_the_configuration_of_a_template_is_valid(tmp_path: Path, name: str) -> None:
    assert aifx(tmp_path, "init", "p", "-t", name, "-a", "tracker=mlflow").returncode == 0
    checked = aifx(tmp_path / "p", "config", "check", "--json")
    if name == "fine-tune":  # tests/templates/test_fine_tune_template.py
        assert checked.returncode == 2
        assert json.loads(checked.stdout)["error"]["hint"] == "aifx train --config base.toml --run base"
    else:
        assert checked.returncode == 0, checked.stderr
    config = json.loads(aifx(tmp_path / "p", "config", "show", "--json").stdout)["config"]
    assert config["log"]["trackers"] == ["mlflow"]
    assert config["eval"]["gates"]


def test_a_place_where_no_project_can_be_is_no_bug(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, word in (("file/project", "file is a file"), ("/proc/project", "/proc")):
        made = aifx(tmp_path, "init", folder, "--yes")
        assert made.returncode == 2, made.stderr
        assert word in made.stderr
        assert "hint: " in made.stderr
