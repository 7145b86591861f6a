"""The commands of `aifx registry` that change a registry: what --dry-run leaves alone, and what --request does once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import model_runs
import pytest
from registry_program import answer, content, run
from s3_server import s3_server

import aifx
from aifx.commands.registry.group import app
from aifx.core.artifact import DamagedArtifact
from aifx.core.stores import Store, open_store
from aifx.registry.acts import Caller, push
from aifx.registry.reports import verify_root
from aifx.registry.roots import Root
from aifx.registry.versions import write_version

ACTS = {
    "push": ("main", "spare"),
    "tag": ("fraud@v1", "team=risk"),
    "attest": ("fraud@v1", "aifx.toml"),
    "approve": ("fraud@v1", "production"),
    "promote": ("fraud@v1", "canary"),
    "rollback": ("fraud", "production"),
    "copy": ("fraud@v1", "other"),
    "rm": ("fraud@v1", "--yes"),
    "init": ("--policy", "policy.toml"),
}
ROOTS = ("registry", "other")
READS = {"ls", "show", "search", "diff", "pull", "history", "at", "head", "verify", "policy", "keygen"}
"""The commands that change no registry."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose fraud@production means v2, and meant v1 before."""
    folder = tmp_path_factory.mktemp("made") / "project"
    project = model_runs.make_project(folder, model_runs.TABLE)
    for name, width in (("main", 8), ("wide", 16)):
        model_runs.make_run(project, f"model.embed_dim={width}", name=name)
    (folder / "policy.toml").write_text("[aliases.production]\neval = {}\n")
    for name, version in (("main", "v1"), ("wide", "v2")):
        answer(folder, "push", name, "fraud")
        answer(folder, "promote", f"fraud@{version}", "production")
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(made, tmp_path / "project")
    return tmp_path / "project"


def test_each_command_that_changes_a_registry_is_tried_and_done_once(folder: Path) -> None:
    assert {command.callback.__name__ for command in app.registered_commands if command.callback} == {*ACTS} | READS


@pytest.mark.parametrize("name", ACTS)
def test_an_act_is_tried_and_done_once(folder: Path, name: str) -> None:
    act, actor = (name, *ACTS[name]), {"AIFX_ACTOR": "bob"}
    before = content(folder, *ROOTS)
    tried = answer(folder, *act, "--dry-run", "--reason", "a test", **actor)
    assert (tried["dry_run"], tried["entry"]) == (True, None)
    assert "(not done: --dry-run)" in run(folder, *act, "--dry-run", **actor).stdout
    assert content(folder, *ROOTS) == before
    done = answer(folder, *act, "--request", "job-1", "--reason", "a test", **actor)
    assert (done["dry_run"], done["is_repeated"]) == (False, False)
    after = content(folder, *ROOTS)
    assert after != before
    again = answer(folder, *act, "--request", "job-1", "--dry-run", **actor)
    assert again["entry"] == done["entry"]
    again = answer(folder, *act, "--request", "job-1", **actor)
    assert again == {**done, "is_repeated": True}
    assert content(folder, *ROOTS) == after
    if name == "init":
        assert done["entry"]["reason"] == "a test"
        answer(folder, "init", "--policy", "aifx.toml", code=2)
        (folder / "policy.toml").write_text("")
        answer(folder, *act, "--request", "job-2")
        answer(folder, *act, "--request", "job-1", code=2)  # the file is another one
        assert answer(folder, "init", "--request", "job-1") == again
    else:
        assert b'"reason": "a test"' in b"".join(after.values()).replace(b'":"', b'": "')


def test_what_the_settings_or_the_line_of_a_project_name_stays(folder: Path) -> None:
    settings, line = folder / "aifx.toml", folder / "line.toml"
    before, digest = settings.read_text(), answer(folder, "show", "fraud@v1")["version"]["digest"]
    for name in ("v1", digest[:12]):
        settings.write_text(f'{before}\n[finetune]\nbase = "fraud@{name}"\n')
        assert "aifx.toml refers to it" in run(folder, "rm", "fraud@v1", "--yes").stderr
    settings.write_text(f'# once fraud@v1\n{before}\n[finetune]\nbase = "fraud@v10"\n')
    line.write_text('[[station]]\nname = "judge"\nrun = "aifx eval --run main --against fraud@v1"\n')
    assert "line.toml refers to it" in run(folder, "rm", "fraud@v1", "--yes").stderr
    assert run(folder, "copy", "fraud@v2", "other").stdout.startswith("fraud@v2 is in other as fraud@v1: ")
    answer(folder, "rm", "fraud@v1", "--yes", "--root", "other")  # the names are of the project's registry
    line.write_text("[[station")
    assert "could not read" in run(folder, "rm", "fraud@v1", "--yes").stderr
    line.unlink()
    answer(folder, "rm", "fraud@v1", "--yes")


def test_hints_name_the_root_that_was_given(folder: Path) -> None:
    answer(folder, "copy", "fraud@v2", "other")
    answer(folder, "init", "--policy", "policy.toml", "--root", "other")
    (finding,) = answer(folder, "promote", "fraud@v1", "production", "--root", "other", code=1)["findings"]
    first, second = finding["hint"].split(", and: ")
    assert first == f"AIFX_REGISTRY__ROOT={folder / 'other'} aifx eval --model fraud@v1 --json > report.json"
    assert second == "aifx registry attest --root other fraud@v1 report.json --eval"
    assert "hint: aifx registry show --root other fraud\n" in run(folder, "show", "fraud@v9", "--root", "other").stderr
    asked = run(folder, "rm", "fraud@v1", "--root", "other").stderr
    assert "hint: aifx registry rm --root other fraud@v1 --yes\n" in asked


def test_pages_of_a_model_fit_80_columns(folder: Path) -> None:
    long = "answers are late " * 9
    act = ("rollback", "fraud", "production", "--reason", long)
    answer(folder, *act, AIFX_ACTOR=f"{'ann' * 10}@{'host' * 9}")
    for page in (("at", "fraud", "production"), ("show", "fraud@v1")):
        lines = run(folder, *page).stdout.splitlines()
        assert max(map(len, lines)) <= 80, lines
        assert f"digest  {version(folder)}" in lines
    assert " ".join(run(folder, "at", "fraud", "production").stdout.split()).endswith(f"reason {long.strip()}")


def test_a_version_that_is_promoted_already_is_judged_again(folder: Path) -> None:
    for act in (("promote", "fraud@v2", "production"), ("rollback", "fraud", "production", "--to", "v2")):
        assert run(folder, *act).stdout == "fraud@production already means v2\n"
    answer(folder, "init", "--policy", "policy.toml")
    assert run(folder, "promote", "fraud@v2", "production").stdout.endswith("@production stays v2: it is refused\n")
    entries = answer(folder, "history", "fraud")["entries"][-3:]
    assert [entry["action"] for entry in entries] == ["promote", "rollback", "refuse"]
    assert answer(folder, "rollback", "fraud", "production")["reference"] == "fraud@v1"


def test_a_first_policy_is_tried(folder: Path) -> None:
    before = content(folder, *ROOTS)
    tried = answer(folder, "init", "--dry-run")
    assert (tried["dry_run"], tried["entry"], tried["is_open"]) == (True, None, True)
    assert content(folder, *ROOTS) == before
    assert answer(folder, "init")["text"] == tried["text"]
    assert answer(folder, "init", "--dry-run")["dry_run"]
    error = run(folder, "init", "--key", "ann.pem")
    assert (error.returncode, "--key requires --policy" in error.stderr) == (2, True)


def test_settings_of_another_size_are_not_read(folder: Path) -> None:
    """A remote store would send all of them."""
    (settings,) = (folder / "registry/models/fraud/versions").glob(f"{version(folder)[:12]}/config.toml")
    settings.write_bytes(settings.read_bytes() * 2)
    read = mock.patch.object(Store, "read", autospec=True, side_effect=Store.read)
    with read as calls, pytest.raises(DamagedArtifact, match=r"config\.toml has .* bytes and had"):
        aifx.registry_diff("fraud@v1", "fraud@v2", project=folder)
    assert "config.toml" not in [call.args[1] for call in calls.call_args_list]


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_push_writes_damaged_files_again(folder: Path) -> None:
    before = content(folder, *ROOTS)
    (weights,) = (folder / "registry/models/fraud/versions").glob(f"{version(folder)[:12]}/weights.safetensors")
    for damage in (lambda: weights.write_bytes(flip(weights.read_bytes())), weights.unlink):
        damage()
        assert len(answer(folder, "verify", code=1)["problems"]) == 1
        tried = run(folder, "push", "main", "fraud", "--dry-run")
        assert "damaged: weights.safetensors" in tried.stdout
        assert content(folder, *ROOTS) != before
        done = answer(folder, "push", "main", "fraud")
        assert (done["reference"], done["entry"], len(done["repaired"])) == ("fraud@v1", None, 1)
        assert content(folder, *ROOTS) == before
        assert answer(folder, "verify")["problems"] == []
    assert answer(folder, "push", "main", "fraud")["repaired"] == []


def version(folder: Path) -> str:
    digest: str = answer(folder, "show", "fraud@v1")["version"]["digest"]
    return digest


@pytest.mark.slow
def test_a_push_writes_damaged_files_of_a_store_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = model_runs.Project(folder)
    main = project.run("main")
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))

    with s3_server(monkeypatch) as files:
        root = Root(open_store("s3://bucket/models"))

        def push_main() -> tuple[str, ...]:
            write = lambda place: write_version(main, project, 1, place)  # noqa: E731
            return push(root, "fraud", write, {}, Caller("ann")).repaired

        assert push_main() == ()
        path = f"{root.version_store(root.state('fraud'), root.find('fraud@v1')[1].digest).path}/weights.safetensors"
        whole = files.cat_file(path)
        for damage in (lambda: files.pipe_file(path, flip(whole)), lambda: files.rm(path)):
            damage()
            files.invalidate_cache()
            assert len(verify_root(root, (), ()).problems) == 1
            assert len(push_main()) == 1
            assert files.cat_file(path) == whole
            assert verify_root(root, (), ()).problems == ()
        assert push_main() == ()
