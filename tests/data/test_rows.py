"""Rows of input files, their places in errors, and the files that predictions are written to."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from aifx.core.errors import AifxError, DataError
from aifx.data.readers.base import DamagedFile
from aifx.data.readers.rows import Row, input_file, read_rows
from aifx.data.readers.streams import line_blocks
from aifx.data.row_writers import flat, json_line, open_writer


def read(path: Path) -> list[Row]:
    return list(read_rows(input_file(str(path))))


def test_cells_between_semicolons_or_tabs(tmp_path: Path) -> None:
    for mark in ";\t":
        (tmp_path / "a.csv").write_text(f'\ufeffname{mark}x\n"a{mark}b"{mark}1.5\n')
        assert [row.values for row in read(tmp_path / "a.csv")] == [{"name": f"a{mark}b", "x": "1.5"}]


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl"])
def test_one_byte_order_mark_is_no_content(tmp_path: Path, name: str) -> None:
    """Training on text removed the first of two, and reading rows both."""
    content = '{"x": 1}' if name.endswith("l") else "x\n1\n"
    (tmp_path / name).write_text(f"\ufeff\ufeff{content}")
    if name == "a.jsonl":
        with pytest.raises(DataError, match=r"a\.jsonl:1: not JSON"):
            read(tmp_path / name)
        return
    (row,) = read(tmp_path / name)
    assert list(row.values.items()) == [("\ufeffx", "1")] if name == "a.csv" else [("text", "\ufeffx\n1\n")]


def test_the_bad_bytes_of_a_table_are_counted_and_not_replaced(tmp_path: Path) -> None:
    """`data.errors` is for text alone. A byte that is half a character of UTF-8 is left out."""
    (tmp_path / "a.csv").write_bytes(
        "x\nschöne Bäume\n".encode() * 9 + "schöne Bäume\n".encode()[:-2] + b"\xc3\n1\n\xff\n"
    )
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.csv")
    assert caught.value.what == f"{tmp_path}/a.csv:19: not UTF-8"
    assert "2 bad bytes in this file" in caught.value.why
    assert caught.value.hint.startswith("iconv -c -f UTF-8 -t UTF-8 ")


def test_lines_have_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions have one: `data add` says that a longer line is damage. Training reads a document of any length."""
    monkeypatch.setattr(line_blocks, "__defaults__", (4, 8))
    with pytest.raises(DamagedFile, match="it has a line of more than"):
        list(line_blocks(io.BufferedReader(io.BytesIO(b"a line of more than 8 bytes\n"))))
    (tmp_path / "a.jsonl").write_text('{"x": "a line of more than 8 bytes"}\n')
    (tmp_path / "a.txt").write_text("a line of more than 8 bytes\n")
    assert [row.values for row in read(tmp_path / "a.jsonl")] == [{"x": "a line of more than 8 bytes"}]
    assert [row.values for row in read(tmp_path / "a.txt")] == [{"text": "a line of more than 8 bytes\n"}]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_one_line_of_another_encoding_is_named_with_its_encoding(tmp_path: Path, suffix: str) -> None:
    """To convert the whole file would damage its other lines, and to leave the byte out would change the word."""
    data = '{"x": "schöne Bäume"}\n'.encode() * 9 + b'{"x": "caf\xe9"}\n' + b'{"x": "B\xc3\xa4ume"}\n'
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    with pytest.raises(DataError) as caught:
        read(path)
    assert "the line seems to be cp1252" in caught.value.why
    shell = subprocess.run(caught.value.hint, shell=True, capture_output=True, check=True, timeout=60)
    assert shell.stdout.decode() == '{"x": "café"}\n'


def test_rows_of_a_stream_of_the_process() -> None:
    """As the shell passes `<(command)`. A stream cannot be read again to count what is wrong in it."""
    for data, expected in ((b"\xef\xbb\xbfx\n1\n", {"x": "1"}), (b"x\n\xff\n", None)):
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        file = input_file(f"/dev/fd/{reader}", "csv")
        if expected:
            assert [row.values for row in read_rows(file)] == [expected]
        else:
            with pytest.raises(DataError, match=rf"/dev/fd/{reader}:2: not UTF-8"):
                list(read_rows(file))
        os.close(reader)


def test_rows_of_a_store(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe({"/rows/a.csv.gz": gzip.compress(b"x\n1\n"), "/rows/b.jsonl": b'{"x": 2}\n'})
    try:
        (row,) = read_rows(input_file("memory://rows/a.csv.gz"))
        assert (row.place, row.values) == ("memory://rows/a.csv.gz:2", {"x": "1"})
        (row,) = read_rows(input_file("memory://rows/b.jsonl", "txt"))
        assert row.values == {"text": '{"x": 2}\n'}
        with pytest.raises(AifxError, match=r"memory://rows/\* is not one file"):
            input_file("memory://rows/*")
    finally:
        store.rm("/rows", recursive=True)


def test_rows_of_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes('\ufeffname,x\n"two\nlines",1\n\n"a ""b""",2\r\n'.encode())
    found = read(tmp_path / "a.csv")
    assert [dict(row.values) for row in found] == [{"name": "two\nlines", "x": "1"}, {"name": 'a "b"', "x": "2"}]
    assert [(row.number, row.place.rpartition(":")[2]) for row in found] == [(1, "2"), (2, "5")]


def test_compressed_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'\xef\xbb\xbf{"x": 1}\n{"x": 2}\n'))
    assert [row.values["x"] for row in read(tmp_path / "a.jsonl.gz")] == [1, 2]
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"x\n1\n" * 99)[:-9])
    with pytest.raises(DataError, match=r"b\.csv\.gz cannot be decompressed"):
        read(tmp_path / "b.csv.gz")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"x,y\n1,2\n3\n", ["a.csv:3", "1 cells", "header has 2"]),
        ("a.csv", b"x,x\n1,2\n", ["a.csv:1", "'x' twice"]),
        (
            "a.csv",
            b"x;y\n1;2\na;3,5\n",
            ["a.csv:3", "column 'y' has decimal commas, such as '3,5'", "a.csv > points.csv"],
        ),
        ("a.csv", b'x\n"open\n', ["a.csv:2", "not CSV"]),
        ("a.csv", b'x,y\n1,2\n"3\n4",", 5\n6,7\n8,9', ["a.csv:4: not CSV", "quote"]),
        ("a.csv", b'x;"y\n1;2\n', ["a.csv:1: not CSV", "quote"]),
        ("a.csv", b'x,y\n1,"2\n3,"4"\n', ["a.csv:3: not CSV", "line 2"]),
        ("a.csv", b"x\na\n\xff\n", ["a.csv:3", "not UTF-8", "0xff"]),
        ("a.jsonl", b'{"x": 1}\n{"x": "\xff"}\n', ["a.jsonl:2", "not UTF-8"]),
        ("a.csv", "x,y\n1,2\nschöne Bäume,2\n".encode("cp1252"), ["a.csv:3", "cp1252, ", "iconv -f CP1252 -t UTF-8 "]),
        ("a.csv", "x,y\n1,2\n".encode("utf-16-be"), ["a.csv:1: not UTF-8", "iconv -f UTF-16BE -t UTF-8 "]),
        ("a.jsonl", '{"x": 1}\n'.encode("utf-16-le"), ["a.jsonl:1: not UTF-8", "iconv -f UTF-16LE -t UTF-8 "]),
        ("a.jsonl", b"[" * 100_000, ["a.jsonl:1"]),
        ("a.parquet", b"PAR1", ["a.parquet", "Parquet"]),
        ("a", b"", ["without suffix", "--input-format"]),
        ("a.xls", b"", ["'xls'", ".csv"]),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AifxError) as caught:
        read(tmp_path / name)
    for word in words:
        assert word in str(caught.value)


def test_parquet_values_that_python_does_not_have(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    times, far = [1000 * n for n in range(300)], 10**12  # seconds: Python has no year 33658
    parquet.write_table(arrow.table({"at": arrow.array(times, arrow.timestamp("s"))}), tmp_path / "a.parquet")
    assert len(read(tmp_path / "a.parquet")) == 300
    parquet.write_table(arrow.table({"at": arrow.array([*times, far], arrow.timestamp("s"))}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: .*257 to 301"):
        read(tmp_path / "a.parquet")


def test_files_are_read_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million rows that nobody asked for are not read: memory does not grow with the input."""

    class Endless(io.RawIOBase):
        reads = 0
        line = b'{"x": 1}\n'

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any, /) -> int:
            self.reads += 1
            buffer[: len(self.line)] = self.line
            return len(self.line)

    for suffix, line in (("jsonl", b'{"x": 1}\n'), ("csv", b"1\n")):
        endless = Endless()
        endless.line = line

        class Stdin:
            buffer = io.BufferedReader(endless)

        monkeypatch.setattr(sys, "stdin", Stdin)
        found = read_rows(input_file("-", suffix))
        assert [next(found).number for _ in range(1000)][-1] == 1000
        assert endless.reads <= 1002, suffix  # the header of .csv, and a byte order mark would need more bytes


RECORDS = [
    {"file": "a", "row": 1, "value": 0.1, "by": {"x": 1, "y.z": [1.5, math.nan]}, "is_new": True},
    {"file": "a", "row": 2, "value": math.inf, "by": {"x": 2, "y.z": []}, "is_new": False},
]


def test_records_as_columns(tmp_path: Path) -> None:
    assert json.loads(json_line(RECORDS[1]))["value"] is None
    assert flat(RECORDS[0])["by.y.z"] == "[1.5, null]"
    with open_writer(tmp_path / "o.csv") as writer:
        writer.write(RECORDS[:1])
        writer.write(RECORDS[1:])
    assert (tmp_path / "o.csv").read_text() == (
        'file,row,value,by.x,by.y.z,is_new\na,1,0.1,1,"[1.5, null]",true\na,2,,2,[],false\n'
    )


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.parquet"])
def test_an_output_without_records(tmp_path: Path, name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with open_writer(tmp_path / name) as writer:
        writer.write([])
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name.endswith(".parquet"):
        assert read(tmp_path / name) == []
    else:
        assert (tmp_path / name).read_bytes() == b""


@pytest.mark.parametrize(
    ("name", "odd"), [("o.csv", {"other": 1}), ("o.parquet", {"other": 1}), ("o.parquet", {"value": "text"})]
)
def test_a_table_has_the_columns_and_types_of_its_first_record(tmp_path: Path, name: str, odd: dict[str, Any]) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    first = {"file": "a", "row": 1, "value": 0.5}

    def write() -> None:
        with open_writer(tmp_path / name) as writer:
            writer.write([first])
            writer.write([first | odd])

    with pytest.raises(DataError):
        write()
    assert not list(tmp_path.iterdir())
