"""`aifx data gc --versions` deletes what nothing refers to, and leases of other projects keep what these use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import inprocess
import pytest
from s3_server import s3_server
from toy_steps import Rows, WithoutLetter

import aifx
from aifx.core.errors import AifxError, DataError
from aifx.core.project import Project
from aifx.curation.compact import Compact
from aifx.curation.execution import execute
from aifx.curation.leases import LEASES, Use, leased_uses, renew_lease
from aifx.curation.step import Limits
from aifx.curation.unused import find_unused
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.manifest import Version

LIMITS = Limits(1 << 30, 1)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "aifx.toml").write_text('[datasets]\nroot = "../shared"\n')
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project", "../shared")


@pytest.fixture
def catalog(project: Project) -> Catalog:
    return open_catalog(str(project.root.parent / "shared"))


@pytest.fixture
def versions(catalog: Catalog) -> dict[str, Version]:
    """Rows, three versions made of them, one of these of another one, and the latest."""
    rows = execute(Rows((), (("a cat", "a dog"), ("an ox",))), "pets", catalog, LIMITS).version
    found = {"rows": rows}
    for letter in "cgx":
        found[letter] = execute(WithoutLetter((rows,), letter), "pets", catalog, LIMITS).version
    found["cg"] = execute(WithoutLetter((found["c"],), "g"), "pets", catalog, LIMITS).version
    found["latest"] = execute(Rows((), (("a bird",),)), "pets", catalog, LIMITS).version
    return found


def train_on(project: Project, version: Version, name: str = "main") -> None:
    run = project.run(name)
    run.path.mkdir(parents=True)
    run.config.write_text("")
    run.provenance.write_text(json.dumps({"dataset": {"reference": version.manifest.whole_reference}}))


def gc(*options: str) -> tuple[dict[str, str], dict[str, str]]:
    """The deleted and the kept versions, with the reasons."""
    done = inprocess.run(["data", "gc", "--versions", "--older-than", "0", "--json", *options], Path.cwd(), {})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    named = [{"@".join(one["path"].split("/")[-2:]): one["kept"] for one in found[key]} for key in ("deleted", "kept")]
    return named[0], named[1]


def test_a_version_stays_if_something_names_it_or_was_made_of_it(
    catalog: Catalog, versions: dict[str, Version], project: Project
) -> None:
    train_on(project, versions["cg"])
    (project.root / "recipe.toml").write_text(
        f'[mixed]\nsteps = [{{ mix = {{ sets = ["{versions["g"].reference}:1", "other:2"] }} }}]\n'
    )
    deleted, kept = gc("--dry-run")
    assert not (project.runs_path / ".leases.json").exists()
    assert gc("--yes") == (deleted, kept)
    assert deleted == {versions["x"].reference: ""}
    assert kept == {
        versions["cg"].reference: "run main",
        versions["g"].reference: "recipe.toml",
        versions["c"].reference: f"{versions['cg'].reference} was made from it",
        versions["rows"].reference: kept[versions["rows"].reference],
    }
    assert len(catalog.versions("pets")) == 5
    lineage = aifx.data_lineage(versions["cg"].reference)
    assert [one.is_deleted for one in lineage.versions] == [False, False, False]
    shutil.rmtree(project.run("main").path)
    (project.root / "recipe.toml").unlink()
    assert gc("--yes")[1] == {}
    assert catalog.versions("pets") == [versions["latest"].manifest.version]
    assert inprocess.run(["data", "verify", "--all"], Path.cwd(), {}).returncode == 0


def test_young_versions_stay(catalog: Catalog, versions: dict[str, Version]) -> None:
    found = find_unused(catalog, [], days=1)
    assert {one.kept for one in found} == {"it was made less than 1 days ago"}
    for path in (catalog.local / ".lineage").rglob("*.json"):  # type: ignore[operator]
        path.unlink()
    assert {one.kept for one in find_unused(catalog, [], days=0)} == {"no event says when it was made"}


def test_the_parent_of_a_compacted_version_may_go(catalog: Catalog, versions: dict[str, Version]) -> None:
    made = execute(Compact((versions["cg"],)), "pets", catalog, LIMITS).version
    deleted, kept = gc("--yes")
    assert (set(kept), len(deleted)) == (set(), 6)
    assert catalog.versions("pets") == [made.manifest.version]
    assert inprocess.run(["data", "verify", "pets"], Path.cwd(), {}).returncode == 0


def test_leases_of_other_projects_are_respected(
    catalog: Catalog, versions: dict[str, Version], project: Project, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Project(tmp_path / "other")
    renew_lease(catalog, other, [Use(versions["x"].manifest.whole_reference, "run first")])
    train_on(project, versions["c"])
    deleted, kept = gc("--yes")
    assert set(deleted) == {versions["g"].reference, versions["cg"].reference}
    assert f"{tmp_path}/other, until 2" in kept[versions["x"].reference]
    assert kept[versions["x"].reference].startswith("run first of ")
    assert len(catalog.store.files(LEASES)) == 2, "gc renews the lease of its own project"
    assert {use.who.partition(" of ")[0] for use in leased_uses(catalog)} == {"run first", "run main"}

    (lease,) = (path for path in (tmp_path / "shared" / LEASES).iterdir() if "run first" in path.read_text())
    document = json.loads(lease.read_text())
    lease.write_text(json.dumps({**document, "ends": "2020-01-01T00:00:00+00:00"}))
    assert set(gc("--yes")[0]) == {versions["x"].reference}
    lease.write_text("{")
    with pytest.raises(DataError, match=f"{LEASES}/{lease.name} is damaged"):
        list(leased_uses(catalog))


def test_a_copy_of_a_project_gets_a_lease_of_its_own(
    catalog: Catalog, versions: dict[str, Version], tmp_path: Path
) -> None:
    uses = [Use(version.manifest.whole_reference, name) for name, version in versions.items()]
    first, copy = (Project(tmp_path / name) for name in ("first", "copy"))
    first.root.mkdir()
    for use in uses[:2]:
        renew_lease(catalog, first, [use])
    assert [use.reference for use in leased_uses(catalog)] == [uses[1].reference], "one file per project"
    shutil.copytree(first.root, copy.root)
    renew_lease(catalog, copy, [uses[2]])
    for use in uses[3:5]:
        renew_lease(catalog, first, [use])
    assert {use.reference for use in leased_uses(catalog)} == {uses[2].reference, uses[4].reference}
    assert len(catalog.store.files(LEASES)) == 2


def test_a_root_of_the_project_has_no_lease(tmp_path: Path) -> None:
    inside = open_catalog(str(tmp_path / "datasets"))
    renew_lease(inside, Project(tmp_path), [Use("pets@" + "0" * 64, "run main")])
    assert not (tmp_path / "datasets").exists()


@pytest.mark.slow
def test_a_bucket(versions: dict[str, Version], monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    with s3_server(monkeypatch):
        remote = open_catalog("s3://bucket/shared")
        for version in versions.values():
            execute_copy(remote, version)
        train_on(project, versions["c"])
        config = project.root / "aifx.toml"
        config.write_text('[datasets]\nroot = "s3://bucket/shared"\n')
        deleted, kept = gc("--yes")
        assert set(kept) == {versions["c"].reference, versions["rows"].reference}
        assert len(deleted) == 3
        assert len(remote.versions("pets")) == 3
        assert len(remote.store.files(LEASES)) == 1


def execute_copy(remote: Catalog, version: Version) -> None:
    """Make the version again in another root."""
    parents = tuple(remote.open(parent) for parent in version.manifest.parents)
    settings = version.manifest.step.settings
    if version.manifest.step.name == "rows":
        execute(Rows(parents, tuple(map(tuple, settings["texts"]))), "pets", remote, LIMITS)
    else:
        execute(WithoutLetter(parents, settings["letter"]), "pets", remote, LIMITS)


def test_a_training_and_a_recipe_renew_the_lease(
    catalog: Catalog, versions: dict[str, Version], project: Project
) -> None:
    reference = versions["c"].reference
    (project.root / "recipe.toml").write_text(
        f'[mixed]\nsteps = [{{ mix = {{ sets = ["{reference}:1", "{versions["g"].reference}:2"] }} }}]\n'
    )
    aifx.data_make()
    assert {use.reference for use in leased_uses(catalog)} == {
        versions[name].manifest.whole_reference for name in ("c", "g")
    }
    (project.root / "recipe.toml").unlink()
    with pytest.raises(AifxError):  # its rows are few
        aifx.train(run="tiny", settings={"data.dataset": reference, "data.kind": "text"})
    (use,) = leased_uses(catalog)
    assert (use.reference, use.who.partition(" of ")[0]) == (versions["c"].manifest.whole_reference, "run tiny")
