"""A token store whose bytes changed on the disk: found when they are read, and built again."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prose import prose

from aifx.core.artifact import BLOCKS, MANIFEST
from aifx.core.digests import BLOCK_BYTES, BlockDigests
from aifx.core.errors import DataError, EnvironmentFault
from aifx.core.project import cache_path
from aifx.data.corpus import stored_tokens
from aifx.data.order import prefetch
from aifx.data.row_cache import BlockArray
from aifx.data.text import TextData

Write = Callable[..., Path]
Open = Callable[..., TextData]

LENGTH = 256


def flip_bits(path: Path, count: int, start: int = 128) -> None:
    data = bytearray(path.read_bytes())
    for bit in np.random.default_rng(0).integers(start * 8, len(data) * 8, count):
        data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)


def write_zeros(path: Path, start: int = 4096) -> None:
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(bytes(4096))


def write_unknown_id(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write((65_535).to_bytes(2, "little"))


def change_type(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"'<u2'", b"'<i2'", 1))


def batches(data: TextData) -> list[bytes]:
    """The first epoch, read as training reads it."""
    text = data.source("train", batch_size=16, seed=3)
    steps = range(len(text.sequences) // 16)
    return [b"".join(v.tobytes() for v in batch.values()) for batch in prefetch(text, steps, slice(0, 16))]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The text, and the caches and assets after it was opened once: copied by each test, never changed."""
    return tmp_path_factory.mktemp("built")


@pytest.fixture
def opened(built: Path, write: Write, open_: Open, tmp_path: Path, logged: list[str]) -> TextData:
    write("a.txt", prose(40_000))
    if (built / "cache").is_dir():
        shutil.copytree(built / "cache", cache_path())
        shutil.copytree(built / "assets", tmp_path / "project/assets")
    data = open_(seq_len=LENGTH)
    if not (built / "cache").is_dir():
        shutil.copytree(cache_path(), built / "cache")
        shutil.copytree(tmp_path / "project/assets", built / "assets")
    logged.clear()
    return data


@pytest.mark.covering(1)
@pytest.mark.parametrize("damage", [lambda path: flip_bits(path, 20), write_zeros, write_unknown_id, change_type])
@pytest.mark.parametrize("when", ["before", "while"])
def test_training_reads_what_was_tokenized(
    damage: Callable[[Path], None], when: str, opened: TextData, open_: Open, logged: list[str]
) -> None:
    expected = batches(opened)
    path = opened.store.path / "train.tokens.npy"
    data = open_(seq_len=LENGTH) if when == "while" else opened
    damage(path)
    if when == "before":
        data = open_(seq_len=LENGTH)
    assert batches(data) == expected
    if not (damage is change_type and when == "while"):  # the header was read before
        assert [text.startswith("warning: the token store") for text in logged] == [True, False]
        assert logged[1] == "tokenizing data/a.txt"
        assert f"{opened.store.path} is damaged" in logged[0]
        logged.clear()
        assert batches(open_(seq_len=LENGTH)) == expected
        assert not logged, "it was built again for good"


@pytest.mark.parametrize("name", ["train.documents.npy", MANIFEST, f"train.tokens.npy{BLOCKS}"])
def test_a_flipped_bit_in_another_file_is_found_when_the_store_is_opened(
    name: str, opened: TextData, open_: Open, logged: list[str]
) -> None:
    path = opened.store.path / name
    whole = path.read_bytes()
    if name == MANIFEST:
        path.write_bytes(whole.replace(b'"closed": false', b'"closed": true', 1))
    else:
        flip_bits(path, 1, start=len(whole) - 8)
    assert path.read_bytes() != whole
    data = open_(seq_len=LENGTH)
    assert "is damaged" in logged[0]
    assert path.read_bytes() == whole
    assert batches(data) == batches(opened)


def test_a_damaged_packing_is_made_again(opened: TextData, open_: Open, logged: list[str]) -> None:
    expected = batches(open_(seq_len=LENGTH, packing="documents"))
    (index,) = opened.store.path.glob("train.packing-*")
    flip_bits(index, 1)
    assert batches(open_(seq_len=LENGTH, packing="documents")) == expected
    (line,) = logged
    assert f"{index} is damaged" in line
    logged.clear()
    assert batches(open_(seq_len=LENGTH, packing="documents")) == expected
    assert not logged


def test_another_process_may_have_built_it_again(opened: TextData, open_: Open, logged: list[str]) -> None:
    expected = batches(opened)
    data = open_(seq_len=LENGTH)
    flip_bits(opened.store.path / "train.tokens.npy", 20)
    stored_tokens(opened.store.path, opened.corpus, opened.tokenizer, whole=True)
    logged.clear()
    assert batches(data) == expected
    assert logged == []


def test_a_store_whose_text_is_gone_ends_the_training(opened: TextData, open_: Open, write: Write) -> None:
    data = open_(seq_len=LENGTH)
    flip_bits(opened.store.path / "train.tokens.npy", 20)
    write("a.txt", prose(40_000, 1))
    with pytest.raises(DataError, match=r"data/a.txt changed"):
        batches(data)


def test_a_disk_that_damages_all_it_is_given_ends_the_training(
    opened: TextData, open_: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_(seq_len=LENGTH)
    path = opened.store.path / "train.tokens.npy"
    flip_bits(path, 20)
    rename = os.rename

    def damaging(old: Path, new: Path) -> None:
        rename(old, new)
        if new == path.parent:
            flip_bits(path, 20)

    monkeypatch.setattr(os, "rename", damaging)
    with pytest.raises(EnvironmentFault, match=str(path.parent)):
        batches(data)


@given(st.lists(st.integers(0, 3 * BLOCK_BYTES), max_size=4), st.data())
def test_digests_do_not_depend_on_how_bytes_come(cuts: list[int], data: st.DataObject) -> None:
    values = np.arange(data.draw(st.integers(0, 3 * BLOCK_BYTES)), dtype=np.uint32).astype(np.uint8)
    stream = io.BytesIO()
    np.save(stream, values)
    whole = stream.getvalue()
    digests = BlockDigests()
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    for start, stop in itertools.pairwise(places):
        digests.update(whole[start:stop])
    blocks = [whole[start : start + BLOCK_BYTES] for start in range(0, len(whole), BLOCK_BYTES)]
    assert digests.finish() == b"".join(hashlib.sha256(block).digest() for block in blocks)
    array = BlockArray(np.frombuffer(whole, np.uint8), digests.finish())
    assert len(array) == len(values)
    assert array[:].tobytes() == values.tobytes()
