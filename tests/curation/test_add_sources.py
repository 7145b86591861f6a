"""Which files `aifx data add` reads: new and changed ones, of folders, globs and stores; and which it refuses."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import inprocess
import pyarrow as pa
import pytest
from adding import LIMITS, add, quarantine_of, rows_of
from pyarrow import parquet
from s3_server import s3_server

from aifx.core import stores
from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project
from aifx.curation.add_plan import plan_add, refusal, run_add
from aifx.curation.adding import Add
from aifx.data.readers import columnar, streams
from aifx.data.readers.base import ReadOptions
from aifx.data.readers.documents import find_files
from aifx.data.readers.sources import list_sources
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.manifest import Version


def write_lines(path: Path, *records: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def row_set(version: Version) -> set[str]:
    return {json.dumps(row, sort_keys=True) for row in rows_of(version)}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("a text\n")
    write_lines(tmp_path / "b.jsonl", {"text": "b 1", "n": 1}, {"text": "b 2", "n": 2}, {"n": 3})
    write_lines(tmp_path / "c.jsonl", {"text": "c", "n": 1.5, "more": {"x": []}})
    return tmp_path


def test_the_rows_do_not_depend_on_the_call(corpus: Path) -> None:
    at_once = add(corpus, "one", "c.jsonl", "b.jsonl", "a.txt").version
    for source in ("b.jsonl", "a.txt", "c.jsonl"):
        by_turns = add(corpus, "turns", source).version
    assert row_set(at_once) == row_set(by_turns)
    assert quarantine_of(at_once) == quarantine_of(by_turns)
    assert at_once.manifest.sources == by_turns.manifest.sources
    assert at_once.manifest.columns["n"] == "double"


def test_only_new_and_changed_files_are_read(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Add._read

    def reading(self: Add, file: Any, *args: Any) -> Any:
        read.append(file.name)
        return original(self, file, *args)

    monkeypatch.setattr(Add, "_read", reading)
    first = add(corpus, "corpus", "a.txt", "b.jsonl").version
    assert not add(corpus, "corpus", "a.txt", "b.jsonl").is_new
    assert read == ["a.txt", "b.jsonl"]
    os.utime(corpus / "a.txt", ns=(0, 0))
    write_lines(corpus / "b.jsonl", {"text": "b 1", "n": 1})
    changed = add(corpus, "corpus", "b.jsonl", "a.txt", "c.jsonl").version
    assert read == ["a.txt", "b.jsonl", "b.jsonl", "c.jsonl"]
    assert changed.manifest.parents == (first.manifest.whole_reference,)
    assert {(row["_source"], row["text"]) for row in rows_of(changed)} == {
        ("a.txt", "a text\n"),
        ("b.jsonl", "b 1"),
        ("c.jsonl", "c"),
    }
    assert not quarantine_of(changed)
    other = add(corpus, "corpus", "b.jsonl", text_field="n", kind="text")
    assert other.version.manifest.rows == 2


def test_a_licence_may_change_alone(corpus: Path) -> None:
    add(corpus, "corpus", "a.txt", "b.jsonl")
    catalog = open_catalog(str(corpus / "datasets"))
    plan = plan_add(catalog, "corpus", list_sources([str(corpus / "a.txt")], corpus), ReadOptions("text"), "CC0-1.0")
    assert plan.step is not None
    assert not plan.step.files
    version = run_add(plan, "corpus", catalog, LIMITS).version
    assert {source.name: source.license for source in version.manifest.sources} == {
        "a.txt": "CC0-1.0",
        "b.jsonl": "MIT",
    }
    assert version.manifest.rows == 3


def test_a_column_that_begins_late(tmp_path: Path) -> None:
    """It is beyond what is read to infer the columns, as is the first number with a fraction."""
    long = "word " * 1000
    records: list[dict[str, Any]] = [{"text": long, "n": 1, "inner": {"a": 1}} for _ in range(1000)]
    records += [{"text": "late", "n": 0.5, "inner": {"a": None, "b": ["x"]}, "new": True}]
    write_lines(tmp_path / "a.jsonl", *records)
    lines = ["text,n,z", *[f"{long},1,7" for _ in range(1000)], "late,0.5,007"]
    (tmp_path / "b.csv").write_text("\n".join(lines))
    version = add(tmp_path, "corpus", "a.jsonl", "b.csv").version
    found = rows_of(version)
    assert len(found) == 2002
    assert (found[1000]["n"], found[1000]["inner"], found[1000]["new"]) == (0.5, {"a": None, "b": ["x"]}, True)
    assert (found[2001]["n"], found[2001]["z"], found[2000]["z"]) == (0.5, "007", "7")
    assert not list((tmp_path / "datasets").rglob(".work*"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compression_is_named(tmp_path: Path, suffix: str) -> None:
    data = b"".join(b'{"text": "line %d"}\n' % n for n in range(10_000))
    packed = gzip.compress(data) if suffix == ".gz" else pa.compress(data, "zstd", asbytes=True)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed[:-100])
    (tmp_path / "b.txt").write_text("whole")
    version = add(tmp_path, "corpus", f"a.jsonl{suffix}", "b.txt").version
    assert version.manifest.facts["damaged_files"] == 1
    assert "--allow-damaged" in refusal(version.manifest, 0.01, allows_damaged=False)
    assert not refusal(version.manifest, 0.01, allows_damaged=True)
    (row,) = quarantine_of(version)
    assert (row["source"], row["line"]) == (f"a.jsonl{suffix}", None)
    assert "b.txt" in {row["_source"] for row in rows_of(version)}


@pytest.mark.slow
def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "SMALL_EXPANSION", 1 << 20)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"\n" * (64 << 20)))
    (tmp_path / "bomb.jsonl.zst").write_bytes(pa.compress(b'{"text": "x"}\n' * (4 << 20), "zstd", asbytes=True))
    version = add(tmp_path, "corpus", "bomb.txt.gz", "bomb.jsonl.zst").version
    found = {row["source"]: row["reason"] for row in quarantine_of(version)}
    assert set(found) == {"bomb.txt.gz", "bomb.jsonl.zst"}
    assert all("100 times its size" in reason for reason in found.values())
    assert version.manifest.facts["damaged_files"] == 2
    allowed = add(tmp_path, "corpus2", "bomb.jsonl.zst", max_expansion=1e6).version
    assert allowed.manifest.rows == 4 << 20


@pytest.mark.parametrize(
    ("encoding", "given"), [("utf-8-sig", "utf-8"), ("utf-16", "utf-8"), ("utf-32", "utf-8"), ("cp1252", "cp1252")]
)
def test_encodings(tmp_path: Path, encoding: str, given: str) -> None:
    (tmp_path / "a.txt").write_bytes("naïve\r\ntext €".encode(encoding))
    (tmp_path / "b.jsonl").write_bytes('{"text": "naïve €"}\n{"text": "zwei"}\n'.encode(encoding))
    (tmp_path / "c.csv").write_bytes("text\nnaïve €\n".encode(encoding))
    version = add(tmp_path, "corpus", "a.txt", "b.jsonl", "c.csv", encoding=given).version
    assert [row["text"] for row in rows_of(version)] == ["naïve\r\ntext €", "naïve €", "zwei", "naïve €"]


def test_what_is_not_in_the_encoding_is_in_quarantine(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "b.jsonl").write_bytes('{"text": "a"}\n'.encode("utf-16") + b"\x00")
    (tmp_path / "c.txt").write_bytes(b"one\ntwo\x81")
    (bad,) = quarantine_of(add(tmp_path, "c8", "a.txt").version)
    assert "0xef" in bad["reason"]
    assert "UTF-8" in bad["reason"]
    version = add(tmp_path, "c16", "b.jsonl").version
    assert ([row["text"] for row in rows_of(version)], len(quarantine_of(version))) == (["a"], 1)
    (bad,) = quarantine_of(add(tmp_path, "c1252", "c.txt", encoding="cp1252").version)
    assert (bad["line"], bad["value"]) == (2, b"one\ntwo\x81")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_document_of_any_size_is_a_row_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """It was cut into rows of 32 MiB. One beyond the limit of a row is refused, and never cut."""
    monkeypatch.setattr(columnar, "FILL_BYTES", 100)
    content = "".join(f"line {n} é\n" for n in range(100)) + "é" * 333
    data = content.encode()
    (tmp_path / f"a.txt{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    (row,) = rows_of(add(tmp_path, "corpus", f"a.txt{suffix}").version)
    assert row["text"] == content
    monkeypatch.setattr(columnar, "ROW_BYTES", len(data) - 1)
    version = add(tmp_path, "large", f"a.txt{suffix}").version
    (damage,) = quarantine_of(version)
    assert (version.manifest.rows, version.manifest.facts["damaged_files"], damage["line"]) == (0, 1, 1)
    assert "--split-at" in damage["reason"]
    assert len(rows_of(add(tmp_path, "parts", f"a.txt{suffix}", split_at="^line").version)) == 100


@pytest.mark.parametrize("name", ["model.pkl", "weights.pt", "array.npy", "text.pdf", "noname"])
def test_files_without_a_reader_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=name):
        list_sources([str(tmp_path / name)], tmp_path)
    assert list_sources([str(tmp_path)], tmp_path).left_out == (name,)


@pytest.mark.parametrize(
    "url", ["reference://a.jsonl", "reference://*.jsonl", "dir://a.jsonl", "generic://a.jsonl", "tar://a.jsonl"]
)
def test_a_url_is_not_all_that_some_file_systems_need(tmp_path: Path, url: str) -> None:
    for command in (["add", "corpus", url, "--license", "MIT", "--root", "datasets"], ["ls", "--root", url]):
        done = inprocess.run(["data", *command], tmp_path, {})
        assert (done.returncode, f"aifx cannot open {url}" in done.stderr) == (2, True), done.stderr


def test_what_is_not_utf8_or_not_a_url_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    add(tmp_path, "corpus", "a.jsonl")
    new = ["add", "new", "a.jsonl", "--license", "MIT", "--kind", "text"]
    for command in (
        [*new, "--encoding", "\udcff"],
        [*new, "--split-at", "\udcff"],
        [*new, "--text-field", "\udcff"],
        ["decontaminate", "corpus", "--against", "a.jsonl", "--text-field", "\udcff"],
        ["query", "corpus", "SELECT '\udcff'"],
        ["erase", "corpus", "--where", "text = '\udcff'"],
        ["add", "new", "http://[::1", "--license", "MIT"],
    ):
        done = inprocess.run(["data", *command, "--root", "datasets"], tmp_path, {})
        assert done.returncode == 2, done.stderr


def test_an_installed_file_system_that_fails_is_not_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stores._INSTALLS, "ftp", "pip install ftp")
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
    with pytest.raises(UsageError) as refused:
        stores.open_store(f"ftp://127.0.0.1:{port}/data")
    assert "install" not in refused.value.hint


def test_odd_files_of_folders(tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "a.txt").write_text("a")
    (tmp_path / "data" / "deep" / "b.txt").write_text("b")
    (tmp_path / "data" / ".hidden.txt").write_text("hidden")
    (tmp_path / "data" / "deep" / "up").symlink_to(tmp_path / "data", target_is_directory=True)
    os.mkfifo(tmp_path / "data" / "pipe.txt")
    listing = list_sources([str(tmp_path / "data"), str(tmp_path / "data" / "a.txt")], tmp_path)
    assert [file.name for file in listing.files] == ["data/a.txt", "data/deep/b.txt"]
    assert listing.left_out == ("data/pipe.txt",)
    listing = list_sources([str(tmp_path / "data" / "**" / "*.txt")], tmp_path)
    assert (listing.files[0].name, listing.left_out) == ("data/a.txt", ("data/pipe.txt",))
    with pytest.raises(UsageError, match="not a regular file"):
        list_sources([str(tmp_path / "data" / "pipe.txt")], tmp_path)
    (tmp_path / "data" / "gone.txt").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"gone\.txt cannot be read"):
        list_sources([str(tmp_path / "data")], tmp_path)
    for missing in ("nothing.txt", "*.nothing"):
        with pytest.raises(UsageError):
            list_sources([str(tmp_path / missing)], tmp_path)


def test_links_that_make_loops(tmp_path: Path) -> None:
    """glob.glob goes round two of them for ever. A folder has the name that is nearest to the top."""
    folders = [tmp_path / "data" / name for name in ("a", "b/c")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "text.txt").write_text(folder.name)
        for name in ("up", "again", "once more"):
            (folder / name).symlink_to(tmp_path / "data", target_is_directory=True)
    names = ["data/a/text.txt", "data/b/c/text.txt"]
    for pattern in ("data/**/*.txt", "**/*.txt", "data/**", "**/c/**/*.txt", "data/*/**/text.txt"):
        expected = ["data/b/c/again/a/text.txt", names[1]] if "/c/" in pattern else names
        listed = list_sources([str(tmp_path / pattern)], tmp_path).files
        assert [file.name for file in listed] == expected, pattern
        found = find_files([pattern], Project(tmp_path), "data.train")
        assert [file.name for file in found] == expected, pattern


def test_columns_that_do_not_fit(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "a", "n": 1})
    write_lines(tmp_path / "b.jsonl", {"text": "b", "n": "one"})
    with pytest.raises(DataError, match=r"b\.jsonl: .*'n'.* string"):
        add(tmp_path, "corpus", "a.jsonl", "b.jsonl")
    parquet.write_table(pa.table({"body": ["x"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet .*'text'"):
        add(tmp_path, "corpus", "a.jsonl", "c.parquet")
    write_lines(tmp_path / "d.jsonl", {"text": "a", "_row": 1})
    with pytest.raises(DataError, match=r"d\.jsonl .*_row"):
        add(tmp_path, "corpus", "d.jsonl")
    assert open_catalog(str(tmp_path / "datasets")).names() == []
    assert rows_of(add(tmp_path, "corpus", "c.parquet", text_field="body").version)[0]["text"] == "x"


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    catalog = open_catalog(str(tmp_path / "datasets"))
    plan = plan_add(catalog, "c", list_sources([str(tmp_path / "a.txt")], tmp_path), ReadOptions("text"), "MIT")
    (tmp_path / "a.txt").write_text("another")
    with pytest.raises(DataError, match=r"a\.txt changed"):
        run_add(plan, "c", catalog, LIMITS)
    assert catalog.names() == []


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with s3_server(monkeypatch) as files:
        yield files


@pytest.mark.slow
def test_sources_and_root_in_a_store(s3: Any, corpus: Path) -> None:
    for name in ("a.txt", "b.jsonl"):
        s3.put(str(corpus / name), f"bucket/raw/{name}")
    s3.pipe_file("bucket/raw/z.csv.gz", gzip.compress(b"text,n\nzipped,4\n"))
    catalog = open_catalog("s3://bucket/datasets")

    def add_from(*urls: str) -> Any:
        plan = plan_add(catalog, "corpus", list_sources(urls, corpus), ReadOptions("text"), "MIT")
        return plan, run_add(plan, "corpus", catalog, LIMITS)

    _, made = add_from("s3://bucket/raw/")
    assert {row["_source"] for row in rows_of(made.version)} == {
        f"s3://bucket/raw/{name}" for name in ("a.txt", "b.jsonl", "z.csv.gz")
    }
    assert made.version.manifest.rows == 4
    assert s3.exists(f"bucket/datasets/corpus/{made.version.manifest.version}/manifest.json")
    plan, again = add_from("s3://bucket/raw/*", "s3://bucket/raw/a.txt")
    assert (plan.step, again.is_new) == (None, False)
    s3.pipe_file("bucket/raw/a.txt", b"another text")
    plan, changed = add_from("s3://bucket/raw")
    assert [file.name for file in plan.step.files] == ["s3://bucket/raw/a.txt"]
    assert "another text" in {row["text"] for row in rows_of(changed.version)}
    with pytest.raises(UsageError, match="no file"):
        list_sources(["s3://bucket/nothing"], corpus)


def test_a_url_is_stored_without_secrets(tmp_path: Path) -> None:
    class Protected(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            expected = "Basic " + base64.b64encode(b"me:hush").decode()
            if self.headers.get("Authorization") != expected or "token=hush" not in self.path:
                self.send_error(403)
            else:
                super().do_GET()

        do_HEAD = do_GET  # type: ignore[assignment]

        def log_message(self, *args: Any) -> None:
            pass

    (tmp_path / "a.txt").write_text("from a server")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Protected, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        catalog = open_catalog(str(tmp_path / "datasets"))
        listing = list_sources([f"http://me:hush@127.0.0.1:{port}/a.txt?dir=x/y&token=hush"], tmp_path)
        version = run_add(plan_add(catalog, "c", listing, ReadOptions("text"), "MIT"), "c", catalog, LIMITS).version
        server.shutdown()
    assert [row["text"] for row in rows_of(version)] == ["from a server"]
    assert [source.name for source in version.manifest.sources] == [f"http://127.0.0.1:{port}/a.txt"]
    for path in (tmp_path / "datasets").rglob("*"):
        assert path.is_dir() or b"hush" not in path.read_bytes()


def test_objects_without_fields(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"text": "a", "meta": {}, "deep": {"x": {}, "y": 1}, "list": [{}]})
    version = add(tmp_path, "corpus", "a.jsonl").version
    assert [row["text"] for row in rows_of(version)] == ["a"]
    write_lines(tmp_path / "b.jsonl", {"text": "b", "meta": {"k": 1}, "deep": {"x": {"z": 2}}, "list": [{"w": 3}]})
    row = rows_of(add(tmp_path, "corpus", "b.jsonl").version)[1]
    assert (row["meta"], row["deep"], row["list"]) == ({"k": 1}, {"x": {"z": 2}, "y": None}, [{"w": 3}])


def test_files_whose_rows_would_have_the_same_ids(tmp_path: Path) -> None:
    """The first 12 digits of these two names' digests, with this content, are the same."""
    names = ("18014383.txt", "31316016.txt")
    for name in (*names, "other.txt"):
        (tmp_path / name).write_text("a\n")
    first = add(tmp_path, "pets", names[0], "other.txt").version
    with pytest.raises(DataError, match=r"31316016\.txt cannot be added beside 18014383\.txt"):
        add(tmp_path, "pets", names[1])
    assert open_catalog(str(tmp_path / "datasets")).manifest("pets") == first.manifest
    (tmp_path / names[1]).rename(tmp_path / "renamed.txt")
    ids = [row["_row"] for row in rows_of(add(tmp_path, "pets", "renamed.txt").version)]
    assert (ids[0], len(set(ids))) == ("284853d9346e-0", 3)
