"""`aifx data add`: files and lines that their libraries do not survive, or answer with errors of any type."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pytest
from adding import add, quarantine_of, rows_of
from pyarrow import parquet

from aifx.commands.console.failures import as_error
from aifx.core.errors import DataError
from aifx.core.files import replacing
from aifx.core.os_errors import errno_of
from aifx.data.readers import parquet as parquet_reader
from aifx.data.readers.base import DamagedFile, ReadOptions
from aifx.data.readers.sources import local_file
from aifx.data.versions import shards
from aifx.data.versions.catalog import open_catalog
from aifx.data.versions.shards import read_shard, write_shard


@pytest.mark.parametrize("null", ["null", " \t null", "null null", 'null {"n": 1}'])
@pytest.mark.parametrize("kind", ["text", "table"])
def test_a_line_with_a_null_is_a_bad_row(tmp_path: Path, kind: str, null: str) -> None:
    """pyarrow ends the process for a block that begins with one."""
    (tmp_path / "a.jsonl").write_text(f'{null}\n{{"text": "first"}}\n{null}\n{{"text": "second"}}\n')
    version = add(tmp_path, "corpus", "a.jsonl", kind=kind).version
    assert [(row["_row"][12:], row["text"]) for row in rows_of(version)] == [("-1", "first"), ("-3", "second")]
    assert [(row["line"], row["value"]) for row in quarantine_of(version)] == [(1, null.encode()), (3, null.encode())]


def test_a_flipped_byte_of_parquet_is_damage(tmp_path: Path) -> None:
    rows = pa.table({"text": [f"text {n}" for n in range(500)], "n": range(500), "items": [[n] for n in range(500)]})
    path = tmp_path / "a.parquet"
    parquet.write_table(rows, path)
    whole = path.read_bytes()
    rng, options, damaged = random.Random(7), ReadOptions("table"), 0
    for _ in range(200):
        data = bytearray(whole)
        data[rng.randrange(max(0, len(data) - rng.choice((2000, len(data)))), len(data))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            schema = parquet_reader.find_schema(local_file(path), options, is_whole=False)
            list(parquet_reader.read(local_file(path), schema, options))
        except DamagedFile:
            damaged += 1
        with suppress(DataError):
            read_shard(path)
    assert damaged > 50


def test_parquet_with_two_columns_of_a_name_is_damage(tmp_path: Path) -> None:
    parquet.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet")
    version = add(tmp_path, "corpus", "a.parquet").version
    assert "two columns 'text'" in quarantine_of(version)[0]["reason"]


@pytest.mark.parametrize(
    ("lines", "good", "bad"),
    [
        (['{"text": "a"}', '{"text": "b"}{"text": "c"}', '{"text": "d"}'], ["a", "d"], [2]),
        (['{"text": "a"}', " ", '{"text": "b"} {"text": "c"}', '{"text": "d"}'], ["a", "d"], [3]),
        (['{"text":', '"a"}', '{"text": "b"}{"text": "c"}', '{"text": "d"}'], ["d"], [1, 2, 3]),
        (['{"text":', '1}{"text": "b"}', '{"text": "d"}'], ["d"], [1, 2]),
    ],
)
def test_a_line_with_two_objects_is_bad(tmp_path: Path, lines: list[str], good: list[str], bad: list[int]) -> None:
    """Also if there are as many objects as lines."""
    for line_end in ("\n", "\r\n"):
        (tmp_path / "a.jsonl").write_text(line_end.join(lines) + line_end, newline="")
        version = add(tmp_path, "corpus", "a.jsonl").version
        assert [row["text"] for row in rows_of(version)] == good
        assert [row["line"] for row in quarantine_of(version)] == bad


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_a_file_name_that_is_not_utf8_is_escaped(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "files" / os.fsdecode(b"caf\xe9." + suffix.encode())
    path.parent.mkdir()
    if suffix == "parquet":
        with open(path, "wb") as file:
            parquet.write_table(pa.table({"text": ["fine"]}), file)
    else:
        path.write_text("fine" if suffix == "txt" else '{"text": "fine"}\n')
    version = add(tmp_path, "corpus", "files").version
    assert [(row["_source"], row["text"]) for row in rows_of(version)] == [(f"files/caf\\xe9.{suffix}", "fine")]


def test_empty_lists_can_be_added_to_empty_lists(tmp_path: Path) -> None:
    """Parquet and Arrow call the items of a list by other names."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}", "items": []}}\n')
        version = add(tmp_path, "corpus", f"{name}.jsonl").version
    assert [row["text"] for row in rows_of(version)] == ["a", "b"]


def test_an_array_that_does_not_fit_on_the_disk_means_a_full_disk() -> None:
    """NumPy raises an OSError without a number."""
    with pytest.raises(OSError, match="requested and") as failure, open("/dev/full", "wb", buffering=0) as file:
        np.zeros(100_000).tofile(file)
    assert failure.value.errno is None
    assert errno_of(failure.value) == errno.ENOSPC


def test_a_full_disk_is_named_by_the_folder_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def on_a_full_disk(path: Path) -> Iterator[IO[bytes]]:
        with replacing(path) as file:
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, file.fileno())
            os.close(full)
            yield file

    monkeypatch.setattr(shards, "replacing", on_a_full_disk)
    rows = pa.table({"text": ["a"]})
    with pytest.raises(OSError, match="No space left") as failure:
        write_shard(tmp_path, "shards/00000.parquet", rows)
    assert as_error(failure.value).hint.startswith(f"df -h {tmp_path}/shards;")
    assert list((tmp_path / "shards").iterdir()) == []


def test_a_folder_called_latest_is_no_data_set(tmp_path: Path) -> None:
    made = add_text(tmp_path, "corpus")
    for odd in ("latest/latest", "other/latest"):
        (tmp_path / "datasets" / odd).mkdir(parents=True)
    catalog = open_catalog(str(tmp_path / "datasets"))
    assert catalog.names() == ["corpus"]
    assert catalog.latest("other") is None
    assert catalog.find("corpus") == ("corpus", made)


def add_text(folder: Path, name: str) -> str:
    (folder / "a.txt").write_text("fine")
    return add(folder, name, "a.txt").version.manifest.version
