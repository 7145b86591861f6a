"""Steps become versions: named by their content, the same however often and wherever they ran."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from toy_steps import Rows, WithoutLetter

from aifx.core.errors import DataError, UsageError
from aifx.core.files import FolderBusy, replacing
from aifx.core.stores import open_store
from aifx.curation import execution
from aifx.curation.execution import OUT, WHOLE, execute, in_processes
from aifx.curation.step import Limits, Outcome, ShardStep, Step
from aifx.curation.task_results import TaskResult
from aifx.curation.work_folders import holding_dataset
from aifx.data.versions.catalog import Catalog, check_files, open_catalog
from aifx.data.versions.lineage import read_lineage
from aifx.data.versions.manifest import SHARDS, Version

TEXTS = (("a cat", "a dog"), ("a bird", "no fish"), ("an ox",))
LIMITS = Limits(1 << 30, 1)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


def damages(version: Version) -> list[str]:
    store = open_store(str(version.path))
    return list(check_files(store, version.manifest.name, version.manifest.version).damages)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_step_makes_a_version(catalog: Catalog) -> None:
    collected = execute(Rows((), TEXTS), "pets", catalog, LIMITS).version
    assert catalog.names() == ["pets"]
    made = execute(WithoutLetter((collected,), "d"), "pets", catalog, LIMITS).version
    manifest = catalog.manifest("pets")
    assert manifest == made.manifest
    assert (manifest.rows, manifest.dropped_by, manifest.facts) == (3, {"has d": 2}, {"seen": 5})
    assert (manifest.parents, manifest.licenses) == ((collected.manifest.whole_reference,), ("MIT",))
    kept = [row for shard in made.shards for row in parquet.read_table(shard).to_pylist()]
    assert [row["text"] for row in kept] == ["a cat", "no fish", "an ox"]
    dropped = [row for shard in made.dropped for row in parquet.read_table(shard).to_pylist()]
    assert dropped == [
        {"_row": "s0.txt-1", "rule": "has d", "twin": None},
        {"_row": "s1.txt-0", "rule": "has d", "twin": None},
    ]
    assert damages(made) == []
    assert catalog.open(f"pets@{made.manifest.version[:4]}").manifest == manifest
    for version, step in ((collected, "data.rows"), (made, "data.without-letter")):
        (event,) = read_lineage(catalog, version.manifest.whole_reference)
        assert event["job"]["name"] == step


@pytest.mark.slow
def test_the_same_step_makes_the_same_bytes(tmp_path: Path) -> None:
    """In one process and in several, and the second time nothing at all."""
    found = []
    for workers in (1, 2):
        catalog = open_catalog(str(tmp_path / str(workers)))
        limits = Limits(1 << 30, workers)
        parent = execute(Rows((), TEXTS), "pets", catalog, limits).version
        step = WithoutLetter((parent,), "d")
        made = execute(step, "pets", catalog, limits)
        assert made.is_new
        assert not execute(step, "pets", catalog, limits).is_new
        again = execute(WithoutLetter((made.version,), "d"), "pets", catalog, limits)
        assert (again.version.path, again.is_new) == (made.version.path, False)
        found.append(content(made.version.path))
        assert not list((tmp_path / str(workers)).rglob(".work*"))
    assert found[0] == found[1]


def test_little_work_starts_no_process(catalog: Catalog) -> None:
    """It takes a second to start, which is worth it for megabytes."""

    class InProcess(ShardStep):
        name = "in-process"

        def apply(self, rows: pa.Table, work: Path) -> Outcome:
            return Outcome(rows, facts={f"by {os.getpid()}": 1})

    parent = execute(Rows((), TEXTS), "pets", catalog, LIMITS).version
    made = execute(InProcess((parent,)), "pets", catalog, Limits(1 << 30, 4)).version
    assert made.manifest.facts == {f"by {os.getpid()}": len(TEXTS)}
    several = Limits(1 << 30, 4)
    assert [several.for_work(size << 20, 32 << 20).workers for size in (0, 63, 64, 1000)] == [1, 1, 2, 4]


def test_a_restart_does_what_is_missing(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    real = execution.run_task

    def failing(step: object, work: object, limits: object, task: int) -> object:
        ran.append(task)
        if task == 2 and ran.count(2) == 1:
            raise OSError("no more")
        return real(step, work, limits, task)  # type: ignore[arg-type]

    monkeypatch.setattr(execution, "run_task", failing)
    step = Rows((), TEXTS)
    with pytest.raises(OSError, match="no more"):
        execute(step, "pets", catalog, LIMITS)
    assert catalog.names() == []
    execute(step, "pets", catalog, LIMITS)
    assert ran == [0, 1, 2, 2]


def test_a_version_has_its_own_files_alone(catalog: Catalog) -> None:
    """Not what a killed process left of a shard, and not what one that still runs writes."""
    shard = f"{SHARDS}/00000-000.parquet"

    def beside_others(step: Step, missing: list[int], work: Path, limits: Limits) -> Iterator[tuple[int, TaskResult]]:
        (work / OUT / SHARDS).mkdir(parents=True)
        (work / OUT / SHARDS / ".00000-000.parquet.0123456789ab.tmp").write_bytes(b"PAR1")
        writing.enter_context(replacing(work / OUT / shard)).write(b"PAR1")
        yield from in_processes(step, missing, work, limits)

    with suppress(FileNotFoundError), ExitStack() as writing:
        made = execute(Rows((), TEXTS[:1]), "pets", catalog, LIMITS, beside_others).version
    assert damages(made) == []
    assert set(content(made.path)) == {
        "croissant.json", "manifest.json", "profile.json", shard, "SHA256SUMS", "tasks.json",
    }  # fmt: skip


def test_a_task_that_ran_again_replaces_what_a_killed_call_moved(catalog: Catalog) -> None:
    def after_killed(step: Step, missing: list[int], work: Path, limits: Limits) -> Iterator[tuple[int, TaskResult]]:
        (work / WHOLE / SHARDS).mkdir(parents=True)
        (work / WHOLE / SHARDS / "00000-000.parquet").write_bytes(b"PAR1")
        yield from in_processes(step, missing, work, limits)

    assert damages(execute(Rows((), TEXTS), "pets", catalog, LIMITS, after_killed).version) == []


def test_a_rejected_version_is_not_the_latest(catalog: Catalog) -> None:
    collected = execute(Rows((), TEXTS), "pets", catalog, LIMITS).version
    made = execute(
        WithoutLetter((collected,), "a"), "pets", catalog, LIMITS, accepts=lambda manifest: manifest.rows > 3
    )
    assert not made.is_accepted
    assert catalog.find("pets") == ("pets", collected.manifest.version)
    assert catalog.open(made.version.reference).manifest == made.version.manifest


def test_one_process_at_a_time(catalog: Catalog) -> None:
    with (
        holding_dataset("pets", catalog, "makes a version of it"),
        pytest.raises(FolderBusy, match=f"process {os.getpid()} makes"),
    ):
        execute(Rows((), TEXTS), "pets", catalog, LIMITS)


def test_damage_is_named(catalog: Catalog) -> None:
    made = execute(Rows((), TEXTS), "pets", catalog, LIMITS).version
    shard = made.shards[1]
    data = bytearray(shard.read_bytes())
    for place in (0, len(data) // 2, len(data) - 1):
        data[place] ^= 1
        shard.write_bytes(data)
        (damage,) = damages(made)
        assert damage.startswith("shards/00001-000.parquet has other bytes")
        data[place] ^= 1
    shard.write_bytes(data[:-1])
    made.shards[0].unlink()
    assert damages(made) == [
        "shards/00000-000.parquet is missing",
        f"shards/00001-000.parquet has {len(data) - 1:,} bytes and had {len(data):,}",
    ]
    manifest = made.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"rows": 2', '"rows": 3', 1))
    with pytest.raises(DataError, match="is damaged"):
        catalog.open("pets")


@pytest.mark.parametrize("reference", ["cats", "pets@0000", "pets@00", "../pets", "pets@"])
def test_a_name_that_means_nothing(catalog: Catalog, reference: str) -> None:
    execute(Rows((), TEXTS), "pets", catalog, LIMITS)
    with pytest.raises(UsageError):
        catalog.find(reference)


def test_a_full_disk_is_named(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy's and DuckDB's errors name no file, and a disk is found by a file on it."""

    def full(*_: object) -> dict[str, int]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    step = Rows((), TEXTS)
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "prepare", full)
        with pytest.raises(OSError, match=r"'.*/datasets/pets/\.work-"):
            execute(step, "pets", catalog, LIMITS)
    assert catalog.names() == []
    assert damages(execute(step, "pets", catalog, LIMITS).version) == []
