"""`aifx data add`: the rows before the damage of a compressed file, and Parquet files that expand."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from adding import add, quarantine_of, rows_of
from pyarrow import parquet

from aifx.data.readers import parquet as parquet_reader
from aifx.data.readers import streams

ROWS = [f"{number} {random.Random(number).random()}" for number in range(9_000)]


def as_jsonl(rows: list[str]) -> bytes:
    return b"".join(json.dumps({"text": row}).encode() + b"\n" for row in rows)


def as_csv(rows: list[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([["n", "text"], *([1, row.replace(" ", "\n")] for row in rows)])
    return text.getvalue().encode()


def packed(data: bytes, suffix: str) -> bytes:
    return gzip.compress(data) if suffix == "gz" else pa.compress(data, "zstd", asbytes=True)


def decompressed(data: bytes) -> bytes:
    """The output of zlib, which is given byte by byte."""
    found, stream = bytearray(), zlib.decompressobj(31)
    with suppress(zlib.error):
        for at in range(len(data)):
            found += stream.decompress(data[at : at + 1])
    return bytes(found)


@pytest.mark.parametrize(("suffix", "write"), [("jsonl", as_jsonl), ("csv", as_csv)])
def test_all_rows_before_the_damage_are_there(tmp_path: Path, suffix: str, write: Callable[[list[str]], bytes]) -> None:
    """The rows of a file without its end, and of one that goes on with something else."""
    data, half = write(ROWS), len(ROWS) // 2
    for codec in ("gz", "zst"):
        whole = packed(data, codec)
        (tmp_path / f"a.{suffix}.{codec}").write_bytes(whole[: len(whole) * 2 // 3])
        (tmp_path / f"b.{suffix}.{codec}").write_bytes(packed(write(ROWS[:half]), codec) + whole[:10] + b"\xff" * 99)
    version = add(tmp_path, "corpus", f"*.{suffix}.gz", f"*.{suffix}.zst").version
    assert [row["line"] for row in quarantine_of(version)] == [None] * 4
    found: dict[str, list[str]] = {}
    for row in rows_of(version):
        found.setdefault(row["_source"].replace(f".{suffix}", ""), []).append(row["text"].replace("\n", " "))
    for name, rows in found.items():
        assert rows == ROWS[: len(rows)], name
    readable = decompressed((tmp_path / f"a.{suffix}.gz").read_bytes()).count(b"\n")
    assert len(found["a.gz"]) == (readable if suffix == "jsonl" else (readable - 1) // 2)
    assert len(found["a.zst"]) > len(ROWS) // 4
    assert (len(found["b.gz"]), len(found["b.zst"])) == (half, half)


def test_a_text_is_kept_up_to_its_last_whole_line(tmp_path: Path) -> None:
    data = "\n".join(ROWS).encode()
    packed = gzip.compress(data)[:-20]
    (tmp_path / "a.txt.gz").write_bytes(packed)
    (row,) = rows_of(add(tmp_path, "corpus", "a.txt.gz").version)
    assert row["text"].encode() == decompressed(packed)[: decompressed(packed).rfind(b"\n") + 1]
    parts = rows_of(add(tmp_path, "parts", "a.txt.gz", split_at="^1").version)
    assert "".join(part["text"] for part in parts) == row["text"]


def test_a_picture_without_its_end_is_no_row(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.png.gz").write_bytes(gzip.compress((tmp_path / "a.png").read_bytes())[:-8])  # the CRC is missing
    version = add(tmp_path, "pictures", "a.png.gz", kind="images").version
    assert (version.manifest.rows, version.manifest.facts["damaged_files"]) == (0, 1)


@pytest.mark.parametrize("column", ["dictionary", "null first", "list", "delta", "as dictionary"])
def test_a_parquet_file_that_repeats_a_value_is_a_bomb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    """Its index has few bytes, and no batch holds more than the limit of a batch."""
    monkeypatch.setattr(streams, "SMALL_EXPANSION", 4 << 20)
    monkeypatch.setattr(parquet_reader, "MOST_BYTES", 1 << 20)
    value, count = "x" * 50_000, 400
    values = {
        "null first": pa.array([None] * 3 + [value] * count),
        "list": pa.array([[], [value] * 4] * (count // 4)),
        "as dictionary": pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [value]),
    }.get(column, pa.array([value] * count))
    how = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}} if column == "delta" else {}
    parquet.write_table(pa.table({"text": values}), tmp_path / "a.parquet", compression="zstd", **how)
    assert (tmp_path / "a.parquet").stat().st_size < 4000
    batches: list[int] = []
    read = parquet_reader.batch_of
    monkeypatch.setattr(
        parquet_reader, "batch_of", lambda rows, first: batches.append(rows.nbytes) or read(rows, first)
    )
    version = add(tmp_path, "corpus", "a.parquet", kind="table").version
    assert "100 times its size" in quarantine_of(version)[0]["reason"]
    assert max(batches) < 1.1 * (1 << 20)
    allowed = add(tmp_path, "allowed", "a.parquet", kind="table", max_expansion=1e6).version
    assert allowed.manifest.rows >= count // 4
