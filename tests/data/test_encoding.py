"""Bytes that are not UTF-8, byte-order marks, compressed and empty files."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from prose import prose

from aifx.core.errors import AifxError, DataError
from aifx.core.project import Project
from aifx.data.readers.documents import find_files, read_documents
from aifx.data.readers.encodings import DecodeErrors, scan_text
from aifx.data.readers.sources import local_file
from aifx.data.text import TextData

Write = Callable[..., Path]
Open = Callable[..., TextData]
TEXT = prose(400)
MARK = b"\xef\xbb\xbf"
GERMAN = "Ein schöner Tag für die Bäume. " * 50


def read(path: Path, errors: DecodeErrors = "strict") -> str:
    return "".join(piece.text for piece in read_documents(local_file(path, path.name), "text", errors=errors))


def refusal(open_: Open, *train: str) -> AifxError:
    with pytest.raises(AifxError) as caught:
        open_(train=train or ("data/*",))
    return caught.value


def test_bad_bytes_of_all_files_are_counted_at_once(write: Write, open_: Open) -> None:
    write("a.txt", TEXT)
    write("b.txt", TEXT.encode() + b"\ncaf\xe9 au lait\xff")
    write("c.jsonl", b'{"text": "na\xefve"}\n')
    error = refusal(open_)
    assert error.what == f"data/b.txt:{TEXT.count(chr(10)) + 2}: not UTF-8"
    assert error.why.endswith("2 of 3 files: data/b.txt 2, data/c.jsonl 1")


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (GERMAN.encode("utf-16"), "iconv -f UTF-16 -t UTF-8 data/a.txt > fixed.txt"),
        (GERMAN.encode("utf-16-be").join([b"\xfe\xff", b""]), "iconv -f UTF-16 -t UTF-8 data/a.txt > fixed.txt"),
        (GERMAN.encode("utf-32"), "iconv -f UTF-32 -t UTF-8 data/a.txt > fixed.txt"),
        (GERMAN.encode("cp1252"), "iconv -f CP1252 -t UTF-8 data/a.txt > fixed.txt"),
        (GERMAN.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 data/a.txt > fixed.txt"),
        ("A line of plain text.\n".encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8 data/a.txt > fixed.txt"),
        (GERMAN.encode() + b"\xe9" * 3, "aifx train --set data.errors=replace  # most of it is UTF-8"),
        (TEXT.encode() + "…".encode()[:2], "aifx train --set data.errors=replace  # most of it is UTF-8"),
        ("Съешь же ещё этих мягких булок".encode("cp1251"), "iconv -f CP1251 -t UTF-8 data/a.txt > fixed.txt"),
        (
            b"PK\x03\x04\x14\x00\x00\x00\x08\x00\x9b\x9c" * 99,
            "file -i data/a.txt  # it seems to be no text: leave it out",
        ),
    ],
)
def test_the_hint_names_the_encoding(content: bytes, hint: str, write: Write, open_: Open) -> None:
    write("a.txt", content)
    assert refusal(open_).hint.endswith(hint)


def test_the_hint_decompresses(write: Write, open_: Open) -> None:
    write("a b.txt.gz", gzip.compress(GERMAN.encode("cp1252")))
    error = refusal(open_)
    assert error.hint == "zcat 'data/a b.txt.gz' | iconv -f CP1252 -t UTF-8 > fixed.txt"
    assert "it seems to be cp1252, " in error.why


@given(st.binary(max_size=40))
def test_bytes_are_dropped_or_replaced_as_python_does(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bad") / "a.txt"
    path.write_bytes(data)
    content = data.removeprefix(MARK)
    assert read(path, "replace") == content.decode(errors="replace")
    assert read(path, "skip") == content.decode(errors="ignore")
    assert scan_text(local_file(path, "a.txt")).num_bad == len(content) - len(content.decode(errors="ignore").encode())


def test_replaced_and_dropped_bytes_are_reported_per_file(write: Write, open_: Open, logged: list[str]) -> None:
    write("a.txt", prose(2000).encode() + b"\xff\xfe")
    write("b.jsonl", json.dumps({"text": TEXT}).encode() + b'\n{"text": "caf\xe9"}\n')
    write("c.txt", prose(2000, 1))
    replaced = open_(train=("data/*",), errors="replace")
    dropped = open_(train=("data/*",), errors="skip")
    lines = [line for line in logged if "UTF-8" in line]
    files = ["data/a.txt: 2 bytes", "data/b.jsonl: 1 bytes"]
    assert [line.partition(" are ")[0] for line in lines] == files * 2
    assert ["U+FFFD" in line for line in lines] == [True, True, False, False]
    sizes = [
        sum(data.store.splits[split].num_bytes for split in ("train", "validation", "test"))
        for data in (replaced, dropped)
    ]
    assert sizes[0] - sizes[1] == 3 * len("\ufffd".encode())
    assert replaced.digest != dropped.digest


def test_parquet_texts_that_are_not_utf8(write: Write, open_: Open) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = arrow.array([TEXT.encode(), b"caf\xe9", None], arrow.binary()).view(arrow.string())
    path = write("a.parquet", b"")
    parquet.write_table(arrow.table({"text": texts.slice(0, 2)}), path)
    error = refusal(open_)
    assert error.what.startswith("data/a.parquet: row 2 of")
    assert "byte 3 of it" in error.why
    assert "0xe9" in error.why
    assert read(path, "replace").endswith("caf\ufffd")
    assert read(path, "skip").endswith("caf")
    parquet.write_table(arrow.table({"text": texts}), path)
    with pytest.raises(DataError, match="row 3 of"):
        read(path, "skip")


def test_a_byte_order_mark_is_dropped(write: Write) -> None:
    assert read(write("a.txt", MARK + b"one\r\ntwo")) == "one\r\ntwo"
    assert read(write("a.jsonl", MARK + b'{"text": "one"}\n{"text": "two"}')) == "onetwo"
    assert read(write("b.txt.gz", gzip.compress(MARK + b"one"))) == "one"


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".zst", zstd.compress)])
def test_compressed_files_are_read(suffix: str, compress: Callable[[bytes], bytes], write: Write, open_: Open) -> None:
    text, records = prose(3000), json.dumps({"text": TEXT}).encode() + b"\n"
    write("a.txt", text)
    write("b.jsonl", records * 2)
    plain = open_(train=("data/*",))
    for file in plain.corpus.files["train"]:
        file.path.unlink()
    write(f"a.txt{suffix}", compress(text[:100].encode()) + compress(text[100:].encode()))  # members, frames
    write(f"b.jsonl{suffix.upper()}", compress(records * 2))
    packed = open_(train=("data/*",))
    assert packed.digest == plain.digest, "by content, so that the token store serves both"
    write("a.txt", text)
    with pytest.raises(DataError, match=r"data/a.txt of data.train and "):
        open_(train=("data/a.txt",), test=(f"data/a.txt{suffix}",))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"no archive", lambda data: data[:9] * 9])
def test_damaged_archives_are_named(suffix: str, damage: Callable[[bytes], bytes], write: Write, open_: Open) -> None:
    compress = gzip.compress if suffix == ".gz" else zstd.compress
    write(f"a.txt{suffix}", damage(compress(TEXT.encode())))
    error = refusal(open_)
    assert error.what == f"data/a.txt{suffix} cannot be decompressed"
    assert error.why


def test_a_suffix_of_compression_alone_is_no_format(write: Write, open_: Open) -> None:
    for name, what in (("a.gz", "no reader for .gz"), ("a.png.zst", "no reader for .png.zst")):
        write(name, b"x")
        assert refusal(open_, f"data/{name}").what == f"data/{name}: {what}"


def test_empty_files_of_a_glob_are_skipped_and_counted(write: Write, open_: Open, logged: list[str]) -> None:
    write("a.txt", prose(2000))
    write("empty.txt", b"")
    write("mark.txt", MARK)
    write("none.txt.gz", gzip.compress(b""))
    data = open_(train=("data/*",))
    assert any("data/empty.txt, data/mark.txt, data/none.txt.gz" in line for line in logged)
    assert [file.name for file in data.corpus.files["train"]] == ["data/a.txt"]
    assert refusal(open_, "data/empty.txt").what == "data/empty.txt is empty"
    error = refusal(open_, "data/e*.txt")
    assert "'data/e*.txt' of data.train" in error.what


def test_a_glob_that_matches_folders_only_is_an_error(project: Project, write: Write) -> None:
    write("a.txt", TEXT)
    (project.root / "data/folder").mkdir()
    with pytest.raises(DataError, match=r"'data/f\*' of data.train"):
        find_files(("data/a.txt", "data/f*"), project, "data.train")
