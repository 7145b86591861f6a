"""Every flipped byte of a version is found, on this machine and in a remote store, and its file is named."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import inprocess
import pytest
from pyarrow import parquet
from toy_steps import Rows, WithoutLetter

from aifx.core.errors import DataError
from aifx.curation.execution import execute
from aifx.curation.reports import list_versions
from aifx.curation.step import Limits
from aifx.data.versions.catalog import Catalog, check_files, check_shards, open_catalog
from aifx.data.versions.manifest import Version, sums_text

LIMITS = Limits(1 << 30, 1)
REGIONS = 23


@pytest.fixture
def made(tmp_path: Path) -> Version:
    catalog = open_catalog(str(tmp_path / "datasets"))
    parent = execute(Rows((), (("a cat", "a dog"), ("an ox", "hi"))), "pets", catalog, LIMITS).version
    return execute(WithoutLetter((parent,), "d"), "pets", catalog, LIMITS).version


def catalog_of(version: Version) -> Catalog:
    return open_catalog(str(version.path.parents[1]))


def damages(catalog: Catalog, version: Version) -> tuple[str, ...]:
    name, digest = version.manifest.name, version.manifest.version
    return check_files(catalog.store.below(f"{name}/{digest}"), name, digest).damages


def test_a_flipped_byte_of_any_file(made: Version) -> None:
    catalog = catalog_of(made)
    assert damages(catalog, made) == ()
    files = [path for path in made.path.rglob("*") if path.is_file()]
    assert {path.relative_to(made.path).parts[0] for path in files} == {
        "manifest.json", "profile.json", "tasks.json", "croissant.json", "SHA256SUMS", "shards", "dropped",
    }  # fmt: skip
    for path in files:
        data = path.read_bytes()
        for place in {*range(0, len(data), max(1, len(data) // REGIONS)), len(data) - 1}:
            for bit in (1, 2, 32, 128):
                flipped = bytearray(data)
                flipped[place] ^= bit
                path.write_bytes(flipped)
                name = str(path.relative_to(made.path))
                found = damages(catalog, made)
                assert [damage.split()[0] for damage in found] == [name], (name, place, bit, found)
        path.write_bytes(data)


def test_what_is_missing_or_too_much(made: Version) -> None:
    catalog = catalog_of(made)
    (made.path / "profile.json").unlink()
    (made.path / "shards" / "stray.parquet").write_bytes(b"")
    made.dropped[0].unlink()
    missing_shard, missing_profile, stray = sorted(damages(catalog, made))
    assert missing_shard == "dropped/00000-000.parquet is missing"
    assert missing_profile == "profile.json is missing"
    assert stray.startswith("shards/stray.parquet ")
    (made.path / "SHA256SUMS").unlink()
    assert "SHA256SUMS is missing" in damages(catalog, made)


def test_sums_that_are_not_those_of_the_manifest(made: Version) -> None:
    """Their first line fits them, and a shard is not among them."""
    (made.path / "SHA256SUMS").write_text(sums_text({"profile.json": "0" * 64}))
    assert damages(catalog_of(made), made) == ("SHA256SUMS has other bytes than were written",)


@pytest.mark.parametrize("name", ["../latest", "/etc/passwd", "shards/../../latest", "a\0b"])
def test_sums_that_name_a_file_elsewhere(made: Version, tmp_path: Path, name: str) -> None:
    """A stranger's, beside a damaged manifest."""
    (made.path / "manifest.json").write_text("{}")
    (made.path / "SHA256SUMS").write_text(sums_text({name: "0" * 64}))
    assert [damage.split()[0] for damage in damages(catalog_of(made), made)][:2] == ["manifest.json", "SHA256SUMS"]
    root = str(made.path.parents[1])
    assert inprocess.run(["data", "verify", made.reference, "--root", root], tmp_path, {}).returncode == 1


def test_sha256sum_agrees(made: Version) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=made.path, check=False).returncode == 0
    made.shards[0].write_bytes(b"other")
    assert subprocess.run(command, cwd=made.path, check=False, capture_output=True).returncode == 1


def test_a_remote_root(made: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the store are read, not the copies in the cache."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    remote = open_catalog(f"memory://{tmp_path.name}")
    remote.publish(made)
    remote.set_latest("pets", made.manifest.version)
    assert remote.open("pets").manifest == made.manifest
    args = ["data", "verify", "pets", "--root", remote.store.url]
    assert inprocess.run(args, tmp_path, {}).returncode == 0
    shard = f"{remote.store.path}/pets/{made.manifest.version}/{made.manifest.shards[0].name}"
    data = bytearray(remote.store.fs.cat_file(shard))
    data[len(data) // 2] ^= 1
    remote.store.fs.pipe_file(shard, bytes(data))
    found = inprocess.run([*args, "--json"], tmp_path, {})
    assert found.returncode == 1
    assert "shards/00000-000.parquet has other bytes" in found.stdout


def test_a_damaged_manifest_hides_no_other_version(made: Version, tmp_path: Path) -> None:
    catalog = catalog_of(made)
    manifest = made.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"rows": 2', '"rows": 4', 1))
    listed = list_versions(catalog)
    assert [one.reference for one in listed.unreadable] == [made.reference]
    assert len(listed.versions) == 1
    found = inprocess.run(["data", "verify", "--all", "--root", catalog.store.url], tmp_path, {})
    assert found.returncode == 1
    assert "manifest.json is damaged" in found.stdout
    (made.path.parent / "latest").write_text("ffffffffffff\n")
    found = inprocess.run(["data", "verify", "pets", "--root", catalog.store.url], tmp_path, {})
    assert found.returncode == 1
    assert "latest is damaged" in found.stdout
    for latest in ("ffffffffffff", "\0", "../pets", ""):
        (made.path.parent / "latest").write_text(latest)
        with pytest.raises(DataError, match="latest is damaged"):
            catalog.open("pets")


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "without rows": lambda path: parquet.write_table(parquet.read_table(path).slice(0, 0), path),
    "of other columns": lambda path: parquet.write_table(
        parquet.read_table(path).rename_columns(["_row", "a", "b"]), path
    ),
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:100] + b"x" + path.read_bytes()[101:]),
}
READERS = (
    ["clean", "pets", "--max-dropped", "1"],
    ["dedupe", "pets"],
    ["dedupe", "pets", "--audit"],
    ["split", "pets"],
    ["decontaminate", "pets", "--against", "pets"],
    ["pii", "pets"],
    ["pii", "pets", "--mask"],
    ["index", "pets"],
    ["label", "serve", "pets", "--labels", "a,b"],
    ["label", "export", "pets", "labels.csv"],
    ["label", "suspects", "pets"],
    ["push", "pets", "postgresql://127.0.0.1:1/db/pets"],
)


@pytest.mark.parametrize(
    "damage", [pytest.param(name, marks=pytest.mark.slow) if name != "missing" else name for name in DAMAGES]
)
def test_no_step_reads_a_damaged_shard(made: Version, tmp_path: Path, damage: str) -> None:
    """Each is compared once, and again after a file has changed; a query looks at the sizes alone."""
    catalog = catalog_of(made)
    DAMAGES[damage](made.shards[0])
    before = catalog.versions("pets")
    queries = (["query", "pets", "FROM data"], ["why", "s0.txt-0"]) if damage != "flipped" else ()
    for args in (*(READERS if damage == "of other columns" else READERS[:1]), *queries):
        found = inprocess.run(["data", *args, "--root", catalog.store.url], tmp_path, {})
        assert (found.returncode, found.stdout) == (2, ""), (args, found.stderr)
        assert "00000-000.parquet" in found.stderr
        assert len(found.stderr.splitlines()) == 3
    assert catalog.versions("pets") == before
    assert catalog.names() == ["pets"]


@pytest.mark.parametrize("planted", ["link", "FIFO"])
def test_a_shard_is_a_file(made: Version, tmp_path: Path, planted: str) -> None:
    """Not a link, which may lead to a file that changes, and not a FIFO, which nobody writes to."""
    made.shards[0].rename(tmp_path / "elsewhere")
    if planted == "link":
        made.shards[0].symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(made.shards[0])
    with pytest.raises(DataError, match=r"00000-000\.parquet"):
        check_shards(made)


@pytest.mark.slow
def test_no_search_reads_a_damaged_shard(made: Version, tmp_path: Path) -> None:
    root = ["--root", catalog_of(made).store.url]
    assert inprocess.run(["data", "index", "pets", *root], tmp_path, {}).returncode == 0
    DAMAGES["without rows"](made.shards[0])
    for args in (["ox"], ["--like", "s1.txt-0"]):
        found = inprocess.run(["data", "search", "pets", *args, *root], tmp_path, {})
        assert (found.returncode, found.stdout) == (2, ""), found.stderr
        assert "00000-000.parquet" in found.stderr


@pytest.mark.parametrize("planted", ["link", "fifo"])
@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS"])
def test_what_is_no_file_is_neither_followed_nor_waited_for(
    made: Version, tmp_path: Path, name: str, planted: str
) -> None:
    path = made.path / name
    if planted == "link":
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
    else:
        path.unlink()
        os.mkfifo(path)
    catalog = catalog_of(made)
    assert [damage.split()[0] for damage in damages(catalog, made)] == [name]
    if name == "manifest.json":
        assert [one.reference for one in list_versions(catalog).unreadable] == [made.reference]
