"""Text from each format that `aifx data add` reads, compressed or not, and from a store."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from prose import prose
from s3_server import s3_server

from aifx.core.errors import DataError, EnvironmentFault
from aifx.core.project import Project, cache_path
from aifx.data.file_index import changed_file, prune_indexes, scans_of
from aifx.data.readers import web
from aifx.data.readers.documents import find_files, read_documents
from aifx.data.sections import TextSection
from aifx.data.text import TextData

Write = Callable[..., Path]
Open = Callable[..., TextData]
ONE, TWO = prose(300), prose(200, 1)


def documents(project: Project, *patterns: str, field: str = "text") -> list[str]:
    """The documents that `data.train` would give."""
    files = find_files(patterns, project, "data.train")
    return [piece.text for file in files for piece in read_documents(file, field, whole=True)]


def page(text: str) -> str:
    return f"<html><body><nav><a href='/'>Home</a></nav><article><p>{text}</p></article></body></html>"


def lines(*records: dict[str, object]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_documents_of_each_format(project: Project, write: Write) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    records = ({"text": ONE, "n": 1}, {"text": "", "n": 2}, {"text": TWO, "n": 3})
    cells = f'n,text\n1,"{ONE}"\n2,\n3,"{TWO}"\n'
    write("a.md", ONE)
    write("b.ndjson", lines(*records))
    write("c.csv", cells)
    write("d.tsv", f'n, of all\ttext\n1\t"{ONE}"\n2\t\n3\t"{TWO}"\n')  # a comma is no delimiter
    parquet.write_table(pa.table({"n": [1, 2, 3], "text": [ONE, "", TWO]}), write("e.parquet", b""))
    write("f.md.gz", gzip.compress(ONE.encode()))
    write("g.csv.zst", zstd.compress(cells.encode()))
    write("h.parquet.gz", gzip.compress((project.root / "data/e.parquet").read_bytes()))
    expected = {file: [ONE] if ".md" in file else [ONE, TWO] for file in sorted(os.listdir(project.root / "data"))}
    assert len(expected) == 8
    assert {file: documents(project, f"data/{file}") for file in expected} == expected


def test_rows_of_a_table_as_text_name_their_place(write: Write, open_: Open) -> None:
    write("a.csv", "n,body\n1,short\n")
    write("b.csv", 'body\n"short"\n"open\n')
    for name, what in (("a.csv", "data/a.csv:2: no field 'text'"), ("b.csv", "data/b.csv:3: not CSV")):
        with pytest.raises(DataError) as caught:
            open_(train=(f"data/{name}",), text_field="text" if name == "a.csv" else "body")
        assert caught.value.what == what


def test_the_text_of_pages_is_found_once(
    project: Project, write: Write, open_: Open, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trafilatura")
    for number in range(3):
        write(f"{number}.html", page(prose(300, number)))
    write("empty.htm", "<html></html>")
    found: list[bytes] = []
    text_of = web._text_of
    monkeypatch.setattr(web, "_text_of", lambda data: found.append(data) or text_of(data))
    data = open_(train=("data/*.htm*",))
    assert len(found) == 4
    assert {path.is_file() for path in cache_path("pages").iterdir()} == {True}, "a folder takes more than a page"
    assert data.store.splits["train"].num_bytes > 1000
    assert any(line.startswith("data/empty.htm: left out 1 page:") for line in logged)
    texts = documents(project, "data/*.htm*")
    assert (len(found), len(texts), "Home" in "".join(texts)) == (4, 3, False)
    assert open_("others", train=("data/*.htm*",)).digest == data.digest
    monkeypatch.setattr(web, "PAGES_VERSION", 2)
    assert open_("new", train=("data/*.htm*",)).digest == data.digest, "the same text gives the same tokens"
    assert len(found) == 8


def test_pages_without_the_extra(write: Write, open_: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.html", page(ONE))
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(EnvironmentFault) as raised:
        open_(train=("data/*.html",))
    assert raised.value.hint.startswith("pip install 'trafilatura")


def test_config_check_names_the_extra_of_pages(project: Project, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.html", page(ONE))
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    section = TextSection(train=("data/*.html",))
    ((key, error),) = section.check_files(project)
    assert (key, "trafilatura" in error.what, error.hint[:11]) == ("data.train", True, "pip install")


def test_a_damaged_text_of_pages_is_made_again(project: Project, write: Write, open_: Open) -> None:
    pytest.importorskip("trafilatura")
    write("a.html", page(prose(900)))
    data = open_(train=("data/*.html",))
    (path,) = cache_path("pages").iterdir()
    whole = path.read_bytes()
    texts = documents(project, "data/*.html")
    for read in (lambda: documents(project, "data/*.html"), lambda: open_("again", train=("data/*.html",))):
        path.write_bytes(whole.replace(b"e", b"o", 1))
        found = read()
        assert found == texts if isinstance(found, list) else found.digest == data.digest
        assert path.read_bytes() == whole


def test_the_pages_of_an_archive(project: Project, write: Write, open_: Open) -> None:
    pytest.importorskip("warcio")
    path = write("crawl.warc.gz", b"")
    with gzip.open(path, "wb") as file:
        for number in range(3):
            body = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{page(prose(600, number))}".encode()
            head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a.example/{number}\r\n"
            file.write(f"{head}WARC-Date: 2026-01-02T03:04:05Z\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            file.write(body + b"\r\n\r\n")
    assert len(documents(project, "data/*.warc.gz")) == 3
    assert open_(train=("data/crawl.warc.gz",)).store.splits["train"].num_bytes > 5000
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-900]))
    with pytest.raises(DataError) as caught:
        open_("torn", train=("data/crawl.warc.gz",))
    assert (caught.value.what, "record 3" in caught.value.why) == ("data/crawl.warc.gz cannot be read", True)


def test_text_in_a_store_is_read_without_a_copy(
    project: Project, write: Write, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec
    import pyarrow as pa
    from pyarrow import parquet

    write("a.txt", "\ufeff" + prose(2000))
    write("b.jsonl.gz", gzip.compress(lines({"text": ONE}, {"text": TWO}).encode()))
    parquet.write_table(pa.table({"text": [ONE, TWO]}), write("c.parquet", b""))
    local = open_(train=("data/*",))
    store = fsspec.filesystem("memory")
    store.put(str(project.root / "data"), "/raw", recursive=True)
    try:
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda *_, **__: pytest.fail("a copy"))
        remote = open_("remote", train=("memory://raw/*",))
        assert remote.digest == local.digest, "by content, so that the token store serves both"
        assert documents(project, "memory://raw/c.parquet") == [ONE, TWO]
        for suffix in (".pdf", ".png"):
            store.pipe_file(f"/odd{suffix}/a{suffix}", b"")
            with pytest.raises(DataError, match=rf"memory://odd{suffix}/a{suffix}: no reader for {suffix}"):
                find_files((f"memory://odd{suffix}/*",), project, "data.train")
        with pytest.raises(DataError, match=r"data\.train: no file matches memory://none/\*"):
            find_files(("memory://none/*",), project, "data.train")
        store.pipe_file("/raw/e.txt.gz", gzip.compress(ONE.encode())[:-9])
        with pytest.raises(DataError, match=r"memory://raw/e\.txt\.gz cannot be decompressed"):
            documents(project, "memory://raw/e.txt.gz")
    finally:
        store.rm("/raw", recursive=True)


@pytest.mark.slow
def test_text_of_a_store_with_tags_is_read_when_it_is_needed(
    open_: Open, monkeypatch: pytest.MonkeyPatch, project: Project
) -> None:
    with s3_server(monkeypatch) as store:
        text, later = (lines(*({"text": prose(200, number)} for number in range(n, n + 30))) for n in (0, 30))
        store.pipe_file("bucket/a.jsonl", text.encode())
        opened: list[str] = []
        real = type(store).open

        def count(self: object, path: str, *args: object, **keys: object) -> object:
            opened.append(path)
            return real(self, path, *args, **keys)

        monkeypatch.setattr(type(store), "open", count)
        # Its digest, the bytes to divide, the tokenizer and the tokens.
        first = open_("one", train=("s3://bucket/a.jsonl",), tokenizer="bpe", vocab_size=300, validation_fraction=0.1)
        assert len(opened) == 4
        (index,) = cache_path("files").iterdir()
        assert b"s3://bucket/a.jsonl" in index.read_bytes()
        again = open_("two", train=("s3://bucket/a.jsonl",), tokenizer="bpe", vocab_size=300, validation_fraction=0.1)
        assert (again.digest, len(opened)) == (first.digest, 4)
        prune_indexes(dry_run=False)
        (file,) = find_files(("s3://bucket/a.jsonl",), project, "data.train")
        scans = scans_of([file], "text", project)
        assert (changed_file(scans, "text"), len(opened)) == (None, 4)
        store.pipe_file("bucket/a.jsonl", later.encode())
        assert changed_file(scans, "text") == file
        other = open_("three", train=("s3://bucket/a.jsonl",), tokenizer="bpe", vocab_size=300, validation_fraction=0.1)
        assert other.digest != first.digest
