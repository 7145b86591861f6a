"""Scaffolding: where a project lands, what stays, and which templates are taken."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aifx.core.errors import AifxError, EnvironmentFault, UsageError
from aifx.scaffold import projects as scaffolding
from aifx.scaffold.projects import Scaffolded, bundled_templates, find_template, parse_answers, scaffold

TEMPLATES = ["custom-task", "fine-tune", "language-model", "series", "tabular", "vision-inspection"]
GIT = [
    *("git", "-c", "user.name=Ishmael", "-c", "user.email=ishmael@pequod.example"),
    *("-c", "commit.gpgsign=false", "-c", "tag.gpgsign=false", "-c", "init.defaultBranch=main"),
]


def write_template(folder: Path, questions: str = "ship:\n  default: Pequod\n", **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "copier.yml").write_text(questions)
    for name, content in (files or {"ship.txt.jinja": "{{ ship }} of {{ _folder_name }}"}).items():
        (folder / name).write_text(content)
    return folder


def make(destination: Path, template: Path | str, **options: object) -> Scaffolded:
    return scaffold(destination, str(template), **({"data": {}, "ask": False} | options))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", TEMPLATES)
def test_bundled_template(tmp_path: Path, name: str) -> None:
    made = make(tmp_path / "my-model", name)
    there = contents(tmp_path / "my-model")
    expected = {".dockerignore", ".gitignore", "Dockerfile", "README.md", "aifx.toml", "ci/gate.sh", "data/README.md"}
    assert expected < set(there)
    assert sorted(made.files) == sorted(there)
    assert not made.set_beside
    assert os.access(tmp_path / "my-model/ci/gate.sh", os.X_OK)
    assert all(os.access(tmp_path / "my-model" / f, os.W_OK) for f in there)
    assert b'name = "my-model"' in there["aifx.toml"]
    assert b"{{" not in b"".join(v for k, v in there.items() if not k.startswith("data/"))
    assert not any("copier" in f or f.endswith(".jinja") for f in there)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my-model"]  # nothing of the rendering is left


def test_the_data_is_whole_and_its_licence_is_beside_it(tmp_path: Path) -> None:
    make(tmp_path / "book", "language-model")
    make(tmp_path / "belt", "vision-inspection")
    for template in ("custom-task", "series"):
        make(tmp_path / template, template)
        assert len((tmp_path / template / "data/births.csv").read_text().splitlines()) == 7306
        assert "CC0" in (tmp_path / template / "data/README.md").read_text()
    assert (tmp_path / "book/data/moby_dick.txt").stat().st_size == 1_204_997
    assert "CC0" in (tmp_path / "book/data/README.md").read_text()
    notice = (tmp_path / "belt/data/README.md").read_text()
    assert "MIT" in notice
    assert "arXiv:1708.07747" in notice


def test_answers_reach_the_files_whatever_they_hold(tmp_path: Path) -> None:
    import tomli

    odd = "The \"Pequod\" \\ 🐋 <& 'whale'"
    make(tmp_path / "a", "language-model", data={"project_name": odd, "description": odd, "tracker": "tensorboard"})
    read = tomli.loads((tmp_path / "a/aifx.toml").read_text("utf-8"))
    assert read["project"] == {"name": odd, "description": odd}
    assert read["log"]["trackers"] == ["tensorboard"]


@pytest.mark.parametrize(
    ("data", "word"),
    [({"projct_name": "x"}, "project_name"), ({"tracker": "tensorbord"}, "tracker"), ({"project_name": " "}, "name"),
     ({"project_name": "a\nb"}, "one line")],
)  # fmt: skip
def test_answers_that_cannot_be(tmp_path: Path, data: dict[str, str], word: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(tmp_path / "a", "language-model", data=data)
    assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("pair", ["project_name", "=x", "1x=2", "a b=c"])
def test_an_answer_is_key_and_value(pair: str) -> None:
    with pytest.raises(UsageError):
        parse_answers([pair])
    assert parse_answers(["a=b=c", "d="]) == {"a": "b=c", "d": ""}


def test_every_bundled_template_has_a_summary_and_questions() -> None:
    templates = bundled_templates()
    assert [t.name for t in templates] == TEMPLATES
    assert all(20 < len(t.summary) < 70 and t.questions[0] == "project_name" for t in templates)


@pytest.mark.parametrize(
    ("name", "word"), [("langage-model", "language-model"), ("zzz", "vision-inspection"), ("./none", "no such folder")]
)
def test_a_template_that_is_not_there(name: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        find_template(name)


def test_a_folder_that_is_not_empty_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"notes\.txt"):
        make(tmp_path, "language-model")
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(UsageError, match="is a file"):
        make(tmp_path / "notes.txt", "language-model", force=True)


def test_force_keeps_what_is_there_and_lands_beside_it(tmp_path: Path) -> None:
    make(tmp_path / "fresh", "language-model")
    fresh = contents(tmp_path / "fresh")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("mine")
    (mine / "README.md.new").write_text("mine too")
    (mine / "ci").write_text("a file where a folder goes")
    shutil.copy(tmp_path / "fresh/.gitignore", mine)
    made = make(mine, "language-model", force=True, data={"project_name": "fresh"})
    there = contents(mine)
    assert there["README.md"] == b"mine"
    assert there["README.md.new"] == b"mine too"
    assert there["README.md.new2"] == fresh["README.md"]
    assert there["ci"] == b"a file where a folder goes"
    assert there["ci.new/gate.sh"] == fresh["ci/gate.sh"]
    assert there["data/moby_dick.txt"] == fresh["data/moby_dick.txt"]
    assert ".gitignore.new" not in there  # the same content needs no second copy
    assert made.set_beside == ("README.md.new2",)
    assert ".gitignore" not in made.files


def test_again_with_force_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path / "a", "vision-inspection")
    before = contents(tmp_path / "a")
    assert make(tmp_path / "a", "vision-inspection", force=True).files == ()
    assert contents(tmp_path / "a") == before


def test_an_empty_folder_and_a_new_repository_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", "language-model")
    (tmp_path / "cloned/.git").mkdir(parents=True)
    make(tmp_path / "cloned", "language-model")
    make(tmp_path / "deep/er/still", "language-model")
    assert contents(tmp_path / "empty").keys() == contents(tmp_path / "cloned").keys()
    assert contents(tmp_path / "deep/er/still").keys() == contents(tmp_path / "cloned").keys()


def test_a_dry_run_leaves_nothing(tmp_path: Path) -> None:
    made = make(tmp_path / "a", "language-model", dry_run=True)
    assert "aifx.toml" in made.files
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exists", [False, True])
def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    target = tmp_path / "a"
    if exists:
        target.mkdir()
    moved = 0
    rename = Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        nonlocal moved
        moved += 1
        if moved == (4 if exists else 1):
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(target, "language-model")
    assert list(tmp_path.rglob("*")) == ([target] if exists else [])


def test_an_interruption_right_after_a_folder_was_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    target.mkdir()
    mkdir = Path.mkdir

    def interrupted(self: Path, *args: object, **options: object) -> None:
        mkdir(self, *args, **options)  # type: ignore[arg-type]
        if self.parent == target:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(target, "language-model")
    assert list(tmp_path.rglob("*")) == [target]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(EnvironmentFault, match="cannot write"):
        make(tmp_path / "a", "language-model")


def test_bundled_templates_need_no_git(tmp_path: Path) -> None:
    """In a process of its own: copier's tools read PATH when they are imported."""
    code = "import sys; from aifx.commands.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "init", "a", "--template", "language-model", "--yes", "--json"]
    environ = {**os.environ, "PATH": str(tmp_path / "nothing-here")}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a/aifx.toml").is_file()


def test_links_of_an_editable_install_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import aifx.templates

    real = Path(aifx.templates.__path__[0])
    for path in real.rglob("*"):
        link = tmp_path / "linked" / path.relative_to(real)
        if path.is_file() and "__pycache__" not in path.parts:
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    monkeypatch.setattr(aifx.templates, "__path__", [str(tmp_path / "linked")])
    make(tmp_path / "a", "language-model")
    assert not any(p.is_symlink() for p in (tmp_path / "a").rglob("*"))
    assert (tmp_path / "a/data/moby_dick.txt").stat().st_size == 1_204_997


def test_a_template_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_template(tmp_path / "ours")
    monkeypatch.chdir(tmp_path)
    for number, spelling in enumerate((str(tmp_path / "ours"), "./ours", "ours")):
        made = make(tmp_path / f"p{number}", spelling, data={"ship": "Rachel"})
        assert made.files == ("ship.txt",)
        assert (tmp_path / f"p{number}/ship.txt").read_text() == f"Rachel of p{number}"


def test_a_template_in_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    monkeypatch.setenv("COPIER_CACHE_DIR", str(tmp_path / "mirrors"))
    repository = write_template(tmp_path / "theirs", **{"ship.txt.jinja": "first {{ ship }}"})
    subprocess.run([*GIT, "init", "-q"], cwd=repository, check=True)
    for version in ("v1.0", "v2.0"):
        (repository / "ship.txt.jinja").write_text(f"{version} {{{{ ship }}}}")
        subprocess.run([*GIT, "add", "."], cwd=repository, check=True)
        subprocess.run([*GIT, "commit", "-qm", version], cwd=repository, check=True)
        subprocess.run([*GIT, "tag", version], cwd=repository, check=True)
    url = f"git+file://{repository}"
    make(tmp_path / "latest", repository)
    make(tmp_path / "by-url", url)
    make(tmp_path / "pinned", url, vcs_ref="v1.0")
    assert (tmp_path / "latest/ship.txt").read_text() == "v2.0 Pequod"
    assert (tmp_path / "by-url/ship.txt").read_text() == "v2.0 Pequod"
    assert (tmp_path / "pinned/ship.txt").read_text() == "v1.0 Pequod"
    with pytest.raises(UsageError, match="v9"):
        make(tmp_path / "b", url, vcs_ref="v9")
    with pytest.raises(UsageError, match="cannot be"):
        make(tmp_path / "b", f"git+file://{tmp_path / 'nowhere'}")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "questions",
    ["_tasks:\n  - touch ran\n", "_jinja_extensions:\n  - jinja2.ext.do\n", "_tasks:\n  - command: [touch, ran]\n"],
)
def test_a_template_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, questions: str
) -> None:
    template = write_template(tmp_path / "theirs", questions)
    trusting = tmp_path / "settings.yml"
    trusting.write_text(f"trust:\n  - {template}\n")
    monkeypatch.setenv("COPIER_SETTINGS_PATH", str(trusting))  # trusted for copier is not trusted for us
    with pytest.raises(UsageError, match="refused") as caught:
        make(tmp_path / "a", template)
    assert "copier copy --trust" in caught.value.hint
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("questions", "files"),
    [
        ("ship:\n  default: [\n", {}),
        ("ship:\n  type: int\n  default: many\n", {}),
        ("ship:\n  type: whale\n  default: x\n", {}),
        ("ship:\n  type: str\n", {}),
        ("ship:\n  default: x\n", {"a.txt.jinja": "{% if %}"}),
        ("_min_copier_version: '999'\n", {}),
    ],
)
def test_a_broken_template_is_a_usage_error(tmp_path: Path, questions: str, files: dict[str, str]) -> None:
    template = write_template(tmp_path / "theirs", questions, **files)
    with pytest.raises(AifxError) as caught:
        make(tmp_path / "a", template)
    assert str(template) in caught.value.what
    assert caught.value.why
    assert not (tmp_path / "a").exists()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".aifx")]


def test_a_url_needs_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaffolding.shutil, "which", lambda *_, **__: None)
    with pytest.raises(EnvironmentFault, match="git is not installed"):
        find_template("https://example.org/a/template.git")
