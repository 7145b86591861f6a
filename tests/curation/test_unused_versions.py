"""`aifx data gc --versions` deletes what nothing refers to, and leases of other projects keep what these use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import inprocess
import pytest
from s3_server import s3_server
from toy_steps import Rows, WithoutLetter

import aifx
from aifx.core.errors import AifxError, DataError, EnvironmentFault
from aifx.core.project import Project
from aifx.core.stores import open_store
from aifx.curation.compact import Compact
from aifx.curation.execution import execute
from aifx.curation.leftovers import collect_garbage
from aifx.curation.mix import Mix
from aifx.curation.step import Limits
from aifx.curation.unused import find_unused, with_unused
from aifx.curation.work_folders import holding_dataset
from aifx.data.versions import leases
from aifx.data.versions.catalog import Catalog, open_catalog, open_parts
from aifx.data.versions.leases import LEASES, READ_DAYS, Use, leased_uses, renew_lease
from aifx.data.versions.manifest import Version
from aifx.registry.ledger import Entry
from aifx.registry.roots import Root

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
    named = (
        {"@".join(one["path"].split("/")[-2:]): one["kept"] for one in found[key] if "/shared/" in one["path"]}
        for key in ("deleted", "kept")  # without the cache, which other tests share
    )
    return next(named), next(named)


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


def test_the_data_of_a_registered_model_stays(versions: dict[str, Version], project: Project) -> None:
    root = Root(open_store(str(project.root / "registry")))
    data = [versions["g"].manifest.whole_reference]
    for action in ("push", "withdraw"):
        entry = Entry(action, "ann", version="1" * 64, facts={"data": data})
        root.act("fraud", None, lambda _, entry=entry: entry, again=True)  # type: ignore[misc]
        kept = gc("--dry-run")[1].get(versions["g"].reference)
        assert kept == ("model fraud@v1" if action == "push" else None)


def test_versions_that_rules_of_a_contract_name_stay(
    catalog: Catalog, versions: dict[str, Version], project: Project
) -> None:
    rule = '[[rule]]\ncolumn = "text"\ncheck = "distribution"\nmeasure = "psi"\nat_most = 1\nagainst = "{}"\n'
    (project.root / "rules.toml").write_text(rule.format(versions["x"].reference))
    (project.root / "strict.toml").write_text(rule.format(versions["g"].reference))
    inline = f'{{ check = "references", column = "text", to = "{versions["cg"].reference}" }}'
    (project.root / "recipe.toml").write_text(
        f"""[birds]
        steps = [
            {{ add = {{ sources = ["birds/"], license = "MIT" }} }},
            {{ expect = {{ rules = "strict.toml" }} }},
            {{ expect = {{ rules = [{inline}] }} }},
        ]"""
    )
    deleted, kept = gc("--dry-run")
    assert deleted == {}
    assert [kept[versions[name].reference] for name in ("x", "g", "cg")] == [
        "rules.toml",
        "strict.toml",
        "recipe.toml",
    ]


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
    renew_lease(catalog.store, other, [Use(versions["x"].manifest.whole_reference, "run first")])
    train_on(project, versions["c"])
    deleted, kept = gc("--yes")
    assert set(deleted) == {versions["g"].reference, versions["cg"].reference}
    assert f"{tmp_path}/other, until 2" in kept[versions["x"].reference]
    assert kept[versions["x"].reference].startswith("run first of ")
    assert len(catalog.store.files(LEASES)) == 2, "gc renews the lease of its own project"
    assert {use.who.partition(" of ")[0] for use in leased_uses(catalog.store)} == {"run first", "run main"}

    (lease,) = (path for path in (tmp_path / "shared" / LEASES).iterdir() if "run first" in path.read_text())
    document = json.loads(lease.read_text())
    lease.write_text(json.dumps({**document, "ends": "2020-01-01T00:00:00+00:00"}))
    assert set(gc("--yes")[0]) == {versions["x"].reference}
    lease.write_text("{")
    with pytest.raises(DataError, match=f"{LEASES}/{lease.name} is damaged"):
        list(leased_uses(catalog.store))


def test_a_copy_of_a_project_gets_a_lease_of_its_own(
    catalog: Catalog, versions: dict[str, Version], tmp_path: Path
) -> None:
    uses = [Use(version.manifest.whole_reference, name) for name, version in versions.items()]
    first, copy = (Project(tmp_path / name) for name in ("first", "copy"))
    first.root.mkdir()
    for use in uses[:2]:
        renew_lease(catalog.store, first, [use])
    assert [use.reference for use in leased_uses(catalog.store)] == [uses[1].reference], "one file per project"
    shutil.copytree(first.root, copy.root)
    renew_lease(catalog.store, copy, [uses[2]])
    for use in uses[3:5]:
        renew_lease(catalog.store, first, [use])
    assert {use.reference for use in leased_uses(catalog.store)} == {uses[2].reference, uses[4].reference}
    assert len(catalog.store.files(LEASES)) == 2


def other_project(folder: Path) -> Project:
    """Another project that has its data sets in the same root."""
    (folder / "other").mkdir()
    (folder / "other" / "aifx.toml").write_text('[datasets]\nroot = "../shared"\n')
    return Project(folder / "other", "../shared")


def test_what_commands_of_another_project_read_stays(
    catalog: Catalog, versions: dict[str, Version], project: Project, tmp_path: Path
) -> None:
    """A query, a single step that leaves the name, and a reader of rows such as `aifx eval`."""
    other = other_project(tmp_path)
    aifx.data_query(versions["g"].reference, "SELECT 1", project=other.root)
    made = aifx.data_dedupe(versions["x"].reference, project=other.root, set_name=False)
    (part,) = open_parts(versions["cg"].reference, other, "text")
    assert part.column("text") == ["an ox"]
    deleted, kept = gc("--yes")
    assert deleted == {made.reference: ""}
    for reference in (versions["g"].reference, versions["x"].reference, versions["cg"].reference):
        assert kept[reference].startswith("a command of ")
        assert f"{tmp_path}/other that reads it, until 2" in kept[reference]
    (lease,) = (path for path in (tmp_path / "shared" / LEASES).iterdir() if f"{tmp_path}/other" in path.read_text())
    document = json.loads(lease.read_text())
    read = {one: end for one, end in document["read"].items() if one != versions["x"].manifest.whole_reference}
    ended = {versions["x"].manifest.whole_reference: "2020-01-01T00:00:00+00:00"}
    lease.write_text(json.dumps({**document, "read": {**read, **ended}}))
    assert set(gc("--yes")[0]) == {versions["x"].reference}
    renew_lease(catalog.store, other, [])
    assert json.loads(lease.read_text())["read"] == {**read, **ended}, "a renewal leaves what commands read"


def test_a_version_that_the_lease_keeps_is_read_without_writing(
    catalog: Catalog, versions: dict[str, Version], project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "_held", {})
    mine, whole = open_catalog("../shared", project), versions["x"].manifest.whole_reference
    renew_lease(catalog.store, project, [Use(whole, "run main")])
    (lease,) = (catalog.local / LEASES).iterdir()  # type: ignore[operator]
    before = lease.read_bytes()
    mine.open(whole)
    assert lease.read_bytes() == before
    lease.write_text(json.dumps({**json.loads(before), "ends": "2027-01-01T00:00:00+00:00", "uses": []}))
    mine.open(whole)
    assert json.loads(lease.read_text())["read"] == {}, "the same process looks again after an hour"
    monkeypatch.setattr(leases, "RENEWAL_S", 0.0)
    mine.open(whole)
    assert list(json.loads(lease.read_text())["read"]) == [whole]
    soon = {whole: (datetime.now(UTC) + timedelta(days=READ_DAYS - 2)).isoformat()}
    lease.write_text(json.dumps({**json.loads(lease.read_text()), "read": soon}))
    mine.open(whole)
    assert json.loads(lease.read_text())["read"][whole] > soon[whole]


def test_a_torn_lease_is_written_again_by_its_project(
    catalog: Catalog, versions: dict[str, Version], project: Project
) -> None:
    uses = [Use(versions["x"].manifest.whole_reference, "run main")]
    renew_lease(catalog.store, project, uses)
    (lease,) = (catalog.local / LEASES).iterdir()  # type: ignore[operator]
    lease.write_bytes(lease.read_bytes()[:100])
    renew_lease(catalog.store, project, uses)
    assert [use.reference for use in leased_uses(catalog.store)] == [uses[0].reference]


def test_commands_without_a_project_have_the_lease_of_the_cache(
    catalog: Catalog, versions: dict[str, Version], project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = catalog.local / LEASES  # type: ignore[operator]
    catalog.open(versions["x"].reference)
    assert not shared.exists(), "no project has a lease there, so that it may be a folder of one"
    remote = open_catalog(f"memory://{tmp_path.name}")
    made = execute(Rows((), (("a cat",),)), "pets", remote, LIMITS).version
    assert [use.reference for use in leased_uses(remote.store)] == [made.manifest.whole_reference]
    renew_lease(catalog.store, project, [])
    catalog.open(versions["x"].reference)
    (use,) = leased_uses(catalog.store)
    assert (use.reference, str(tmp_path / "cache") in use.who) == (versions["x"].manifest.whole_reference, True)
    shutil.rmtree(shared)
    shared.touch()
    caplog.set_level("INFO")
    assert open_catalog("../shared", project).open(versions["g"].reference).shards, "a root that takes no lease"
    assert "aifx data gc of another project may delete pets@" in caplog.text


def test_a_version_that_cannot_be_deleted_keeps_what_it_needs(
    catalog: Catalog, versions: dict[str, Version], project: Project, tmp_path: Path
) -> None:
    """A process works in a data set, or another project begins to read a version after gc has looked."""
    parts = versions["g"], versions["x"]
    mixed = execute(Mix(parts, (1.0, 2.0), (None, None)), "mixed", catalog, LIMITS).version
    execute(Mix((versions["latest"], versions["x"]), (1.0, 2.0), (None, None)), "mixed", catalog, LIMITS)
    catalog.set_latest("mixed", "0" * 12)
    with holding_dataset("mixed", catalog, "works in it"):
        deleted, kept = gc("--yes")
    assert kept[mixed.reference].endswith("works in it")
    assert kept[versions["g"].reference] == f"{mixed.reference} was made from it"
    assert set(deleted) == {versions["cg"].reference, versions["c"].reference}

    def uses() -> Iterator[Use]:
        yield from ()
        open_catalog("../shared", other).open(mixed.reference)

    other = other_project(tmp_path)
    found = with_unused(collect_garbage(catalog, dry_run=False), catalog, uses(), days=0)
    assert {one.path.rpartition("/")[2] for one in found.kept} >= {
        one.manifest.version for one in (mixed, *parts, versions["rows"])
    }
    assert len(found.deleted) == 1


def test_a_deletion_in_a_bucket_that_is_interrupted_is_repeated(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    remote = open_catalog(f"memory://{tmp_path.name}")
    gone = execute(Rows((), (("a cat",),)), "pets", remote, LIMITS).version
    execute(Rows((), (("a dog",),)), "pets", remote, LIMITS)
    remote.store.remove(LEASES)
    garbage, real = collect_garbage(remote, dry_run=False), type(remote.store.fs).rm
    for failing in range(20):
        calls = iter(range(20))

        def rm(fs: object, *given: object, calls: Iterator[int] = calls, failing: int = failing, **how: object) -> None:
            if next(calls) == failing:
                raise OSError("the connection was lost")
            real(fs, *given, **how)

        monkeypatch.setattr(type(remote.store.fs), "rm", rm)
        try:
            with_unused(garbage, remote, [], days=0)
        except EnvironmentFault:
            assert gone.manifest.version in remote.versions("pets")
            continue
        break
    assert failing > 3
    assert remote.store.folders("pets") == remote.versions("pets") == [remote.latest("pets")]


def test_a_root_of_the_project_has_no_lease(tmp_path: Path) -> None:
    inside = open_catalog(str(tmp_path / "datasets"), Project(tmp_path))
    renew_lease(inside.store, Project(tmp_path), [Use("pets@" + "0" * 64, "run main")])
    assert not (tmp_path / "datasets").exists()
    made = execute(Rows((), (("a cat",),)), "pets", inside, LIMITS).version
    inside.open(made.reference)
    assert not (tmp_path / "datasets" / LEASES).exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_bucket(versions: dict[str, Version], monkeypatch: pytest.MonkeyPatch, project: Project) -> None:
    with s3_server(monkeypatch):
        remote = open_catalog("s3://bucket/shared")
        for version in versions.values():
            execute_copy(remote, version)
        assert {use.reference for use in leased_uses(remote.store)} == {
            version.manifest.whole_reference for version in versions.values()
        }
        remote.store.remove(LEASES)
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
    assert {use.reference for use in leased_uses(catalog.store)} == {
        versions[name].manifest.whole_reference for name in ("c", "g")
    }
    (project.root / "recipe.toml").unlink()
    with pytest.raises(AifxError):  # its rows are few
        aifx.train(run="tiny", settings={"data.dataset": reference, "data.kind": "text"})
    (use,) = (use for use in leased_uses(catalog.store) if use.who.startswith("run "))
    assert (use.reference, use.who.partition(" of ")[0]) == (versions["c"].manifest.whole_reference, "run tiny")
