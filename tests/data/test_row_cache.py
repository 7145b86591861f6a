"""Arrays and rows of the cache: made once, mapped, and made again if a byte of them changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aifx.core import code_digest as codes
from aifx.core.digests import BLOCK_BYTES, Sha256
from aifx.core.errors import EnvironmentFault
from aifx.data import row_cache
from aifx.data.row_cache import (
    UNCOUNTED,
    ArrayWriter,
    FixedRows,
    cached_arrays,
    read_cached,
    read_checked,
    rows_key,
    write_array,
    write_checked,
)

VALUES = np.arange(BLOCK_BYTES, dtype=np.int32)


def write(folder: Path) -> Mapping[str, Any]:
    write_array(folder / "values.npy", VALUES)
    write_array(folder / "none.npy", VALUES[:0])
    return {"count": len(VALUES)}


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_they_are_read_as_they_were_written(tmp_path: Path) -> None:
    for _ in range(2):
        artifact, arrays = cached_arrays(tmp_path / "it", "toy", write)
        assert artifact.content == {"count": len(VALUES)}
        assert (arrays["none"][:].dtype, len(arrays["none"])) == (VALUES.dtype, 0)
        for part in (slice(None), slice(5), slice(-5, None), slice(20_000, 40_000)):
            assert np.array_equal(arrays["values"][part], VALUES[part])


def test_what_came_there_first_is_compared(tmp_path: Path) -> None:
    """Another process puts a damaged one in place while this one writes."""
    cached_arrays(tmp_path / "other", "toy", write)
    flip_last_byte(tmp_path / "other/values.npy")

    def write_late(folder: Path) -> Mapping[str, Any]:
        if not (tmp_path / "it").exists():
            (tmp_path / "other").rename(tmp_path / "it")
        return write(folder)

    _, arrays = cached_arrays(tmp_path / "it", "toy", write_late)
    assert np.load(tmp_path / "it/values.npy")[-1] == VALUES[-1]
    assert np.array_equal(arrays["values"][:], VALUES)


@pytest.mark.parametrize("name", ["values.npy", "values.npy.blocks"])
def test_links_and_pipes_are_not_followed(name: str, tmp_path: Path, logged: list[str]) -> None:
    cached_arrays(tmp_path / "it", "toy", write)
    path, elsewhere = tmp_path / "it" / name, tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    cached_arrays(tmp_path / "it", "toy", write)
    assert not path.is_symlink()
    path.unlink()
    os.mkfifo(path)
    cached_arrays(tmp_path / "it", "toy", write)
    assert path.is_file()
    assert [line.startswith(f"warning: the toy {tmp_path / 'it'} is damaged") for line in logged] == [True, True]


def test_other_values_than_before_are_no_repair(tmp_path: Path) -> None:
    def write_again(folder: Path) -> Mapping[str, Any]:
        values = VALUES if not (tmp_path / "it").exists() else VALUES + 1
        write_array(folder / "values.npy", values)
        return {}

    _, arrays = cached_arrays(tmp_path / "it", "toy", write_again)
    flip_last_byte(tmp_path / "it/values.npy")
    assert np.array_equal(arrays["values"][:5], VALUES[:5])
    with pytest.raises(EnvironmentFault):
        arrays["values"][-5:]


def test_an_array_grows_by_parts(tmp_path: Path) -> None:
    writer = ArrayWriter(tmp_path / "values.npy", VALUES.dtype)
    for part in np.split(VALUES, [3, 3, 1000]):
        writer.append(part)
    writer.finish()
    assert np.array_equal(np.load(tmp_path / "values.npy"), VALUES)


@pytest.mark.timeout(60)
def test_a_link_or_a_pipe_in_place_of_a_file_is_not_read(tmp_path: Path, logged: list[str]) -> None:
    path = tmp_path / "file"
    write_checked(path, b"what it holds")
    assert read_cached(read_checked, path, "file") == b"what it holds"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert read_cached(read_checked, path, "file") is None
    path.unlink()
    os.mkfifo(path)
    assert read_cached(read_checked, path, "file") is None
    assert len(logged) == 2
    write_checked(path, b"what it holds")
    assert read_cached(read_checked, path, "file") == b"what it holds"


def test_rows_of_one_shape_are_compared_one_by_one(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (5, 3, 4), np.uint8)
    digests = b"".join(Sha256(row).digest() for row in rows)
    damaged = rows.copy()
    damaged[3, 1, 2] ^= 1
    found = FixedRows(damaged.reshape(-1), digests, (3, 4))
    assert found.shape == rows.shape
    assert np.array_equal(found[np.array([4, 0, 4])], rows[[4, 0, 4]])
    with pytest.raises(ValueError, match="block 3"):
        found[np.array([1, 3])]
    asked: list[int] = []

    def repair(row: int) -> np.ndarray:
        asked.append(row)
        return rows.reshape(-1)

    found.repair = repair
    for _ in range(2):
        assert np.array_equal(found[np.array([3, 2])], rows[[3, 2]])
    assert asked == [3]
    with pytest.raises(ValueError, match="5 rows"):
        FixedRows(rows.reshape(-1)[:-1], digests, (3, 4))


@pytest.mark.parametrize("module", ["aifx.data.corpus", "aifx.data.chat.store", "aifx.data.readers.pictures"])
def test_the_code_that_makes_rows_is_small(module: str) -> None:
    """Rows are made again if it changes: so what configures, opens and reports does not count."""
    search = codes._Search(module, codes._file_of(module), UNCOUNTED)
    assert module in search.digests
    others = ("aifx.data.sections", "aifx.data.versions", "aifx.data.text", "aifx.config", "aifx.core", "aifx.machine")
    assert not [name for name in search.digests if name.startswith(others)]
    if module != "aifx.data.readers.pictures":
        assert {"aifx.data.corpus", "aifx.data.tokenizer", "aifx.data.readers.rows"} <= search.digests.keys()
        assert "tokenizers" in search.libraries()
    else:
        assert "pillow" in search.libraries()


def test_rows_are_named_by_the_code_that_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    key = rows_key("aifx.data.corpus", "a")
    assert key == rows_key("aifx.data.corpus", "a") != rows_key("aifx.data.corpus", "b")
    monkeypatch.setattr(row_cache, "code_digest", lambda *_: codes.Code("other", {}))
    assert rows_key("aifx.data.corpus", "a") != key
