"""Leftovers of killed commands among the data sets, and `aifx data gc`."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import inprocess
import pytest
from toy_steps import Rows

from aifx.core.artifact import unfinished
from aifx.core.files import holding, replacing
from aifx.curation.databases.sources import QueryFetch, parse_query
from aifx.curation.execution import DONE, execute, run_task, work_folder
from aifx.curation.leftovers import Leftover, collect_garbage, delete_leftover, leftovers_in
from aifx.curation.step import Limits, Outcome
from aifx.curation.work_folders import holding_work
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.data.versions.manifest import Version

LIMITS = Limits(1 << 30, 1)
TEMPORARY = ".00000-000.parquet.0123456789ab.tmp"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """gc also looks into the cache, which other tests fill."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


@pytest.fixture
def version(catalog: Catalog) -> Version:
    return execute(Rows((), (("a cat", "a dog"),)), "pets", catalog, LIMITS).version


def leave(root: Path, version: Version) -> dict[str, tuple[str, int]]:
    """Leftovers of commands that were killed: the kind and the bytes of each, by its path."""
    own, indexes = root / "pets", root / "pets" / "indexes" / version.manifest.version
    left = {
        own / ".work-0123456789abcdef": "step",
        own / ".query-456789abcdef0123": "read",
        own / ".removed-89abcdef0123": "removal",
        indexes / ".work-cdef01234567": "index",
        root / ".tokens" / version.manifest.version / "digest.tmp-0123456789abcdef": "tokens",
        root / ".tokens" / ".removed-0123456789ab": "removal",
        root / "killed-before-its-first-version" / ".work-0123456789abcdef": "step",
    }
    for number, path in enumerate(left, 1):
        (path / "inner").mkdir(parents=True)
        (path / "inner" / "shard").write_bytes(b"x" * number)
    (root / "killed-before-its-first-version" / ".lock").touch()
    files = [version.path / "shards" / TEMPORARY, own / ".latest.0123456789ab.tmp"]
    for path in files:
        path.write_bytes(b"x" * 9)
    return {str(path): (kind, number) for number, (path, kind) in enumerate(left.items(), 1)} | {
        str(path): ("file", 9) for path in files
    }


def stay(root: Path, version: Version) -> dict[Path, bytes]:
    """Files that are nobody's leftovers, and the rest of the data sets."""
    indexes = root / "pets" / "indexes" / version.manifest.version
    others = [
        indexes / "index" / "manifest.json",
        root / ".tokens" / version.manifest.version / "digest" / "manifest.json",
        root / "pets" / "labels" / "label.jsonl",
        root / "pets" / "sketches" / "0123.npy",
        root / "runs" / ".removed-main" / "config.toml",
        root / "project" / ".lock",
        root / "project" / "notes" / ".work-thesis" / "a.txt",
        root / "project" / ".query-2" / "a.sql",
        root / "project" / ".removed-photos" / "a.png",
        root / "pets" / ".hidden.tmp",
    ]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def gc(root: Path, *args: str) -> dict[str, Any]:
    done = inprocess.run(["data", "gc", "--root", str(root), "--json", *(args or ["--yes"])], root, dict(os.environ))
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_leftovers_go_and_all_else_stays(tmp_path: Path, catalog: Catalog, version: Version) -> None:
    root = tmp_path / "datasets"
    before = stay(root, version)
    left = leave(root, version)
    for args in (["--dry-run"], []):
        assert all(os.path.exists(path) for path in left)
        found = gc(root, *args)
        assert {one["path"]: (one["kind"], one["bytes"]) for one in found["deleted"]} == left
        assert (found["kept"], found["bytes"]) == ([], sum(size for _, size in left.values()))
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before
    assert inprocess.run(["data", "verify", "pets", "--root", str(root)], tmp_path, {}).returncode == 0
    assert gc(root)["deleted"] == []


def test_deleting_requires_yes(tmp_path: Path, version: Version) -> None:
    root = tmp_path / "data sets"
    (tmp_path / "datasets").rename(root)
    work = root / "pets" / ".work-0123456789abcdef"
    work.mkdir()
    command = ["data", "gc", "--root", "data sets", "--json"]
    done = inprocess.run(command, tmp_path, dict(os.environ))
    assert (done.returncode, work.exists()) == (2, True)
    assert "aifx data gc --root 'data sets' --yes" in json.loads(done.stdout)["error"]["hint"]
    assert inprocess.run([*command, "--yes"], tmp_path, dict(os.environ)).returncode == 0
    assert not work.exists()
    done = inprocess.run(command, tmp_path, dict(os.environ))
    assert (done.returncode, done.stderr) == (0, ""), "there is nothing to ask about"
    assert json.loads(done.stdout)["dry_run"] is False


@pytest.mark.parametrize("root", ["nothing", "file"])
def test_a_root_without_data_sets_has_no_leftovers(tmp_path: Path, root: str) -> None:
    (tmp_path / "file").touch()
    done = inprocess.run(["data", "gc", "--root", root], tmp_path, dict(os.environ))
    assert (done.returncode, (tmp_path / "nothing").exists()) == (0, False), done.stderr


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_folder_that_another_process_deleted_is_not_made_again(tmp_path: Path, dry_run: bool) -> None:
    for name in (".work-0123456789abcdef", ".removed-0123456789ab"):
        (tmp_path / name).mkdir()
    for leftover in list(leftovers_in(tmp_path)):
        os.rmdir(leftover.path)
        assert delete_leftover(leftover, dry_run=dry_run) is None
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_does_not_hinder_a_removal(tmp_path: Path) -> None:
    removed = tmp_path / ".removed-0123456789ab"
    removed.mkdir()
    (leftover,) = leftovers_in(tmp_path)
    assert delete_leftover(leftover, dry_run=True) == leftover
    assert list(removed.iterdir()) == [], "a file in it would keep another process from deleting it"


def test_a_folder_that_cannot_be_searched_is_named(
    tmp_path: Path, version: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, scandir = str(version.path), os.scandir

    def refusing(path: Any) -> Any:
        if path == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), closed)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    done = inprocess.run(["data", "gc", "--root", "datasets"], tmp_path, dict(os.environ))
    assert (done.returncode, closed in done.stderr) == (0, True)


def test_what_a_process_uses_stays(tmp_path: Path, catalog: Catalog, version: Version) -> None:
    root = tmp_path / "datasets"
    tokens = root / ".tokens" / version.manifest.version
    with ExitStack() as used:
        used.enter_context(holding_work(root / "pets" / ".work-0123456789abcdef"))
        used.enter_context(holding_work(root / "pets" / ".work-0123456789abcdef"))
        used.enter_context(holding(root / "pets" / ".query-456789abcdef0123", "a read", "adds its rows"))
        tokens.mkdir(parents=True)
        used.enter_context(unfinished(tokens / "digest"))
        used.enter_context(replacing(root / "pets" / "latest")).write(version.manifest.version.encode())
        used_now = [path for path in root.rglob("*") if path.name.startswith(".") or ".tmp" in path.name]
        for args in (["--dry-run"], []):
            found = gc(root, *args)
            assert found["deleted"] == []
            assert {one["kind"] for one in found["kept"]} == {"step", "read", "file", "tokens"}
            assert all(one["kept"] for one in found["kept"])
        assert all(path.exists() for path in used_now)
    assert catalog.manifest("pets") == version.manifest
    assert {one["kind"] for one in gc(root)["deleted"]} == {"step", "read"}


@dataclass(frozen=True)
class Collecting(Rows):
    """Rows during whose collection somebody collects garbage."""

    def run(self, task: int, work: Path, limits: Limits) -> Iterator[Outcome]:
        for outcome in super().run(task, work, limits):
            yield outcome
            kept.extend(collect_garbage(open_catalog(str(work.parents[2])), dry_run=False).kept)


kept: list[Leftover] = []


def test_a_task_whose_command_was_killed_goes_on(catalog: Catalog, version: Version) -> None:
    """As an element of a Slurm job does. What it has done is used by the next command."""
    assert catalog.local is not None
    step = Collecting((), (("a cat",), ("a dog",)))
    work = work_folder(step, "pets", catalog)
    (work / DONE).mkdir(parents=True)
    kept.clear()
    run_task(step, work, LIMITS, 0)
    assert [(one.path, one.kind) for one in kept] == [(str(work), "step")]
    kept.clear()
    made = execute(step, "pets", catalog, LIMITS).version
    assert [(one.path, one.kind) for one in kept] == [(str(work), "step")], "of the second task alone"
    assert made.manifest.rows == 2


def test_a_read_stays_until_its_rows_are_in_a_version(tmp_path: Path, catalog: Catalog) -> None:
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("CREATE TABLE t AS SELECT 1 AS id")
    fetch = QueryFetch(parse_query([f"sqlite:///{tmp_path}/a.db"], "SELECT * FROM t", None), catalog, "corpus")
    with fetch.fetched() as (listing, fetched):
        assert [one.kind for one in collect_garbage(catalog, dry_run=False).kept] == ["read"]
        assert (fetched.rows, os.path.getsize(listing.files[0].location)) == (1, listing.files[0].bytes)
    assert [one.kind for one in collect_garbage(catalog, dry_run=False).deleted] == ["read"]


def test_a_link_is_not_followed(tmp_path: Path, catalog: Catalog, version: Version) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / TEMPORARY).touch()
    for name in (".work-0123456789abcdef", "linked"):
        (tmp_path / "datasets" / "pets" / name).symlink_to(outside)
    assert collect_garbage(catalog, dry_run=False).deleted == ()
    assert (outside / TEMPORARY).exists()


def test_a_copy_to_a_remote_root_stays(tmp_path: Path, version: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can know whether another machine still sends it. The work of steps on this machine goes."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    remote = open_catalog(f"memory://{tmp_path.name}")
    remote.publish(version)
    whole = f"pets/{version.manifest.version}"
    remote.store.write("pets/0123456789ab/shards/00000-000.parquet", iter([b"PAR1"]))
    work = tmp_path / "cache" / "datasets" / "work" / "pets"
    (work / ".work-0123456789abcdef").mkdir(parents=True)
    (work / ".lock").touch()
    found = collect_garbage(remote, dry_run=False)
    assert [one.path for one in found.deleted] == [str(work / ".work-0123456789abcdef")]
    assert [(one.path, one.kind, one.bytes) for one in found.kept] == [
        (f"{remote.store.url}/pets/0123456789ab", "version", 4)
    ]
    assert remote.store.size(f"{whole}/manifest.json") is not None
    assert fsspec.filesystem("memory").exists(f"{remote.store.path}/pets/0123456789ab/shards/00000-000.parquet")
