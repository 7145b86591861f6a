"""Versions that refer to files of earlier versions: new rows cost what they are, and nothing is lost or mixed up."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adding import add, quarantine_of, rows_of
from s3_server import Application, s3_server
from toy_steps import Rows, WithoutLetter

from aifx.core.artifact import Artifact, DamagedArtifact, parse_artifact, read_artifact, short
from aifx.core.errors import DataError
from aifx.core.stores import Store
from aifx.curation import execution
from aifx.curation.cleaning import Clean
from aifx.curation.compact import Compact, is_compact
from aifx.curation.duplicates import Dedupe, Split
from aifx.curation.erasure import Erasure, erase, plan_erasure
from aifx.curation.execution import execute
from aifx.curation.labels.agreement import ApplyLabels
from aifx.curation.step import Limits, Step
from aifx.data.versions.catalog import Catalog, check_files, check_shards, open_catalog
from aifx.data.versions.manifest import KIND, VERSION, ShardFile, Version

LIMITS = Limits(1 << 30, 1)
TEXTS = (("a cat", "a dog"), ("a bird", "no fish"), ("an ox", "an odd"))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return open_catalog(str(tmp_path / "datasets"))


def collect(catalog: Catalog, texts: Sequence[tuple[str, ...]]) -> Version:
    return execute(Rows((), tuple(texts)), "pets", catalog, LIMITS).version


def clean(parent: Version, catalog: Catalog, letter: str = "d") -> Version:
    return execute(WithoutLetter((parent,), letter), "pets", catalog, LIMITS).version


def damages(catalog: Catalog, version: Version) -> tuple[str, ...]:
    name, digits = version.manifest.name, version.manifest.version
    return check_files(catalog.store.below(f"{name}/{digits}"), name, digits).damages


def own_names(version: Version) -> list[str]:
    return [file.name for file in version.manifest.files if not file.holder]


def write_rows(folder: Path, name: str, rows: int, first: int = 0) -> None:
    """A file of rows of a few words, without copies."""
    (folder / "raw").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": f"row {first + number} of {name} says {first + number}"}) for number in range(rows)]
    (folder / "raw" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def test_a_step_refers_to_what_it_did_before(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is the one that it makes without an earlier one."""
    first = clean(collect(catalog, TEXTS[:2]), catalog)
    ran: list[int] = []
    real = execution.run_task
    monkeypatch.setattr(execution, "run_task", lambda *given: ran.append(given[-1]) or real(*given))
    parent = collect(catalog, TEXTS)
    ran.clear()
    second = clean(parent, catalog)
    assert ran == [2]
    assert own_names(second) == ["shards/00002-000.parquet", "dropped/00002-000.parquet"]
    assert second.manifest.holders == (first.manifest.sha256,)
    assert (second.manifest.rows, second.manifest.dropped_by, second.manifest.facts) == (3, {"has d": 3}, {"seen": 6})
    assert [row["text"] for row in rows_of(second)] == ["a cat", "no fish", "an ox"]
    assert damages(catalog, second) == ()
    alone = open_catalog(f"{catalog.local}-alone")
    other = clean(collect(alone, TEXTS), alone)
    assert other.manifest.sha256 == second.manifest.sha256
    assert own_names(other) != own_names(second)
    assert (other.path / "profile.json").read_bytes() == (second.path / "profile.json").read_bytes()
    assert len(own_names(other)) == 6
    ran.clear()
    third = clean(collect(catalog, (*TEXTS, ("a hen",))), catalog)
    assert ran[-1:] == [3]
    assert set(third.manifest.holders) == {first.manifest.sha256, second.manifest.sha256}


def test_other_settings_and_other_decisions_run(catalog: Catalog) -> None:
    clean(collect(catalog, TEXTS[:2]), catalog)
    assert clean(collect(catalog, TEXTS), catalog, "o").manifest.holders == ()
    texts = (("one", "two"), ("three", "four"))
    first = execute(Dedupe((collect(catalog, texts),), None), "pets", catalog, LIMITS).version
    again = execute(Dedupe((collect(catalog, (*texts, ("two", "five"))),), None), "pets", catalog, LIMITS).version
    assert again.manifest.holders == (first.manifest.sha256,)
    assert "shards/00001-000.parquet" not in own_names(again)
    assert [row["text"] for row in rows_of(again)] == ["one", "two", "three", "four", "five"]


def test_labels_of_new_rows(catalog: Catalog) -> None:
    labels = {"s0.txt-0": "good"}
    execute(ApplyLabels((collect(catalog, TEXTS[:2]),), "label", labels), "pets", catalog, LIMITS)
    more = {**labels, "s1.txt-1": "bad", "s2.txt-0": "good"}
    made = execute(ApplyLabels((collect(catalog, TEXTS),), "label", more), "pets", catalog, LIMITS).version
    assert own_names(made) == ["shards/00001-000.parquet", "shards/00002-000.parquet"]
    assert [row["label"] for row in rows_of(made)] == ["good", None, None, "bad", "good", None]


def test_new_files_are_all_that_is_added(tmp_path: Path) -> None:
    for number in range(3):
        write_rows(tmp_path, str(number), 50)
        made = add(tmp_path, "corpus", "raw").version
    assert own_names(made) == ["shards/00002-000.parquet"]
    assert len(made.manifest.holders) == 2, "each file is where it was written"
    profile = json.loads((made.path / "profile.json").read_text())
    assert profile["columns"]["_source"]["values"] == {f"raw/{number}.jsonl": 50 for number in range(3)}
    assert profile["rows"] == 150
    before = {row["_row"]: row for row in rows_of(made)}
    write_rows(tmp_path, "1", 49)
    changed = add(tmp_path, "corpus", "raw").version
    assert {file.name for file in changed.manifest.shards if not file.holder} == {
        "shards/00001-000.parquet", "shards/00003-000.parquet",
    }  # fmt: skip
    after = {row["_row"]: row for row in rows_of(changed)}
    assert len(after) == 149
    assert all(before[row] == after[row] for row in before.keys() & after.keys())
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=changed.path, check=False).returncode == 0
    (tmp_path / "raw" / "3.jsonl").write_text(json.dumps({"text": "a", "more": 1}) + "\n")
    wider = add(tmp_path, "corpus", "raw").version
    assert wider.manifest.holders == (), "another column changes all rows"
    assert rows_of(wider)[0]["more"] is None


def test_quarantine_stays_where_it_is(tmp_path: Path) -> None:
    write_rows(tmp_path, "a", 5)
    with open(tmp_path / "raw" / "a.jsonl", "a") as file:
        file.write("no JSON\n")
    add(tmp_path, "corpus", "raw")
    write_rows(tmp_path, "b", 5)
    made = add(tmp_path, "corpus", "raw").version
    assert [bool(file.holder) for file in made.manifest.quarantine] == [True]
    assert [path.exists() for path in made.quarantine] == [True]
    assert made.manifest.quarantined_rows == 1


def test_a_shard_of_an_earlier_version_is_damaged_or_gone(catalog: Catalog, caplog: pytest.LogCaptureFixture) -> None:
    first = clean(collect(catalog, TEXTS[:2]), catalog)
    second = clean(collect(catalog, TEXTS), catalog)
    check_shards(second)
    shard = first.shards[0]
    data = shard.read_bytes()
    for damage, found in ((data[:-9] + b"x" + data[-8:], "has other bytes"), (None, "is missing")):
        shard.unlink()
        if damage is not None:
            shard.write_bytes(damage)
        (line,) = damages(catalog, second)
        assert line.startswith(f"../{first.manifest.version}/shards/00000-000.parquet {found}")
        assert line.endswith(f"({first.reference} holds it)")
        with pytest.raises(DataError, match=rf"00000-000.parquet {found}.* \({first.reference} holds it"):
            check_shards(second)
    third = clean(collect(catalog, (*TEXTS, ("a hen",))), catalog)
    assert first.manifest.sha256 not in third.manifest.holders
    assert f"{first.reference} is not used again" in caplog.text
    assert damages(catalog, third) == ()
    assert [row["text"] for row in rows_of(third)] == ["a cat", "no fish", "an ox", "a hen"]


def test_a_damaged_record_of_tasks_makes_them_run(catalog: Catalog) -> None:
    first = clean(collect(catalog, TEXTS[:2]), catalog)
    (first.path / "tasks.json").write_text("{")
    assert clean(collect(catalog, TEXTS), catalog).manifest.holders == ()
    assert damages(catalog, first) == ("tasks.json has 1 bytes and had " + f"{size_of_tasks(first):,}",)


def test_many_small_files_take_a_time_in_proportion_to_their_number(catalog: Catalog) -> None:
    parent = collect(catalog, TEXTS[:1])
    files = [ShardFile(f"shards/{n:05d}.parquet", "0" * 64, 1, 9, f"{n // 2:064x}", f"s/{n}") for n in range(30_000)]
    version = replace(parent, manifest=replace(parent.manifest, shards=tuple(files)), folders=defaultdict(Path))
    began = time.process_time()
    assert not is_compact(version)
    assert len(Compact((version,)).tasks()) == 1
    assert len({version.shards[n] for n in range(0, 30_000, 100)}) == 300
    with pytest.raises(DataError, match="is missing"):
        check_shards(version)
    assert time.process_time() - began < 5, "0.4 s here; a minute if it grows with the square"


def test_a_changed_record_of_tasks_is_not_believed(catalog: Catalog) -> None:
    first = clean(collect(catalog, TEXTS[:2]), catalog)
    tasks = first.path / "tasks.json"
    tasks.write_text(tasks.read_text().replace('{"seen":2}', '{"seen":3}').replace('{"seen": 2}', '{"seen": 3}'))
    assert tasks.stat().st_size == size_of_tasks(first)
    second = clean(collect(catalog, TEXTS), catalog)
    assert (second.manifest.facts, second.manifest.holders) == ({"seen": 6}, ())


def test_files_of_a_killed_call_that_another_version_has_meanwhile_do_not_stay(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = collect(catalog, TEXTS[:2]), collect(catalog, TEXTS)
    with monkeypatch.context() as patched:
        patched.setattr(execution, "seal_version", lambda *given: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            clean(parents[1], catalog)
    clean(parents[0], catalog)
    made = clean(parents[1], catalog)
    own = ["shards/00002-000.parquet", "dropped/00002-000.parquet"]
    assert own_names(made) == own
    assert {path.relative_to(made.path).as_posix() for path in made.path.rglob("*.parquet")} == {*own}


def test_a_step_reads_each_manifest_once(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the cost of a step does not grow with the square of the number of versions."""
    texts = [(f"text {number}", f"other {number}") for number in range(16)]

    def reads(count: int) -> int:
        for each in range(1, count):
            clean(collect(catalog, texts[:each]), catalog)
        parent, versions = collect(catalog, texts[:count]), len(catalog.versions("pets"))
        names: list[str] = []
        read, read_many = Store.read, Store.read_many
        with monkeypatch.context() as patched:
            patched.setattr(Store, "read", lambda store, name: names.append(name) or read(store, name))
            patched.setattr(Store, "read_many", lambda store, some: names.extend(some) or read_many(store, some))
            made = clean(parent, catalog)
        assert len(made.manifest.holders) == count - 1
        return len(names) - versions

    few, many = reads(4), reads(16)
    assert few >= 3
    assert many - few == 12, "the tasks of each of twelve versions"


def size_of_tasks(version: Version) -> int:
    return int(json.loads((version.path / "manifest.json").read_text())["descriptions"]["tasks.json"]["bytes"])


def test_places_outside_of_versions_are_refused(catalog: Catalog) -> None:
    """A stranger's manifest."""
    clean(collect(catalog, TEXTS[:2]), catalog)
    second = clean(collect(catalog, TEXTS), catalog)
    artifact = read_artifact(second.path, KIND, VERSION)
    name = second.manifest.shards[0].name
    for place in ("../../../etc/passwd", f"{'0' * 64}/../../secret", f"{'0' * 64}/", "0123/shards/a", f"{'0' * 64}//a"):
        notes = {**artifact.notes, "elsewhere": {name: place}}
        other = Artifact(KIND, VERSION, artifact.content, artifact.files, artifact.descriptions, notes)
        with pytest.raises(DamagedArtifact):
            parse_artifact(other.encode(), "it", KIND, VERSION)


def purge(catalog: Catalog, where: str) -> tuple[Erasure, Erasure]:
    """The plan of an erasure with --purge, and its result."""
    memory = LIMITS.memory_bytes
    plan, step = plan_erasure(catalog, None, "pets", where, purge=True, dry_run=False, memory_bytes=memory)
    return plan, erase(catalog, plan, step, LIMITS)


def test_a_purge_leaves_files_to_the_versions_that_stay(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep their names, rows and results of tasks."""
    gone = clean(collect(catalog, TEXTS[:2]), catalog)
    staying = [clean(collect(catalog, (TEXTS[0], (animal,))), catalog) for animal in ("a hen", "a cow")]
    assert [version.manifest.holders for version in staying] == [(gone.manifest.sha256,)] * 2
    rows = [rows_of(version) for version in staying]
    planned, done = purge(catalog, "text = 'no fish'")
    assert set(planned.rewritten) == {version.reference for version in staying}
    assert set(done.rewritten) == set(planned.rewritten)
    assert (done.made, done.remaining) == (None, ())
    assert not gone.path.exists()
    again = [catalog.open(version.reference) for version in staying]
    assert [rows_of(version) for version in again] == rows
    assert [damages(catalog, version) for version in again] == [(), ()]
    holders = {version.manifest.sha256: version.manifest.holders for version in again}
    (owner,) = (digest for digest, others in holders.items() if not others)
    assert set(holders.values()) == {(), (owner,)}, "one of them has the file, and the other refers to it"
    check_shards(again[0])
    ran: list[int] = []
    real = execution.run_task
    parent = collect(catalog, (TEXTS[0], ("a hen",), ("a cow", "a sheep")))
    monkeypatch.setattr(execution, "run_task", lambda *given: ran.append(given[-1]) or real(*given))
    clean(parent, catalog)
    assert ran == [2]


def test_an_erasure_writes_the_shards_with_a_row_to_erase(catalog: Catalog) -> None:
    """With --purge, the new version takes over the others before the versions that held them are deleted."""
    first = collect(catalog, TEXTS)
    memory = LIMITS.memory_bytes
    plan, step = plan_erasure(catalog, None, "pets", "text = 'a dog'", purge=False, dry_run=False, memory_bytes=memory)
    made = catalog.open(str(erase(catalog, plan, step, LIMITS).made))
    assert made.manifest.holders == (first.manifest.sha256,)
    assert own_names(made) == ["shards/00000-000.parquet", "dropped/00000-000.parquet"]
    _, done = purge(catalog, "text IN ('a dog', 'an ox')")
    latest = catalog.open("pets")
    assert (done.made, done.rewritten, done.remaining) == (latest.reference, (latest.reference,), ())
    assert catalog.versions("pets") == [latest.manifest.version]
    assert damages(catalog, latest) == ()
    assert [row["text"] for row in rows_of(latest)] == ["a cat", "a bird", "no fish", "an odd"]


def test_compact(catalog: Catalog) -> None:
    clean(collect(catalog, TEXTS[:2]), catalog)
    version = clean(collect(catalog, TEXTS), catalog)
    assert not is_compact(version)
    made = execute(Compact((version,)), "pets", catalog, LIMITS).version
    assert is_compact(made)
    assert [file.name for file in made.manifest.files] == ["shards/00000-000.parquet"]
    assert rows_of(made) == rows_of(version)
    assert made.manifest.made_by == version.manifest.step
    assert made.manifest.sources == version.manifest.sources
    assert damages(catalog, made) == ()


def test_files_are_added_to_a_compacted_version(tmp_path: Path) -> None:
    for number in range(3):
        write_rows(tmp_path, str(number), 5)
        with open(tmp_path / "raw" / f"{number}.jsonl", "a") as file:
            file.write("no JSON\n")
        made = add(tmp_path, "corpus", "raw").version
    catalog = open_catalog(str(tmp_path / "datasets"))
    compacted = execute(Compact((made,)), "corpus", catalog, LIMITS).version
    assert is_compact(compacted)
    assert (len(compacted.shards), len(compacted.quarantine)) == (1, 1)
    assert [row["source"] for row in quarantine_of(compacted)] == [f"raw/{number}.jsonl" for number in range(3)]
    assert add(tmp_path, "corpus", "raw").version.reference == compacted.reference, "it has all of these files"
    write_rows(tmp_path, "3", 5)
    more = add(tmp_path, "corpus", "raw").version
    assert more.manifest.holders == (compacted.manifest.sha256,)
    assert len(rows_of(more)) == 20


def own_bytes(version: Version) -> int:
    """Bytes of the files in the folder of a version."""
    return sum(path.stat().st_size for path in version.path.rglob("*"))


@pytest.mark.parametrize(
    ("files", "rows", "more"), [(2, 500, 10), pytest.param(8, 25_000, 1_000, marks=pytest.mark.slow)]
)
def test_what_new_rows_cost(tmp_path: Path, files: int, rows: int, more: int) -> None:
    """Each version of a data set with a few new rows has about their bytes, and the records of its tasks."""
    catalog = open_catalog(str(tmp_path / "datasets"))

    def steps() -> list[Version]:
        made = [add(tmp_path, "corpus", "raw").version]
        makers: list[Callable[[Version], Step]] = [
            lambda parent: Clean((parent,), (), None),
            lambda parent: Dedupe((parent,), None),
            lambda parent: Split((parent,), 0.1, 0.1, None),
        ]
        for make in makers:
            made.append(execute(make(made[-1]), "corpus", catalog, LIMITS).version)
        return made

    for number in range(files):
        write_rows(tmp_path, str(number), rows)
        add(tmp_path, "corpus", "raw")
    before = steps()
    write_rows(tmp_path, "more", more)
    after = steps()
    for old, new in zip(before, after, strict=True):
        assert new.manifest.rows == files * rows + more
        written = [file for file in new.manifest.shards if not file.holder]
        assert sum(file.rows for file in written) == more
        assert sum(file.bytes for file in written) < 4 * more / rows * old.manifest.bytes / files + 4_000
        assert own_bytes(new) < sum(file.bytes for file in written) + 110_000
        assert damages(catalog, new) == ()
    kept = {row["_row"]: row for row in rows_of(after[-1])}
    assert all(kept[row["_row"]] == row for row in rows_of(before[-1]))


@pytest.mark.parametrize("kind", ["memory", pytest.param("s3", marks=pytest.mark.slow)])
def test_a_remote_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Another machine copies what a version needs, and no more; a purge lets versions that stay take files over."""
    with s3_server(monkeypatch) if kind == "s3" else nullcontext():
        check_remote_root(open_catalog(f"{kind}://bucket/{tmp_path.name}"), tmp_path, monkeypatch)


class Traffic:
    """A layer before moto that counts Parquet files.

    Attributes:
        read, written: their bytes, by name.
    """

    def __init__(self) -> None:
        self.read: dict[str, int] = {}
        self.written: dict[str, int] = {}

    def wrapped(self, moto: Application) -> Application:
        def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Any:
            counts = {"GET": self.read, "PUT": self.written}.get(environ["REQUEST_METHOD"], {})
            name = environ["PATH_INFO"]
            if environ["REQUEST_METHOD"] == "PUT" and name.endswith(".parquet"):
                counts[name] = counts.get(name, 0) + int(environ["CONTENT_LENGTH"])
            done = list(moto(environ, start))
            if environ["REQUEST_METHOD"] == "GET" and name.endswith(".parquet"):
                counts[name] = counts.get(name, 0) + sum(map(len, done))
            return done

        return answer

    def clear(self) -> None:
        self.read.clear()
        self.written.clear()


@pytest.mark.slow
@pytest.mark.representative("new rows of a bucket")
def test_what_new_rows_of_a_bucket_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine reads no file back that it wrote, another one reads what its tasks need, once."""
    traffic = Traffic()
    with s3_server(monkeypatch, traffic.wrapped):
        catalog = open_catalog("s3://bucket/datasets")

        def steps(count: int) -> list[Version]:
            names = [f"raw/{number}.jsonl" for number in range(count)]
            made = [add(tmp_path, "corpus", *names, catalog=catalog).version]
            makers: list[Callable[[Version], Step]] = [
                lambda parent: Clean((parent,), (), None),
                lambda parent: Dedupe((parent,), None),
                lambda parent: Split((parent,), 0.1, 0.1, None),
            ]
            for make in makers:
                made.append(execute(make(made[-1]), "corpus", catalog, LIMITS).version)
            return made

        monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "first"))
        for number in range(6):
            write_rows(tmp_path, str(number), 300)
        for count in (2, 4):
            steps(count)
        assert traffic.read == traffic.written, "a copy is compared when it has arrived"
        whole = sum(traffic.written.values())
        write_rows(tmp_path, "4", 20)
        traffic.clear()
        after = steps(5)
        assert traffic.read == traffic.written
        assert sum(traffic.written.values()) < whole / 5
        assert [made.manifest.rows for made in after] == [4 * 300 + 20] * 4

        monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "second"))
        traffic.clear()
        again = steps(5)
        assert [made.reference for made in again] == [made.reference for made in after]
        assert (traffic.read, traffic.written) == ({}, {}), "what is there is not copied"
        write_rows(tmp_path, "5", 20)
        parent = add(tmp_path, "corpus", *(f"raw/{number}.jsonl" for number in range(6)), catalog=catalog).version
        execute(Clean((parent,), (), None), "corpus", catalog, LIMITS)
        others = {name: size for name, size in traffic.read.items() if name not in traffic.written}
        assert sum(others.values()) < 2_000, "the smallest shard, for the columns"
        traffic.clear()
        shards = {f"/bucket/datasets/corpus/{one}" for one in stored_names(again[1])}
        dedupe = execute(Dedupe((again[1],), None), "other", catalog, LIMITS).version
        read = traffic.read.keys() - traffic.written.keys()
        assert read == shards, "its digests need all rows"
        assert {name: traffic.read[name] for name in read} == {name: catalog.store.fs.size(name) for name in read}
        traffic.clear()
        assert len(rows_of(dedupe)) == 4 * 300 + 20
        assert rows_of(catalog.open(after[1].reference))
        assert traffic.read == {}


def stored_names(version: Version) -> list[str]:
    """The places of the shards of a version below its data set."""
    own = version.manifest.sha256
    return [f"{short(one.holder or own)}/{one.stored_as or one.name}" for one in version.manifest.shards]


def check_remote_root(catalog: Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFX_CACHE_DIR", str(folder / "first"))
    first = clean(collect(catalog, TEXTS[:2]), catalog)
    second = clean(collect(catalog, (TEXTS[0], ("a hen",))), catalog)
    assert second.manifest.holders == (first.manifest.sha256,)
    assert damages(catalog, second) == ()
    stored = catalog.store.files(f"pets/{second.manifest.version}/shards")
    assert stored == ["00001-000.parquet"]
    monkeypatch.setenv("AIFX_CACHE_DIR", str(folder / "second"))
    copy = catalog.open("pets")
    assert [row["text"] for row in rows_of(copy)] == ["a cat", "a hen"]
    held = folder / "second" / "datasets" / first.manifest.sha256
    assert [str(path.relative_to(held)) for path in held.rglob("*.parquet")] == ["shards/00000-000.parquet"]
    _, done = purge(catalog, "text = 'no fish'")
    assert done.rewritten == (second.reference,)
    assert damages(catalog, catalog.open("pets")) == ()
    assert catalog.manifest("pets").holders == ()
    assert [row["text"] for row in rows_of(catalog.open("pets"))] == ["a cat", "a hen"]
    catalog.store.remove(f"pets/{second.manifest.version}/shards/00000-000.parquet")
    monkeypatch.setenv("AIFX_CACHE_DIR", str(folder / "third"))
    with pytest.raises(DataError, match="is damaged"):
        list(catalog.open("pets").shards)
