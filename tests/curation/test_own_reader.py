"""A reader of a project's own, `datasets.readers`: the example of docs/own-reader.md, and readers that are wrong."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import inprocess
import pytest
from documented import blocks
from pyarrow import parquet

from aifx.data.versions.catalog import open_catalog

(CODE,) = blocks("own-reader", "python")
(TOML,) = blocks("own-reader", "toml")
FILM = """\
1
00:00:01,500 --> 00:00:03,000
Call me
Ishmael.

2
later
no times

3
01:00:00,000 --> 01:00:02,000
Thar she blows!
"""
SMALLEST = """\
from aifx.extend import BadRow, FileReader

class Lines(FileReader):
    suffixes = (".log",)
    def read(self, file):
        {body}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "aifx.toml").write_text(TOML)
    (tmp_path / "subtitles.py").write_text(CODE)
    (tmp_path / "film.srt").write_text(FILM)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/book.txt").write_text("Call me Ishmael.")
    return tmp_path


def run(project: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    for name in ("subtitles", "lines"):  # of another project, or before its file changed
        sys.modules.pop(name, None)
    done = inprocess.run(args, project, os.environ)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def add(project: Path, *args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    return run(project, "data", "add", "films", "--license", "unknown", "--workers", "1", *args, code=code)


def rows_of(project: Path) -> list[dict[str, object]]:
    version = open_catalog(str(project / "datasets")).open("films")
    return [row for shard in version.shards for row in parquet.read_table(shard).to_pylist()]


def test_the_documented_reader(project: Path) -> None:
    (project / "other.srt.gz").write_bytes(gzip.compress(b"1\r\n00:00:02,000 --> 00:00:03,000\r\nAye.\r\n"))
    made = add(project, "film.srt", "other.srt.gz", "--max-bad", "1", "--json")
    document = json.loads(made.stdout)
    assert (document["rows"], document["quarantined"]) == (3, 1)
    assert document["bad_rows"] == [
        {"source": "film.srt", "line": 6, "reason": "a cue has its times in its second line"}
    ]
    found = rows_of(project)
    assert [(row["text"], row["cue"], row["start_s"]) for row in found] == [
        ("Call me Ishmael.", "1", 1.5),
        ("Thar she blows!", "3", 3600.0),
        ("Aye.", "1", 2.0),
    ]
    assert [str(row["_row"]).rpartition("-")[2] for row in found] == ["0", "2", "0"], "bad rows count"
    assert "0 files read, 2 unchanged" in add(project, "film.srt", "other.srt.gz", "--max-bad", "1").stdout
    other = CODE.replace('" ".join', '"||".join')  # of another size: Python compares whole seconds and sizes
    (project / "subtitles.py").write_text(other)
    assert "2 files read, 0 unchanged" in add(project, "film.srt", "other.srt.gz", "--max-bad", "1").stdout
    assert rows_of(project)[0]["text"] == "Call me||Ishmael.||||"
    listed = json.loads(add(project, "*.srt*", "--dry-run", "--json").stdout)
    assert [(file["name"], file["format"]) for file in listed["files"]] == [
        ("film.srt", "subtitles:Subtitles"),
        ("other.srt.gz", "subtitles:Subtitles"),
    ]
    assert "importing subtitles:Subtitles" in run(project, "config", "check").stderr


def test_a_file_that_cannot_be_read_to_its_end_is_damaged(project: Path) -> None:
    (project / "film.srt").write_bytes(FILM.encode() + b"\xff")
    done = add(project, "film.srt", code=1)
    assert "film.srt:1: Subtitles.read: UnicodeDecodeError" in done.stdout


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("subtitels:Subtitles", CODE, ["'subtitels:Subtitles' cannot be imported", "no module 'subtitels'"]),
        ("subtitles:Subtitle", CODE, ["subtitles has no 'Subtitle'", "did you mean 'Subtitles'?"]),
        ("subtitles", CODE, ["'subtitles' cannot be imported", "`module:NAME`"]),
        ("subtitles:TIMES", CODE, ["'subtitles:TIMES' cannot be used", "aifx.extend.FileReader"]),
        (
            "subtitles:Subtitles",
            CODE.replace("def read", "def raed"),
            ["Subtitles in subtitles.py does not define read"],
        ),
        ("subtitles:Subtitles", CODE.replace("suffixes =", "suffix ="), ["Subtitles.suffixes is a tuple"]),
        ("subtitles:Subtitles", CODE.replace('".srt"', '".SRT"'), ["'.SRT' of Subtitles.suffixes"]),
        ("subtitles:Subtitles", CODE.replace('".srt"', '".csv"'), ["aifx itself reads .csv"]),
    ],
)
def test_a_reader_that_cannot_be_used(project: Path, name: str, code: str, words: list[str]) -> None:
    (project / "subtitles.py").write_text(code)
    (project / "aifx.toml").write_text(TOML.replace("subtitles:Subtitles", name))
    for done in (add(project, "film.srt", code=2), run(project, "config", "check", code=2)):
        assert "datasets.readers" in done.stderr
        for word in words:
            assert word in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("yield {'a': 1}['b']", ["Lines.read failed", "KeyError", "lines.py:6"]),
        ("yield 'a row'", ["Lines.read gave str"]),
        ("yield {'a': b'bytes'}", ["Lines.read gave a row that JSON cannot hold", "bytes"]),
        ("return 3", ["Lines.read failed", "TypeError"]),
    ],
)
def test_an_error_names_the_reader_and_the_place(project: Path, body: str, words: list[str]) -> None:
    (project / "lines.py").write_text(SMALLEST.format(body=body))
    (project / "aifx.toml").write_text('[datasets]\nreaders = ["lines:Lines"]\n')
    (project / "a.log").write_text("one\n")
    failed = add(project, "a.log", code=2)
    for word in ("datasets.readers = 'lines:Lines'", *words):
        assert word in failed.stderr
    assert "Traceback" not in failed.stderr


def test_two_readers_of_one_suffix(project: Path) -> None:
    (project / "lines.py").write_text(SMALLEST.format(body="yield {}").replace(".log", ".srt"))
    (project / "aifx.toml").write_text('[datasets]\nreaders = ["subtitles:Subtitles", "lines:Lines"]\n')
    assert ".srt is also a suffix of 'subtitles:Subtitles'" in add(project, "film.srt", code=2).stderr


def test_columns_that_change_further_on_are_found(project: Path) -> None:
    """Rows are JSON lines: the first block of them has whole numbers, and a later one a fraction and a new field."""
    rows = "yield from ({'n': n, 'x': 'x' * 1000} for n in range(3000))"
    body = f"{rows}; yield {{'n': 0.5, 'new': True}}; yield BadRow(None, 'end')"
    (project / "lines.py").write_text(SMALLEST.format(body=body))
    (project / "aifx.toml").write_text('[datasets]\nreaders = ["lines:Lines"]\n')
    (project / "a.log").write_text("one\n")
    add(project, "a.log")
    rows = rows_of(project)
    assert len(rows) == 3001
    assert (rows[0]["n"], rows[-1]["n"], rows[-1]["new"]) == (0.0, 0.5, True)
    version = open_catalog(str(project / "datasets")).open("films")
    (quarantined,) = parquet.read_table(version.quarantine[0]).to_pylist()
    assert (quarantined["line"], quarantined["reason"]) == (3002, "end")
