"""aifx data erase: rows go from the latest version, and with --purge from the disk."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path

import inprocess
import pytest
from s3_server import s3_server
from toy_steps import Rows, WithoutLetter

from aifx.core.files import FolderBusy
from aifx.curation.erased import ERASED
from aifx.curation.erasure import erase as erase_rows
from aifx.curation.erasure import plan_erasure
from aifx.curation.execution import execute
from aifx.curation.step import Limits
from aifx.curation.work_folders import holding_work
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.leases import LEASES
from aifx.data.versions.manifest import LINEAGE, Version

LIMITS = Limits(1 << 30, 1)
SECRET = "jane@example.org"
TEXTS = ((f"mail {SECRET} now", "a dog"), ("an ox", f"hidden {SECRET}"))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "aifx.toml").touch()
    return open_catalog(str(tmp_path / "datasets"))


@pytest.fixture
def chain(catalog: Catalog) -> list[Version]:
    """The second version has dropped one of the two rows with the secret."""
    first = execute(Rows((), TEXTS), "pets", catalog, LIMITS).version
    return [first, execute(WithoutLetter((first,), "hidden"), "pets", catalog, LIMITS).version]


def erase(folder: Path, *args: str) -> tuple[int, dict[str, object], str]:
    found = inprocess.run(
        ["data", "erase", "pets", "--where", f"text LIKE '%{SECRET}%'", "--json", *args], folder, dict(os.environ)
    )
    return found.returncode, json.loads(found.stdout), found.stderr


def files_with(folder: Path, text: str) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_version_without_the_rows(catalog: Catalog, chain: list[Version], tmp_path: Path) -> None:
    run = tmp_path / "runs" / "main"
    run.mkdir(parents=True)
    (run / "config.toml").touch()
    (run / "provenance.json").write_text(json.dumps({"dataset": {"reference": chain[0].manifest.whole_reference}}))
    code, plan, _ = erase(tmp_path, "--dry-run")
    assert (code, plan["rows"], plan["made"]) == (0, 2, None)
    assert catalog.manifest("pets") == chain[1].manifest
    code, found, _ = erase(tmp_path)
    assert code == 0
    assert found["runs"] == [{"run": "main", "reference": chain[0].reference}]
    held = {one["reference"]: one["rows"] for one in found["held_by"]}  # type: ignore[attr-defined]
    assert held == {chain[0].reference: 2, chain[1].reference: 1}
    latest = catalog.manifest("pets")
    assert (latest.rows, latest.dropped_by, latest.parents) == (2, {"erased": 1}, (chain[1].manifest.whole_reference,))
    records = [path for path in (tmp_path / "datasets").rglob("*") if path.suffix in (".json", ".jsonl")]
    assert all(SECRET not in path.read_text() for path in records if latest.version in str(path))


@pytest.mark.representative("erased rows")
def test_a_purge_leaves_nothing(catalog: Catalog, chain: list[Version], tmp_path: Path) -> None:
    work = catalog.local / "pets" / ".work-0123456789abcdef"  # type: ignore[operator]
    work.mkdir()
    (work / "shard").write_text(SECRET)
    read = catalog.local / "pets" / ".query-0123456789abcdef"  # type: ignore[operator]
    read.mkdir()
    (read / "rows.arrows").write_text(SECRET)
    assert inprocess.run(["data", "dedupe", "pets", "--mark"], tmp_path, {}).returncode == 0
    sketches = catalog.local / "pets" / "sketches"  # type: ignore[operator]
    assert list(sketches.rglob("*.npy"))  # digests of texts
    catalog.set_latest("pets", chain[1].manifest.version)
    code, found, stderr = erase(tmp_path, "--purge")
    assert (code, "error" in found) == (2, True), "a script must use --yes"
    assert catalog.manifest("pets") == chain[1].manifest
    assert SECRET not in stderr
    erase(tmp_path)
    code, found, _ = erase(tmp_path, "--purge", "--yes")
    assert (code, found["made"], found["remaining"]) == (0, None, [])
    assert set(found["purged"]) >= {version.reference for version in chain}  # type: ignore[call-overload]
    assert catalog.versions("pets") == [catalog.manifest("pets").version]
    for event in (catalog.local / LINEAGE).rglob("*.json"):  # type: ignore[operator]
        if '"data.rows"' in event.read_text():  # the settings of the test's step are its texts
            event.unlink()
    assert files_with(tmp_path / "datasets", SECRET) == []
    assert not sketches.exists()
    lineage = json.loads(inprocess.run(["data", "lineage", "pets", "--json"], tmp_path, {}).stdout)
    assert [one["is_deleted"] for one in lineage["versions"]][:2] == [False, True]
    assert [one["step"] for one in lineage["versions"]][:2] == ["erase", "without-letter"]
    why = inprocess.run(["data", "why", "s0.txt-1"], tmp_path, {})
    assert why.returncode == 0
    assert inprocess.run(["data", "verify", "--all"], tmp_path, {}).returncode == 0


@pytest.mark.slow
def test_other_data_sets_are_named(catalog: Catalog, chain: list[Version], tmp_path: Path) -> None:
    other = execute(WithoutLetter((chain[0],), "q"), "copy", catalog, LIMITS).version
    code, found, _ = erase(tmp_path, "--purge", "--yes")
    assert (code, found["remaining"]) == (0, [other.reference])
    assert catalog.manifest("copy") == other.manifest


def test_what_cannot_be_erased(catalog: Catalog, chain: list[Version], tmp_path: Path) -> None:
    def failed(name: str, where: str) -> str:
        found = inprocess.run(["data", "erase", name, "--where", where], tmp_path, {})
        assert found.returncode == 2
        return found.stderr

    assert "is not the latest" in failed(chain[0].reference, "true")
    assert "Referenced column" in failed("pets", "nothing = 1")
    assert SECRET not in failed("pets", "text::INT = 1")
    assert "--where is empty" in failed("pets", " ")
    assert "not one SELECT" in failed("pets", "true); DELETE FROM data WHERE (true")
    found = inprocess.run(["data", "erase", "pets", "--where", "text = 'nothing' -- comment"], tmp_path, {})
    assert (found.returncode, "no row of pets" in found.stdout) == (0, True)
    assert catalog.manifest("pets") == chain[1].manifest


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["memory", "s3"])
def test_a_purge_of_a_remote_root(
    chain: list[Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Neither the store nor the cache of this machine keeps the rows."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    with s3_server(monkeypatch) if scheme == "s3" else nullcontext():
        remote = open_catalog(f"{scheme}://bucket/{tmp_path.name}")
        for version in chain:
            remote.publish(version)
        remote.set_latest("pets", chain[1].manifest.version)
        remote.open(chain[0].reference)
        root = ["--root", remote.store.url]
        code, plan, _ = erase(tmp_path, "--purge", "--dry-run", *root)
        assert (code, plan["dry_run"], plan["made"]) == (0, True, None)
        assert set(plan["purged"]) == {version.reference for version in chain}  # type: ignore[call-overload]
        assert remote.versions("pets") == sorted(version.manifest.version for version in chain)
        assert files_with(tmp_path / "cache", SECRET)
        code, found, _ = erase(tmp_path, "--purge", "--yes", *root)
        assert (code, found["remaining"]) == (0, [])
        latest, bucket = remote.latest("pets"), remote.store.path
        assert remote.versions("pets") == [latest]
        assert found["made"] == f"pets@{latest}"
        assert not any(SECRET.encode() in remote.store.fs.cat_file(name) for name in remote.store.fs.find(bucket))
        beside = {LINEAGE, LEASES, ERASED, "latest"}
        stored = [name for name in remote.store.fs.find(bucket) if beside.isdisjoint(name.split("/"))]
        assert all(f"/pets/{latest}" in name for name in stored if not name.endswith(".lock")), stored
        assert files_with(tmp_path / "cache", SECRET) == []
        assert inprocess.run(["data", "verify", "--all", *root], tmp_path, dict(os.environ)).returncode == 0


def test_a_version_made_during_a_purge_is_named(catalog: Catalog, chain: list[Version]) -> None:
    plan, step = plan_erasure(
        catalog, None, "pets", f"text LIKE '%{SECRET}%'", purge=True, dry_run=False, memory_bytes=LIMITS.memory_bytes
    )
    other = execute(WithoutLetter((chain[0],), "q"), "pets", catalog, LIMITS).version
    done = erase_rows(catalog, plan, step, LIMITS)
    assert (set(done.purged), done.remaining) == ({version.reference for version in chain}, (other.reference,))


def test_a_purge_deletes_nothing_while_somebody_works_in_the_data_set(catalog: Catalog, chain: list[Version]) -> None:
    """Such as an element of a Slurm job whose command was killed: its folder has rows, too."""
    plan, step = plan_erasure(
        catalog, None, "pets", f"text LIKE '%{SECRET}%'", purge=True, dry_run=False, memory_bytes=LIMITS.memory_bytes
    )
    assert catalog.local is not None
    work = catalog.local / "pets" / ".work-0123456789abcdef"
    with holding_work(work), pytest.raises(FolderBusy) as refused:
        erase_rows(catalog, plan, step, LIMITS)
    assert str(work) in refused.value.what
    assert {version.manifest.version for version in chain} <= set(catalog.versions("pets"))
    assert set(erase_rows(catalog, plan, step, LIMITS).purged) == {version.reference for version in chain}
    assert not work.exists()
