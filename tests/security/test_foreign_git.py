"""Attacks by git: programs that the configuration of a template's or a project's repository names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from aifx.core.errors import UsageError
from aifx.core.files import UnsafeFile
from aifx.runs.provenance import git_state
from aifx.scaffold.projects import Scaffolded, scaffold

END_S = 120.0
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that a program writes which should not have run."""
    return tmp_path / "ran"


@pytest.fixture
def program(tmp_path: Path, marker: Path) -> Path:
    """A program that passes its input on, as a filter does, and leaves the marker."""
    path = tmp_path / "program"
    path.write_text(f'#!/bin/sh\necho "$@" >> {marker}\ncat\n')
    path.chmod(0o755)
    return path


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(
        ["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, stdin=subprocess.DEVNULL
    )


def make_repository(folder: Path) -> Path:
    """A repository with a commit and a file that differs from it."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q", "-b", "main")
    (folder / "copier.yml").write_text("ship:\n  default: Pequod\n")
    (folder / "ship.txt.jinja").write_text("{{ ship }}\n")
    (folder / ".gitattributes").write_text("* filter=a.b=c\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    (folder / "ship.txt.jinja").write_text("{{ ship }}!\n")
    return folder


def arm(folder: Path, program: Path) -> None:
    """Have the repository run `program` wherever git lets it."""
    for key in ("core.fsmonitor", "filter.a.b=c.clean", "filter.a.b=c.smudge", "core.alternateRefsCommand"):
        git(folder, "config", key, str(program))
    hooks = folder / "hooks" if (folder / "HEAD").exists() else folder / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for hook in ("post-checkout", "post-index-change", "pre-commit", "reference-transaction", "fsmonitor-watchman"):
        shutil.copy(program, hooks / hook)


def make(destination: Path, template: Path | str, **options: object) -> Scaffolded:
    return scaffold(destination, str(template), **({"data": {}, "ask": False} | options))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COPIER_CACHE_DIR", str(tmp_path / "mirrors"))


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_local_template_runs_nothing(tmp_path: Path, marker: Path, program: Path, dry_run: bool) -> None:
    template = make_repository(tmp_path / "template")
    arm(template, program)
    made = make(tmp_path / "made", template, dry_run=dry_run)
    assert "ship.txt" in made.files
    assert not marker.exists()
    git(template, "status")  # the attack is real
    assert marker.exists()


def test_a_refused_template_runs_nothing(tmp_path: Path, marker: Path, program: Path) -> None:
    template = make_repository(tmp_path / "template")
    (template / "copier.yml").write_text("_tasks:\n  - touch ran\n")
    arm(template, program)
    with pytest.raises(UsageError, match="refused"):
        make(tmp_path / "made", template)
    assert not marker.exists()


@pytest.mark.parametrize("spelling", ["{}", "git+{}"])
def test_a_folder_that_is_its_own_repository_runs_nothing(
    tmp_path: Path, marker: Path, program: Path, spelling: str
) -> None:
    make_repository(tmp_path / "source")
    template = tmp_path / "template.git"
    shutil.move(tmp_path / "source/.git", template)
    git(template, "config", "core.bare", "false")
    git(template, "config", "core.worktree", str(tmp_path / "source"))
    arm(template, program)
    marker.unlink(missing_ok=True)  # setting it up with git has run it
    make(tmp_path / "made", spelling.format(template))
    assert (tmp_path / "made/ship.txt").read_text() == "Pequod\n"
    assert not marker.exists()


def test_a_commit_of_a_local_template_runs_nothing(tmp_path: Path, marker: Path, program: Path) -> None:
    template = make_repository(tmp_path / "template")
    arm(template, program)
    make(tmp_path / "made", template, vcs_ref="main")
    assert (tmp_path / "made/ship.txt").read_text() == "Pequod\n"
    assert not marker.exists()


@pytest.mark.parametrize("name", [".git", ".GIT", "sub/.git", ".git ", "GIT~1"])
def test_a_template_places_no_git_folder(tmp_path: Path, name: str) -> None:
    template = tmp_path / "template"
    spelled = Path(name).parent / f"{{{{ '{Path(name).name}' }}}}"  # so that it is one only once it is rendered
    (template / spelled).mkdir(parents=True)
    (template / "copier.yml").write_text("_exclude: [copier.yml]\nship:\n  default: Pequod\n")
    (template / spelled / "config").write_text("[core]\n\tfsmonitor = ./program\n")
    with pytest.raises(UsageError, match="refused") as caught:
        make(tmp_path / "made", template)
    assert "git" in caught.value.why.lower()
    assert not (tmp_path / "made").exists()


def test_a_template_places_no_bare_repository(tmp_path: Path) -> None:
    template = tmp_path / "template"
    (template / "data").mkdir(parents=True)
    (template / "copier.yml").write_text("ship:\n  default: Pequod\n")
    git(template / "data", "init", "-q", "--bare")
    for folder in ("objects", "refs"):
        (template / "data" / folder / "keep").touch()
    with pytest.raises(UsageError, match="refused"):
        make(tmp_path / "made", template)


@pytest.mark.parametrize("target", ["/etc/hostname", "../../secret", "inside/../../secret", "hop"])
def test_a_template_places_no_link_that_leaves_the_project(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").touch()
    template = tmp_path / "template"
    (template / "inside").mkdir(parents=True)
    (template / "copier.yml").write_text("_preserve_symlinks: true\nship:\n  default: Pequod\n")
    (template / "inside/file").touch()
    (template / "inside/link").symlink_to(target)
    (template / "inside/hop").symlink_to("../..")
    with pytest.raises(UsageError, match="refused") as caught:
        make(tmp_path / "made", template)
    assert "leaves the project" in caught.value.why


def test_a_template_reads_no_file_outside_of_itself(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    (tmp_path / "template").mkdir()
    (tmp_path / "template/copier.yml").write_text("ship:\n  default: Pequod\n")
    (tmp_path / "template/link").symlink_to("../secret")
    with pytest.raises(UsageError, match="refused") as caught:
        make(tmp_path / "made", tmp_path / "template")
    assert "leaves the template" in caught.value.why


def test_a_link_within_the_project_is_fine(tmp_path: Path) -> None:
    template = tmp_path / "template"
    (template / "inside").mkdir(parents=True)
    (template / "copier.yml").write_text("_preserve_symlinks: true\nship:\n  default: Pequod\n")
    (template / "file").write_text("x")
    (template / "inside/link").symlink_to("../file")
    make(tmp_path / "made", template)
    assert (tmp_path / "made/inside/link").read_text() == "x"


def test_nothing_lands_through_a_link_of_the_destination(tmp_path: Path) -> None:
    template = tmp_path / "template"
    (template / "ssh").mkdir(parents=True)
    (template / "copier.yml").write_text("ship:\n  default: Pequod\n")
    (template / "ssh/authorized_keys").write_text("x")
    (tmp_path / "home").mkdir()
    (tmp_path / "made").mkdir()
    (tmp_path / "made/ssh").symlink_to(tmp_path / "home")
    made = make(tmp_path / "made", template, force=True)
    assert made.files == ("ssh.new/authorized_keys",)
    assert list((tmp_path / "home").iterdir()) == []


def test_a_fifo_in_a_template_does_not_hang(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    (template / "copier.yml").write_text("ship:\n  default: Pequod\n")
    os.mkfifo(template / "pipe")
    with pytest.raises(UnsafeFile, match="pipe is a FIFO"):
        make(tmp_path / "made", template)


def test_provenance_runs_no_program_of_the_repository(tmp_path: Path, marker: Path, program: Path) -> None:
    project = make_repository(tmp_path / "project")
    arm(project, program)
    state = git_state(project, END_S)
    assert state is not None
    assert (state["branch"], state["dirty"]) == ("main", True)
    assert not marker.exists()
    git(project, "status")  # the attack is real
    assert marker.exists()


def test_provenance_runs_no_program_of_an_embedded_bare_repository(tmp_path: Path, marker: Path, program: Path) -> None:
    project = make_repository(tmp_path / "project")
    shutil.move(make_repository(tmp_path / "other") / ".git", project / "data")
    embedded = project / "data"
    git(embedded, "config", "core.bare", "false")
    git(embedded, "config", "core.worktree", str(tmp_path / "other"))
    arm(embedded, program)
    marker.unlink(missing_ok=True)
    assert git_state(embedded) is None  # a project in there
    assert not marker.exists()
    git(embedded, "status")  # the attack is real
    assert marker.exists()


def test_provenance_fetches_nothing(tmp_path: Path, marker: Path, program: Path) -> None:
    """A partial clone fetches objects that are missing, through a program that its configuration names."""
    project = make_repository(tmp_path / "project")
    for key, value in {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "origin",
        "remote.origin.url": str(tmp_path / "template"),
        "remote.origin.promisor": "true",
        "remote.origin.uploadpack": str(program),
        "protocol.allow": "always",
    }.items():
        git(project, "config", key, value)
    tree = subprocess.run(
        ["git", "-C", str(project), "rev-parse", "HEAD^{tree}"], check=True, capture_output=True, text=True
    ).stdout.strip()
    (project / ".git/objects" / tree[:2] / tree[2:]).unlink()
    state = git_state(project, END_S)
    assert state is not None
    assert state["dirty"] is None
    assert not marker.exists()


def test_settings_of_git_in_the_environment_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_repository(tmp_path / "project")
    for folder in (project, *project.rglob("*")):
        os.chown(folder, 12345, 12345)  # which git accepts only as safe.directory
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "safe.directory")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(project))
    assert (git_state(project, END_S) or {}).get("dirty") is True


test_settings_of_git_in_the_environment_stay = pytest.mark.skipif(os.geteuid() != 0, reason="only root can chown")(
    test_settings_of_git_in_the_environment_stay
)
