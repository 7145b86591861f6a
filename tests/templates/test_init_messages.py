"""Templates from elsewhere in `aifx init`: their messages, their required questions, --force."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aifx.commands.main import run

QUESTIONS = """\
owner:
  type: str
_message_before_copy: before
_message_after_copy: "after {{ owner }}"
"""


@pytest.fixture
def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "their template"
    folder.mkdir()
    (folder / "copier.yml").write_text(QUESTIONS)
    (folder / "notes.txt").write_text("notes")
    monkeypatch.chdir(tmp_path)
    return folder


def init(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    ended = run(["init", *args])
    out, err = capsys.readouterr()
    assert ended == code, err
    return out, err


@pytest.mark.parametrize("no_color", [True, False])
def test_only_the_messages_of_the_template_are_printed(
    template: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_color: bool
) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("NO_COLOR", "1" if no_color else "")
    out, err = init(capsys, "new", "--template", str(template), "--answer", "owner=me")
    assert err == "before\nafter me\n"
    assert "\x1b" not in out
    assert out.count("notes.txt") == 1
    out, err = init(capsys, "other", "--template", str(template), "--answer", "owner=me", "--json")
    assert err == "before\nafter me\n"
    assert json.loads(out)["schema_version"] == 1


def test_a_file_url_is_a_folder(template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(capsys, "new", "--template", template.as_uri(), "--answer", "owner=me")
    assert Path("new/notes.txt").read_text() == "notes"
    _, err = init(capsys, "more", "--template", "file:///nowhere/at-all", code=2)
    assert "no template at /nowhere/at-all" in err


def test_a_required_question_names_the_option_that_answers_it(
    template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, err = init(capsys, "new", "--template", str(template), "--yes", code=2)
    assert "needs an answer" in err
    assert "hint: --answer owner=VALUE" in err
    assert not Path("new").exists()


def test_force_reports_whether_anything_was_in_the_way(template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("new", "--template", str(template), "--answer", "owner=me", "--force")
    assert "no file" in init(capsys, *args)[1]
    out, err = init(capsys, *args)
    assert "already holds every file" in out
    Path("new/notes.txt").write_text("other notes")
    out, err = init(capsys, *args)
    assert "in the way" not in err
    assert "notes.txt.new" in out
