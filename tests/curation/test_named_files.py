"""Files that aifx.toml names, as `aifx data verify`, `why`, `erase` and `gc` reach them: implicit versions."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

import inprocess
import numpy as np
import pytest
from adding import LIMITS, add
from PIL import Image
from prose import prose

from aifx.core import file_states
from aifx.core.artifact import UNFINISHED
from aifx.core.digests import sha256_of_json
from aifx.core.errors import DataError, UsageError
from aifx.core.file_states import FileState
from aifx.core.project import Project, cache_path
from aifx.curation.erasure import Erasure, plan_file_erasure, purge_caches
from aifx.curation.named_files import named_rows
from aifx.curation.reports import show_files, show_version, verify_files
from aifx.curation.row_history import explain_row
from aifx.data import columns, corpus, file_index
from aifx.data.base import DataFormat
from aifx.data.chat.format import ChatFormat
from aifx.data.chat.section import ChatSection
from aifx.data.file_index import find_implicit
from aifx.data.images import ImageFormat
from aifx.data.readers.documents import scan_file
from aifx.data.readers.encodings import FileScan
from aifx.data.readers.rows import Row
from aifx.data.readers.sources import SourceFile
from aifx.data.row_cache import read_checked, write_checked
from aifx.data.sections import DatasetSection, ImagesSection, SeriesSection, TableSection, TextSection
from aifx.data.series import SeriesFormat
from aifx.data.table import TableFormat
from aifx.data.text import TextFormat
from aifx.data.versions.catalog import Catalog, open_catalog
from aifx.tasks.base import Task
from aifx.tasks.registry import open_task
from aifx.training import prepare

SECRET = "jane@example.org"
SECTION = TextSection(train=("texts/*",), test=("held-out.jsonl",), seq_len=16, vocab_size=300)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Files of text, one of them with the secret in line 3, its second row."""
    monkeypatch.setenv("AIFX_CACHE_DIR", str(tmp_path / "cache"))
    root = tmp_path / "project"
    (root / "texts").mkdir(parents=True)
    (root / "aifx.toml").write_text('[data]\nkind = "text"\ntrain = ["texts/*"]\n')
    (root / "texts/a.txt").write_text(prose(3000))
    lines = [json.dumps({"text": prose(300, seed)}) for seed in (1, 2)]
    lines[1:1] = ["", json.dumps({"text": f"write to {SECRET}"})]
    (root / "texts/b.jsonl").write_text("\n".join(lines))
    (root / "held-out.jsonl").write_text(json.dumps({"text": prose(300, 3)}))
    return Project(root)


def made_folder(path: Path) -> Path:
    path.mkdir()
    return path


def catalog_of(project: Project) -> Catalog:
    return open_catalog(str(project.root / "datasets"))


def files_with(folder: Path, text: str) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_versions_of_the_keys_that_name_files(project: Project) -> None:
    found = SECTION.named_files(project)
    assert {key: [file.name for file in files] for key, files in found.items()} == {
        "data.train": ["texts/a.txt", "texts/b.jsonl"],
        "data.test": ["held-out.jsonl"],
    }
    train = find_implicit("data.train", SECTION, project)
    assert train.record() == {"sha256": train.sha256, "files": 2}
    assert train.sha256 == sha256_of_json([[file.name, scan_file(file, "text").digest] for file in train.files])
    (project.root / "texts/a.txt").write_text(prose(3000, 9))
    assert find_implicit("data.train", SECTION, project).sha256 != train.sha256
    (project.root / "table.csv").write_text("x,target\n1,2\n")
    assert TableSection(path="table.csv").named_files(project).keys() == {"data.path"}
    assert not TextSection(dataset="corpus").named_files(project)
    assert not ImagesSection(dataset="pictures").named_files(project)
    with pytest.raises(UsageError, match=r"data\.validation"):
        find_implicit("data.validation", SECTION, project)


def test_a_data_set_names_the_files_as_they_were_read(project: Project) -> None:
    """Provenance has them. Later changes are not what the run has learned from."""
    (project.root / "texts/empty.txt").touch()
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (project.root / "chats.jsonl").write_text("\n".join([json.dumps({"messages": chat})] * 9))
    (project.root / "table.csv").write_text("x,target\n" + "".join(f"{x},{x % 2}\n" for x in range(50)))
    days = (f"2024-{month:02}-{day:02},{day}\n" for month in range(1, 9) for day in range(1, 29))
    (project.root / "series.csv").write_text("time,value\n" + "".join(days))
    chats = ChatSection(train=("chats.jsonl",), tokenizer="byte", validation_fraction=0.0, test_fraction=0.0)
    table, series = TableSection(path="table.csv", target="target"), SeriesSection(path="series.csv", horizon=2)
    kinds: dict[type[DataFormat], DatasetSection] = {
        TextFormat: SECTION,
        ChatFormat: chats,
        TableFormat: table,
        SeriesFormat: series,
    }
    opened: list[Any] = [
        form.open(section, project, made_folder(project.root / form.__name__))[1] for form, section in kinds.items()
    ]
    versions = [
        {key: find_implicit(key, section, project) for key in section.named_files(project)}
        for section in kinds.values()
    ]
    for path in (*(project.root / "texts").iterdir(), *project.root.glob("*.*")):
        path.write_text("others")
    assert [data.file_versions for data in opened] == versions
    assert versions[0].keys() == {"data.train", "data.test"}


@pytest.mark.parametrize("form", [TableFormat, SeriesFormat])
def test_a_table_that_changes_while_it_is_read_is_refused(
    project: Project, form: type[DataFormat], monkeypatch: pytest.MonkeyPatch
) -> None:
    section = TableSection(path="a.csv", target="value") if form is TableFormat else SeriesSection(path="a.csv")
    lines = "".join(f"2024-01-{day:02},{day}\n" for day in range(1, 29))
    path = project.root / "a.csv"
    path.write_text(f"time,value\n{lines}")
    read_rows = columns.read_rows

    def edited(file: SourceFile) -> Iterator[Row]:
        for row in read_rows(file):
            yield row
            path.write_text(f"time,value\n{lines}2024-02-01,1\n")

    monkeypatch.setattr(columns, "read_rows", edited)
    with pytest.raises(DataError, match=r"^a\.csv changed"):
        form.open(section, project, made_folder(project.root / "assets"))


def test_a_name_near_a_key_suggests_the_key(project: Project) -> None:
    for command in ("show", "verify"):
        refused = inprocess.run(["data", command, "data.trian"], project.root, dict(os.environ))
        assert refused.returncode == 2
        assert "no data set 'data.trian'" in refused.stderr
        assert "did you mean 'data.train'?" in refused.stderr
        assert "aifx data show data.train" in refused.stderr


def test_verify_compares_files_with_a_version_of_them(project: Project) -> None:
    whole = verify_files("data.train", SECTION, project)
    assert (whole.files, whole.unread, whole.damages) == (2, 0, ())
    assert whole.size_bytes == sum(path.stat().st_size for path in (project.root / "texts").iterdir())
    assert not verify_files(whole.reference, SECTION, project).damages
    for digits in ("", "xyz", "0" * 65):
        with pytest.raises(UsageError, match="names no version"):
            verify_files(f"data.train@{digits}", SECTION, project)
    (project.root / "texts/a.txt").write_text("others")
    assert not verify_files("data.train", SECTION, project).damages, "the user may edit it"
    assert verify_files(whole.reference, SECTION, project).damages


def test_verify_finds_what_size_and_times_do_not_show(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as bits that decay on the disk. Afterwards, training reads what is there."""
    monkeypatch.setattr(file_states, "SETTLED_NS", -(10**15))
    before = find_implicit("data.train", SECTION, project)
    path = project.root / "texts/a.txt"
    path.write_text(prose(3000, 9))
    (index,) = cache_path("files").iterdir()
    rows = json.loads(bytes(read_checked(index)))
    state = FileState.of(str(path))
    for row in rows:
        if row[0] == str(path):
            row[-1] = astuple(state)
    write_checked(index, json.dumps(rows).encode())
    assert find_implicit("data.train", SECTION, project).sha256 == before.sha256, "the index is believed"
    (damage,) = verify_files("data.train", SECTION, project).damages
    assert damage.startswith("texts/a.txt ")
    assert find_implicit("data.train", SECTION, project).sha256 != before.sha256
    assert not verify_files("data.train", SECTION, project).damages


def test_why_finds_a_row_of_the_files(project: Project) -> None:
    with named_rows("data.train", SECTION, project) as (name, files):
        (by_place,) = explain_row(files, "texts/b.jsonl:2", None, [name]).histories
        (by_text,) = explain_row(files, None, SECRET.upper(), [name]).histories
    assert by_place == by_text
    assert (by_place.source, by_place.number) == ("texts/b.jsonl", 2)
    added = add(project.root, "corpus", "texts").version
    assert by_place.row in {row["_row"] for row in read_rows(added.shards[0])}, "the id of `aifx data add`"
    assert by_place.reference == find_implicit("data.train", SECTION, project).reference, "as `verify` names it"
    assert not list((cache_path() / "named-files").iterdir())


def test_erase_finds_versions_that_hold_rows_behind_an_empty_line(project: Project) -> None:
    (project.root / "table.csv").write_text("name,label\nA,0\nB,1\n\nC,0\n")
    added = add(project.root, "table", "table.csv", kind="table").version
    found = erasure(project, TableSection(path="table.csv"), "label = 0")
    assert (found.places, [(one.reference, one.rows) for one in found.held_by]) == (
        ("table.csv:2", "table.csv:5"),
        [(added.reference, 2)],
    )


def test_why_finds_a_conversation_of_the_files(project: Project) -> None:
    chat = {"messages": [{"role": "user", "content": f"write to {SECRET}"}, {"role": "assistant", "content": "done"}]}
    (project.root / "chats.jsonl").write_text(json.dumps(chat))
    section = ChatSection(train=("chats.jsonl",))
    with named_rows("data.train", section, project) as (name, files):
        assert files.manifest(name).kind == "chat"
        (row,) = explain_row(files, None, SECRET, [name]).rows
    assert row.source == "chats.jsonl"
    where = f"contains(chat, '{SECRET}')"
    plan = plan_file_erasure(
        "data.train",
        section,
        project,
        catalog_of(project),
        where,
        purge=False,
        dry_run=False,
        memory_bytes=LIMITS.memory_bytes,
    )
    assert (plan.places, plan.purged) == (("chats.jsonl:1",), ())


def erasure(project: Project, section: DatasetSection, where: str, *, purge: bool = False) -> Erasure:
    key = "data.path" if isinstance(section, TableSection | ImagesSection) else "data.train"
    how = {"purge": purge, "dry_run": False, "memory_bytes": LIMITS.memory_bytes}
    return plan_file_erasure(key, section, project, catalog_of(project), where, **how)  # type: ignore[arg-type]


BAD_ROWS = b"""{"text": "one", "id": 7, "_row": "x"}
{"text": "Smith h\xffre", "id": 8}

{"text": "Smith", "id": "letter-7", "text_1": "\\udc00"}
{"text": "Smith", "id": 1, "id": 1}
{"text": "Smith", "score": 1e999}
{"text": ""}
{"text": "Smith", "nested": {"by": "J\\u00fcrgen"}}
"""


@pytest.mark.parametrize(
    ("name", "content", "where", "places"),
    [
        ("a.jsonl", BAD_ROWS, "contains(text, 'Smith')", [":2", ":4", ":5", ":6", ":8"]),
        ("a.jsonl", BAD_ROWS, "id = '8' OR id = 'letter-7' OR nested->>'by' = 'J\u00fcrgen'", [":2", ":4", ":8"]),
        ("a.jsonl", BAD_ROWS, "_row_1 = 'x' OR score > 9", [":1", ":6"]),
        ("a.csv", b'text,n\nAnna,1\n\n"Smith\ntwo lines",2\nBob,3\nSmith solo,4\n', "text ^@ 'Smith'", [":4", ":7"]),
        ("a.csv", b"text;n\nSmith;1\ntwo;\nthree;1.5\n", "n >= 1.5 OR n IS NULL", [":3", ":4"]),
        ("a.tsv", b"text\tn\nSmith\t007\n", "n = '007'", [":2"]),
        ("a.txt", b"caf\xe9 Smith", "contains(text, 'Smith')", [""]),
    ],
    ids=["bad rows", "mixed types", "names and numbers", "blank line", "semicolons", "leading zeros", "not UTF-8"],
)
def test_erase_finds_each_row_that_training_reads(
    project: Project, name: str, content: bytes, where: str, places: list[str]
) -> None:
    (project.root / name).write_bytes(content)
    section = TextSection(train=(name,), errors="replace")
    found = erasure(project, section, where)
    assert found.places == tuple(f"{name}{place}" for place in places)
    assert found.rows == len(places)


def test_erase_reads_parquet_as_training_does(project: Project) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    by = pa.array([b"J\xfcrgen", b"Smith"]).view(pa.string())
    texts = pa.array([b"Smith h\xffre", b"other"]).view(pa.string())
    parquet.write_table(pa.table({"body": texts, "author": by, "n": [1, 2]}), project.root / "a.parquet")
    section = TextSection(train=("a.parquet",), text_field="body", errors="replace")
    where = "contains(text, 'Smith') OR (author = 'Smith' AND n = 2)"
    assert erasure(project, section, where).places == ("a.parquet: row 1", "a.parquet: row 2")


def test_erase_finds_each_conversation_that_training_reads(project: Project) -> None:
    rows = [
        '{"prompt": "hi", "completion": "J\\u00fcrgen", "completion": "J\\u00fcrgen"}',
        '{"prompt": "hi", "completion": "J\\u00fcrgen", "_row": 1, "other": "\\udc00"}',
        '{"prompt": "hi", "completion": "Anna"}',
    ]
    (project.root / "chats.jsonl").write_text("\n\n".join(rows))
    found = erasure(project, ChatSection(train=("chats.jsonl",)), "contains(chat, 'J\u00fcrgen')")
    assert found.places == ("chats.jsonl:1", "chats.jsonl:3")


def test_erase_reads_tables_as_training_does(project: Project) -> None:
    (project.root / "table.csv").write_text("name;label\nA;0\n\nB;1\nC;0\n")
    assert erasure(project, TableSection(path="table.csv"), "label = 0").places == ("table.csv:2", "table.csv:5")


def test_what_training_cannot_read_is_an_error(project: Project) -> None:
    packed = gzip.compress(json.dumps({"text": SECRET}).encode() * 1000)
    (project.root / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (project.root / "a.txt").write_bytes(b"caf\xe9")
    (project.root / "a.jsonl").write_text('{"text": 1}')
    for name in ("a.jsonl.gz", "a.txt", "a.jsonl"):
        with pytest.raises(DataError, match=name):
            erasure(project, TextSection(train=(name,)), "true")


def test_arrays_are_refused(project: Project) -> None:
    np.savez(project.root / "a.npz", train_images=np.zeros((1, 2, 2)))
    with pytest.raises(UsageError, match=r"a\.npz"):
        erasure(project, ImagesSection(path="a.npz"), "true")


def paint(project: Project, name: str, colour: int) -> Path:
    path = project.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(path)
    return path


PICTURES = [f"parts/{'bad' if number % 4 else 'good'}/{number}.png" for number in range(8)]


def test_pictures_are_named_as_other_files_are(project: Project) -> None:
    """Training on them names them in provenance, and `verify` and `why` find them."""
    for number, name in enumerate(PICTURES):
        paint(project, name, number)
    section = ImagesSection(path="parts", image_size=(4, 4), workers=0)
    data = ImageFormat.open(section, project, made_folder(project.root / "assets"))[1]
    version = find_implicit("data.path", section, project)
    assert data.file_versions["data.path"].record() == version.record() == {"sha256": version.sha256, "files": 8}
    assert verify_files(version.reference, section, project).damages == ()
    added = add(project.root, "parts", "parts", kind="images").version
    with named_rows("data.path", section, project) as (name, files):
        (history,) = explain_row(files, "parts/bad/1.png:1", None, [name]).histories
    assert (history.reference, history.source, history.number) == (version.reference, "parts/bad/1.png", 1)
    plan = erasure(project, section, "label = 'good'", purge=True)
    assert plan.places == ("parts/good/0.png", "parts/good/4.png")
    assert [(one.reference, one.rows) for one in plan.held_by] == [(added.reference, 2)], "the ids of `aifx data add`"
    assert "images" in {Path(folder).name for folder in plan.purged}
    paint(project, PICTURES[1], 99)
    assert verify_files(version.reference, section, project).damages
    assert not files_with(cache_path("files"), "IHDR"), "no copy"


def test_a_list_of_pictures_is_a_file_of_them(project: Project) -> None:
    for number, name in enumerate(PICTURES):
        paint(project, name, number)
    rows = [f"{name},{number / 2},{'test' if number > 5 else 'train'}" for number, name in enumerate(PICTURES)]
    path = project.root / "list.csv"
    path.write_text("\n".join(["file,value,split", *rows, "parts/none.png,1,train"]))
    section = ImagesSection(path="list.csv", errors="skip")
    version = find_implicit("data.path", section, project)
    assert [file.name for file in version.files] == ["list.csv", *PICTURES], "those that are there"
    assert erasure(project, section, "value >= 3 AND _split = 'test'").places == tuple(PICTURES[6:])
    path.write_text(path.read_text().replace("1.5", "1.25"))
    assert find_implicit("data.path", section, project).sha256 != version.sha256


def test_a_page_shows_what_files_are(project: Project) -> None:
    page = show_files("data.train", SECTION, project)
    assert page.reference == find_implicit("data.train", SECTION, project).reference
    assert (page.kind, page.rows, page.columns) == ("text", 4, {"text": "string"})
    assert [(one.name, one.rows) for one in page.sources] == [("texts/a.txt", 1), ("texts/b.jsonl", 3)]
    assert page.size_bytes == sum(path.stat().st_size for path in (project.root / "texts").iterdir())
    (project.root / "table.csv").write_text("name;x\nA;0\n\nB;1.5\n")
    table = show_files("data.path", TableSection(path="table.csv"), project)
    assert (table.kind, table.rows, table.columns) == ("table", 2, {"name": "string", "x": "double"})
    np.savez(project.root / "a.npz", train_images=np.zeros((1, 2, 2)))
    assert show_files("data.path", ImagesSection(path="a.npz"), project).rows is None
    for number, name in enumerate(PICTURES):
        paint(project, name, number)
    pictures = show_files("data.path", ImagesSection(path="parts"), project)
    assert (pictures.kind, pictures.rows, pictures.columns) == ("images", 8, {"label": "string"})
    assert not (cache_path() / "named-files").exists(), "no copy of the rows"
    added = add(project.root, "corpus", "texts").version
    made = show_version(catalog_of(project), "corpus", project)
    assert (made.reference, made.kind, made.rows, made.step) == (added.reference, "text", 4, "add")
    assert [(one.name, one.rows) for one in made.sources] == [(one.name, one.rows) for one in page.sources]


def test_purge_deletes_the_caches_also_if_the_rows_are_gone_from_the_files(project: Project) -> None:
    TextFormat.open(SECTION, project, project.root / "assets")
    (project.root / "texts/b.jsonl").unlink()
    found = erasure(project, SECTION, f"contains(text, '{SECRET}')", purge=True)
    assert found.rows == 0
    assert {Path(folder).name for folder in found.purged} == {"tokens", "tokenizers"}


@pytest.mark.slow
def test_a_large_text_is_one_row(project: Project) -> None:
    (project.root / "a.txt").write_text("x" * ((32 << 20) - 3) + SECRET)
    assert erasure(project, TextSection(train=("a.txt",)), f"contains(text, '{SECRET}')").places == ("a.txt",)


def test_files_of_a_store_are_named_by_its_records(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    section = TextSection(train=("memory://named/*.txt", "texts/*"))
    try:
        store.pipe_file("/named/a.txt", f"write to {SECRET}".encode())
        store.pipe_file("/named/empty.txt", b"")
        before = find_implicit("data.train", section, project)
        assert next(file.name for file in before.files) == "memory://named/a.txt"
        verified = verify_files(before.reference, section, project)
        assert (verified.files, verified.unread, verified.damages) == (4, 2, ())
        data = TextFormat.open(section.model_copy(update={"tokenizer": "byte"}), project, project.root / "assets")[1]
        assert data.file_versions["data.train"].record() == before.record()
        with named_rows("data.train", section, project) as (name, files):
            found = {row.source for row in explain_row(files, None, SECRET, [name]).rows}
        assert found == {"memory://named/a.txt", "texts/b.jsonl"}
        store.pipe_file("/named/a.txt", b"others")
        with monkeypatch.context() as patched:
            patched.setattr(type(store), "_open", lambda *_, **__: pytest.fail("it is read"))
            assert verify_files(before.reference, section, project).damages
    finally:
        store.rm("/named", recursive=True)


def read_rows(path: Path) -> list[dict[str, object]]:
    from pyarrow import parquet

    rows: list[dict[str, object]] = parquet.read_table(path).to_pylist()
    return rows


def test_erase_names_the_lines_and_purges_what_was_made_of_them(project: Project) -> None:
    added = add(project.root, "corpus", "texts").version
    TextFormat.open(SECTION, project, project.root / "assets")
    sha256 = find_implicit("data.train", SECTION, project).sha256
    run = project.root / "runs/main"
    run.mkdir(parents=True)
    (run / "config.toml").touch()
    (run / "provenance.json").write_text(json.dumps({"sources": {"data.train": {"sha256": sha256, "files": 2}}}))
    plan = erasure(project, SECTION, f"contains(text, '{SECRET}')", purge=True)
    assert (plan.rows, plan.places) == (1, ("texts/b.jsonl:3",))
    assert [one.reference for one in plan.held_by] == [added.reference]
    assert [(one.run, one.reference) for one in plan.runs] == [("main", plan.reference)]
    assert {Path(folder).name for folder in plan.purged} == {"tokens", "tokenizers"}
    purge_caches()
    assert not any(path.is_file() for folder in plan.purged for path in Path(folder).rglob("*"))
    assert not files_with(cache_path(), SECRET)
    with pytest.raises(UsageError):
        erasure(project, SECTION, " ")


@pytest.mark.slow
def test_the_commands(project: Project) -> None:
    def aifx(*args: str) -> tuple[int, dict[str, object]]:
        found = inprocess.run(["data", *args, "--json"], project.root, dict(os.environ))
        return found.returncode, json.loads(found.stdout or "{}")

    code, found = aifx("verify", "data.train")
    assert (code, found["versions"][0]["files"]) == (0, 2)  # type: ignore[index]
    assert aifx("verify", "data.train@0000")[0] == 1
    assert aifx("verify", "data.path")[0] == 2
    code, found = aifx("why", "--text", SECRET, "--dataset", "data.train")
    assert (code, found["rows"][0]["source"]) == (0, "texts/b.jsonl")  # type: ignore[index]
    code, found = aifx("erase", "data.train", "--where", f"contains(text, '{SECRET}')", "--dry-run")
    assert (code, found["places"]) == (0, ["texts/b.jsonl:3"])
    code, found = aifx("query", "data.train", "SELECT count(*) AS n FROM data")
    assert (code, found["rows"]) == (0, [[4]])
    _, found = aifx("query", "data.train", "nonsense(")
    digits = find_implicit("data.train", SECTION, project).reference
    assert f"aifx data query {digits} 'DESCRIBE data'" in str(found["error"])
    code, found = aifx("show", "data.train")
    assert (code, found["reference"]) == (0, digits)
    assert aifx("show", "data.train", "--rows", "3")[0] == 2
    printed = inprocess.run(["data", "show", "data.train"], project.root, dict(os.environ)).stdout.splitlines()
    assert printed[0].startswith(f"{digits}: text, 4 rows, ")
    assert [line.split()[:2] for line in printed[-2:]] == [["texts/a.txt", "1"], ["texts/b.jsonl", "3"]]
    code, found = aifx("profile", "data.train")
    assert (code, found["error"]["hint"]) == (2, "aifx data show data.train")  # type: ignore[index]
    (project.root / "texts/a.txt").unlink()
    killed = cache_path("named-files") / f"data.train{UNFINISHED}0123456789abcdef"
    killed.mkdir()
    (killed / "rows").write_text(SECRET)
    code, found = aifx("gc")
    assert (code, "2 leftovers in the cache" in found["error"]["what"]) == (2, True)  # type: ignore[index]
    code, found = aifx("gc", "--yes")
    assert [one["kind"] for one in found["deleted"]] == ["files", "entries"]  # type: ignore[attr-defined]
    assert not killed.exists()
    assert file_index.prune_indexes(dry_run=True) == []
    add(project.root, "data.train", "texts")
    code, found = aifx("verify", "data.train")
    assert found["versions"][0]["files"] == 4, "a data set of that name is meant first"  # type: ignore[index]


@pytest.mark.slow
def test_a_run_names_the_files_that_it_has_read(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("model.num_layers=1", "model.embed_dim=16", "data.seq_len=32", "data.vocab_size=300")
    settings = (*small, "train.global_batch_size=2", "train.num_steps=1", "train.validate_every=0")
    options = [part for setting in settings for part in ("--set", setting)]
    version, text = find_implicit("data.train", SECTION, project), (project.root / "texts/a.txt").read_text()
    scanned: list[str] = []

    def edited(*args: Any) -> Task:
        task = open_task(*args)
        (project.root / "texts/a.txt").write_text("others")
        return task

    def scans_of(files: Iterable[SourceFile], *args: Any, **how: Any) -> dict[SourceFile, FileScan]:
        found = real_scans_of(files, *args, **how)
        scanned.extend(file.name for file in found)
        return found

    real_scans_of = file_index.scans_of
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "open_task", edited)
        for module in (corpus, file_index):
            patched.setattr(module, "scans_of", scans_of)
        trained = inprocess.run(["train", "--run", "main", *options], project.root, dict(os.environ))
    assert trained.returncode == 0, trained.stderr
    sources = json.loads(project.run("main").provenance.read_text())["sources"]
    assert sources == {"data.train": version.record()}
    assert scanned == ["texts/a.txt", "texts/b.jsonl"], "one look at the files"
    reference = f"data.train@{sources['data.train']['sha256']}"
    assert verify_files(reference, SECTION, project).damages
    (project.root / "texts/a.txt").write_text(text)
    assert not verify_files(reference, SECTION, project).damages
