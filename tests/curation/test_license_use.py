"""Licences that a project does not allow, or that exclude each other, where their sources come together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import inprocess
import pytest
from adding import environ_of

import aifx
from aifx.core.errors import ConfigError, DataError
from aifx.core.project import Project
from aifx.kinds import load_config

LICENSES = {"ours": "BSD-3-Clause", "kernel": "GPL-2.0-only", "tools": "GPL-3.0-only"}
CONFLICT = "GPL-2.0-only (kernel@"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data sets under BSD-3-Clause, GPL-2.0-only and GPL-3.0-only, and one with files of the latter two."""
    (tmp_path / "aifx.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    for name, license in LICENSES.items():
        (tmp_path / f"{name}.txt").write_text(f"a text of {name}")
        aifx.data_add(name, f"{name}.txt", license=license)
        aifx.data_add("code", f"{name}.txt", license=license)
    return tmp_path


def configure(project: Path, text: str) -> None:
    (project / "aifx.toml").write_text(f"[datasets]\n{text}\n")


def document(project: Path, *args: str, code: int = 0) -> Any:
    """What a command prints with --json, which is checked with its schema."""
    done = inprocess.run([*args, "--json"], project, environ_of(project))
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def check_conflict(conflict: Any, kernel: str = "kernel", tools: str = "tools") -> None:
    """Assert that a document's conflict is the one between two sources."""
    one, other = conflict["licenses"]
    assert (one["license"], one["num_sources"]) == ("GPL-2.0-only", 1)
    assert (other["license"], other["num_sources"]) == ("GPL-3.0-only", 1)
    for licensed, name, file in ((one, kernel, "kernel"), (other, tools, "tools")):
        (source,) = licensed["sources"]
        assert source.startswith(f"{name}@")
        assert source.endswith(f": {file}.txt")
    assert "version 2 of the GPL alone" in conflict["why"]
    assert conflict["url"] == "https://www.gnu.org/licenses/gpl-faq.html#AllCompatibility"


@pytest.mark.slow
def test_documents_have_the_conflicts(project: Path) -> None:
    mix = ("ours:1", "kernel:1", "tools:1")
    assert document(project, "data", "mix", "fine", "ours:1", "kernel:1")["license_conflicts"] == []
    for _ in range(2):  # also if the version is there already
        (found,) = document(project, "data", "mix", "blend", *mix)["license_conflicts"]
        check_conflict(found)
    (project / "recipe.toml").write_text(f"[blend]\nsteps = [{{ mix = {{ sets = {json.dumps(mix)} }} }}]\n")
    (step,) = document(project, "data", "make")["data_sets"][0]["steps"]
    (found,) = step["license_conflicts"]
    check_conflict(found)
    for name in ("kernel", "tools"):
        (project / f"{name}.csv").write_text("id,time,rate\n1,2026-01-01,2\n")
        added = ("data", "add", f"{name}-rows", f"{name}.csv", "--kind", "table", "--license", LICENSES[name])
        document(project, *added)
    join = ("data", "join", "kernel-rows", "tools-rows", "--key", "id", "--asof", "time")
    (found,) = document(project, *join)["license_conflicts"]
    assert [one["license"] for one in found["licenses"]] == ["GPL-2.0-only", "GPL-3.0-only"]


@pytest.mark.slow
def test_documents_have_what_is_refused(project: Path) -> None:
    mix = ("ours:1", "kernel:1", "tools:1")
    (project / "recipe.toml").write_text(f"[blend]\nsteps = [{{ mix = {{ sets = {json.dumps(mix)} }} }}]\n")
    push = ("push", "code", "postgresql://writer@127.0.0.1:1/shop/code")
    configure(project, 'license_conflicts = "refuse"')
    for args in (("mix", "blend", *mix), ("make",), push):
        (found,) = document(project, "data", *args, code=2)["error"]["license_conflicts"]
        check_conflict(found, *(("code", "code") if args is push else ()))
    assert "license_conflicts" not in document(project, "data", "mix", "blend", "none:1", code=2)["error"]

    configure(project, 'license_allow = ["BSD-3-Clause"]')
    for args in (("mix", "blend", *mix), ("make",), push):
        error = document(project, "data", *args, code=2)["error"]
        assert error["what"].endswith("is not allowed, nor GPL-3.0-only")
        found = error["license_conflicts"]
        assert [[one["license"] for one in each["licenses"]] for each in found] == [["GPL-2.0-only"], ["GPL-3.0-only"]]
        assert {(each["why"], each["url"]) for each in found} == {("datasets.license_allow has BSD-3-Clause", None)}
    error = document(project, "data", "add", "more", "ours.txt", "--license", "MIT", code=2)["error"]
    (licensed,) = error["license_conflicts"][0]["licenses"]
    assert licensed == {"license": "MIT", "num_sources": 1, "sources": ["the files for more"]}


def test_a_mix_names_the_sources_whose_licences_exclude_each_other(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    aifx.data_mix("fine", "ours:1", "kernel:1")
    assert "exclude" not in caplog.text
    aifx.data_mix("blend", "ours:1", "kernel:1", "tools:1")
    (warning,) = [record.message for record in caplog.records if "exclude" in record.message]
    assert warning.startswith("licences of the mix blend exclude each other: ")
    for part in (CONFLICT, "kernel.txt)", "GPL-3.0-only (tools@", "tools.txt)", "https://www.gnu.org/licenses/"):
        assert part in warning
    assert "ours" not in warning

    configure(project, 'license_conflicts = "refuse"')
    with pytest.raises(DataError) as refused:
        aifx.data_mix("other", "ours:1", "kernel:1", "tools:1")
    assert CONFLICT in refused.value.what
    assert "https://www.gnu.org" in refused.value.why
    assert "corrects a wrong licence" in refused.value.hint
    assert not (project / "datasets/other").exists()
    with pytest.raises(DataError, match="exclude each other"):
        aifx.data_mix("other", "ours:1", "kernel:1", "tools:1", root="datasets")


def test_what_is_not_allowed_is_refused_where_it_is_added_and_where_it_is_mixed(project: Path) -> None:
    configure(project, 'license_allow = ["BSD-3-Clause", "GPL-3.0-only"]')
    aifx.data_mix("fine", "ours:1", "tools:1")
    with pytest.raises(DataError, match=r"licence GPL-2\.0-only of kernel@\w+: kernel\.txt is not allowed"):
        aifx.data_mix("blend", "ours:1", "kernel:1")
    for license in ("unknown", "MIT"):
        with pytest.raises(DataError, match=f"licence {license} of the files for more is not allowed"):
            aifx.data_add("more", "ours.txt", license=license)
        with pytest.raises(DataError, match="is not allowed"):
            aifx.data_add_plan("more", "ours.txt", license=license)
    assert not (project / "datasets/more").exists()
    aifx.data_add("more", "ours.txt", license="MIT OR BSD-3-Clause")
    configure(project, 'license_allow = ["BSD"]')
    with pytest.raises(ConfigError, match="license_allow has 'BSD'"):
        aifx.data_add("more", "ours.txt", license="MIT")
    (project / "data").mkdir()
    (project / "data" / "a.txt").write_text("a text\n" * 100)
    with pytest.raises(ConfigError, match="license_allow has 'BSD'"):
        aifx.config_check()


@pytest.mark.slow
def test_a_recipe_moves_no_name_to_a_version_that_is_refused(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    add = '{ add = { sources = ["ours.txt"], license = "GPL-2.0-only" } }'
    (project / "recipe.toml").write_text(f"[code]\nsteps = [{add}, {{ dedupe = {{}} }}]\n")
    before = (project / "datasets/code/latest").read_text()
    configure(project, 'license_allow = ["MIT"]')
    for root in (None, str(project / "datasets")):
        with pytest.raises(DataError, match="is not allowed"):
            aifx.data_make(root=root)
    assert (project / "datasets/code/latest").read_text() == before
    configure(project, "")
    aifx.data_make()
    assert (project / "datasets/code/latest").read_text() != before
    caplog.clear()
    mix = '{ mix = { sets = ["ours:1", "kernel:1", "tools:1"] } }'
    (project / "recipe.toml").write_text(f"[blend]\nsteps = [{mix}]\n[other]\nsteps = [{add}]\n")
    aifx.data_make()
    assert caplog.text.count("exclude each other") == 1
    configure(project, 'license_conflicts = "refuse"')
    with pytest.raises(DataError, match=r"blend, step 1 \(mix\): licences of the mix blend exclude each other"):
        aifx.data_make_plan()


def test_a_push_says_so_before_it_connects(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = "postgresql://writer@127.0.0.1:1/shop/code"
    with pytest.raises(aifx.core.errors.EnvironmentFault):
        aifx.data_push("code", table)
    assert CONFLICT.replace("kernel@", "code@") in caplog.text
    configure(project, 'license_conflicts = "refuse"')
    with pytest.raises(DataError, match="exclude each other"):
        aifx.data_push("code", table)


def test_an_export_looks_at_the_data_of_its_run_and_of_those_before(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    references = {}
    for name in LICENSES:
        manifest = json.loads(next((project / "datasets" / name).glob("*/manifest.json")).read_text())
        references[name] = f"{name}@{manifest['digest']}"
    runs = {"base": ("kernel", None, None), "tuned": ("ours", "base", None), "fork": ("tools", None, "tuned")}
    for run, (name, base, origin) in runs.items():
        folder = project / "runs" / run
        folder.mkdir(parents=True)
        (folder / "config.toml").write_text(load_config(Project(project)).to_toml())
        finetuned = {"run": base} if base else None
        record = {"dataset": {"reference": references[name]}, "finetuned_from": finetuned, "forked_from": origin}
        (folder / "provenance.json").write_text(json.dumps(record))
    for run in ("tuned", "fork"):
        with pytest.raises(aifx.core.errors.CheckpointError):  # after the licences: nothing was trained
            aifx.export_model(project / "runs" / run, project / "exported")
        assert ("exclude each other" in caplog.text) == (run == "fork")
    configure(project, 'license_conflicts = "refuse"')
    with pytest.raises(DataError, match="licences of the data of run fork exclude each other"):
        aifx.export_model(project / "runs/fork", project / "exported")
    for folder in (project / "datasets/tools").glob("*/"):
        (folder / "manifest.json").unlink()
    with pytest.raises(aifx.core.errors.CheckpointError):
        aifx.export_model(project / "runs/fork", project / "exported")
    assert "the licences of tools@" in caplog.text


def test_config_check_and_training_refuse_them(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    (project / "aifx.toml").write_text('[data]\ndataset = "code"\n[datasets]\nlicense_conflicts = "refuse"\n')
    with pytest.raises(ConfigError, match=r"aifx\.toml:2: licences of code exclude each other"):
        aifx.config_check()
    with pytest.raises(DataError, match=r"licences of code@\w{12} exclude each other"):
        aifx.train()
    assert not list((project / "runs").glob("*/checkpoints/*"))
