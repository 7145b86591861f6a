"""`aifx data add`: files of every format become the same rows, and what cannot be read is in quarantine."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from adding import add, quarantine_of, rows_of
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from aifx.curation.reports import verify_version
from aifx.data.readers import csv
from aifx.data.readers.rows import read_rows
from aifx.data.readers.sources import local_file
from aifx.data.versions.catalog import open_catalog

RECORDS = [{"text": f'the "{n}"th line, é\nand more', "n": n, "share": n / 4} for n in range(1, 300)]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))


def write_csv(path: Path) -> None:
    arrow_csv.write_csv(pa.Table.from_pylist(RECORDS), path)


def write_parquet(path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(RECORDS), path, row_group_size=100)


WRITERS: dict[str, Callable[[Path], None]] = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


def compress(path: Path, suffix: str) -> Path:
    if not suffix:
        return path
    data = path.read_bytes()
    packed = path.with_name(path.name + suffix)
    packed.write_bytes(gzip.compress(data) if suffix == ".gz" else pa.compress(data, "zstd", asbytes=True))
    path.unlink()
    return packed


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("format_", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, format_: str, suffix: str) -> None:
    path = tmp_path / f"a.{format_}"
    WRITERS[format_](path)
    name = compress(path, suffix).name
    version = add(tmp_path, "corpus", name).version
    rows = rows_of(version)
    prefix = rows[0]["_row"].partition("-")[0]
    assert len(prefix) == 12
    assert rows == [{"_row": f"{prefix}-{n}", "_source": name, **record} for n, record in enumerate(RECORDS)]
    assert not version.manifest.quarantine


def test_bad_rows_are_in_quarantine(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "good", "n": 1}\n{"text": 5}\nnot JSON\n\n{"n": 3}\n{"text": " "}\n'
        b'{"text": "a"}{"text": "b"}\n{"text": "\xff"}\n[1]\n{"text": "good too", "n": null}'
    )
    (tmp_path / "b.csv").write_bytes(b'text,n\n"two\nlines",1\nshort\na,b,c\n\xff,1\n\n,1\nlast,2\n')
    version = add(tmp_path, "corpus", "a.jsonl", "b.csv").version
    assert [(row["text"], row["n"]) for row in rows_of(version)] == [
        ("good", 1),
        ("good too", None),
        ("two\nlines", 1),
        ("last", 2),
    ]
    found = [(row["source"], row["line"], row["value"]) for row in quarantine_of(version)]
    assert found == [
        ("a.jsonl", 2, b'{"text": 5}'),
        ("a.jsonl", 3, b"not JSON"),
        ("a.jsonl", 5, b'{"n": 3}'),
        ("a.jsonl", 6, b'{"text": " "}'),
        ("a.jsonl", 7, b'{"text": "a"}{"text": "b"}'),
        ("a.jsonl", 8, b'{"text": "\xff"}'),
        ("a.jsonl", 9, b"[1]"),
        ("b.csv", 4, b"short"),
        ("b.csv", 5, b"a,b,c"),
        ("b.csv", 6, b"\xff,1"),
        ("b.csv", 8, b",1"),
    ]
    assert {source.name: source.quarantined for source in version.manifest.sources} == {"a.jsonl": 7, "b.csv": 4}
    assert verify_version(open_catalog(str(tmp_path / "datasets")), version.reference).damages == ()
    damaged = version.quarantine[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert len(verify_version(open_catalog(str(tmp_path / "datasets")), version.reference).damages) == 1


TABLE = 'text,n\n\na,1\n"two\nlines",2\n\n,3\n,\n"5"" pipe",4\n5" pipe,5\n\nlast,6'


@pytest.mark.covering(2)
@pytest.mark.parametrize("value", ['5" pipe', "5 inches"])
@pytest.mark.parametrize("block", [1 << 20, 12])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_rows_of_csv_have_the_places_that_training_gives_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, line_end: str, block: int, value: str
) -> None:
    """Whatever separates values and lines, in whatever blocks the file is read, and by pyarrow or Python's module."""
    monkeypatch.setattr(csv, "BLOCK_BYTES", block)
    monkeypatch.setattr(csv, "SAMPLE_BYTES", block)
    text = TABLE.replace('\n5" pipe', f"\n{value}").replace(",", mark).replace("\n", line_end)
    (tmp_path / "a.csv").write_bytes(text.encode())
    rows = list(read_rows(local_file(tmp_path / "a.csv")))
    assert [row.line for row in rows] == [3, 4, 7, 8, 9, 10, 12]
    places = {str(row.number - 1): (row.line, row.values) for row in rows}
    version = add(tmp_path, "corpus", "a.csv").version
    found = rows_of(version)
    ids = [row["_row"].partition("-")[2] for row in found]
    assert ids == ["0", "1", "4", "5", "6"]
    assert [(row["text"], str(row["n"])) for row in found] == [tuple(places[number][1].values()) for number in ids]
    ((line, reason),) = [(row["line"], row["reason"]) for row in quarantine_of(version)]
    assert (line, "no text" in reason) == (7, True)


def test_rows_of_json_have_the_places_that_training_gives_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '\ufeff\n{"text": "a"}\n\n \t\r\n{"text": " "}\n{"text": "b"}\n\x0b\n{"text": "c"}'
    )
    rows = list(read_rows(local_file(tmp_path / "a.jsonl")))
    assert [(row.number, row.line) for row in rows] == [(1, 2), (2, 5), (3, 6), (4, 8)]
    version = add(tmp_path, "corpus", "a.jsonl").version
    assert [row["_row"].partition("-")[2] for row in rows_of(version)] == ["0", "2", "3"]
    assert [row["line"] for row in quarantine_of(version)] == [5]
