"""Digests, against published vectors and the definitions that files on disk depend on."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from aifx.core.digests import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    BlockDigests,
    Hash64,
    Sha256,
    fraction_of,
    hash32,
    sha256_of,
    sha256_of_blocks,
    sha256_of_file,
    sha256_of_json,
    sha256_of_values,
    size_and_sha256,
)
from aifx.core.progress import Reporter

# FIPS 180-4's examples, and the empty message.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
MILLION = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"  # a million times "a"


@pytest.mark.parametrize(
    "data", ["abc", b"abc", bytearray(b"abc"), memoryview(b"xabc")[1:], np.frombuffer(b"abc", np.uint8)]
)
def test_bytes_and_text_are_hashed_alike(data: bytes | str) -> None:
    assert sha256_of(data) == Sha256(b"abc").hexdigest() == ABC


def test_text_is_hashed_as_utf_8() -> None:
    assert sha256_of("é") == sha256_of(b"\xc3\xa9")
    assert sha256_of("") == EMPTY


def test_values_are_hashed_by_their_repr() -> None:
    assert sha256_of_values("x", 1, None) == sha256_of("('x', 1, None)")
    assert sha256_of_values("x") == sha256_of("('x',)")
    assert sha256_of_values("1") != sha256_of_values(1)


def test_json_is_hashed_in_one_spelling() -> None:
    assert sha256_of_json({"b": [1, 2.5], "a": "é"}) == sha256_of('{"a":"\\u00e9","b":[1,2.5]}')


def test_a_file_by_path_or_open_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 1_000_000)
    assert sha256_of_file(path) == MILLION
    with open(path, "rb") as file:
        assert size_and_sha256(file) == (1_000_000, MILLION)
    with open(path, "rb") as file:
        file.seek(999_999)
        assert sha256_of_file(file) == sha256_of("a")
    assert sha256_of_file(io.BytesIO(b"abc")) == ABC
    with pytest.raises(FileNotFoundError):
        sha256_of_file(tmp_path / "none")


class Counter(Reporter):
    def __init__(self) -> None:
        super().__init__("hashing", None, "bytes")
        self.bytes = 0

    def advance(self, amount: int) -> None:
        self.bytes += amount


@pytest.mark.parametrize("measure", [
    lambda path, progress: sha256_of_file(path, progress),
    lambda path, progress: sha256_of_blocks([b"a" * 999_999, np.frombuffer(b"a", np.uint8)], progress),
])  # fmt: skip
def test_hashing_reports_every_byte_as_progress(tmp_path: Path, measure: Callable[..., str]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 1_000_000)
    progress = Counter()
    assert measure(path, progress) == MILLION
    assert progress.bytes == 1_000_000


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 3])
@pytest.mark.parametrize("step", [1000, BLOCK_BYTES, 3 * BLOCK_BYTES])
def test_blocks_have_their_digests_however_they_come(size: int, step: int) -> None:
    whole = np.random.default_rng(0).bytes(size)
    digests = BlockDigests()
    for start, stop in pairwise([*range(0, size, step), size]):
        digests.update(whole[start:stop])
    found = digests.finish()
    assert [found[i : i + DIGEST_BYTES].hex() for i in range(0, len(found), DIGEST_BYTES)] == [
        sha256_of(whole[start : start + BLOCK_BYTES]) for start in range(0, size, BLOCK_BYTES)
    ]


def test_short_hashes_stay_what_seeds_and_splits_of_data_depend_on() -> None:
    assert hash32("shuffle", 0, 1) == 1088047685
    assert Hash64(b"abc").hexdigest() == "d8bb14d833d59559"
    assert fraction_of(bytes(8)) == 0
    assert fraction_of(b"\x40" + bytes(7)) == 0.25
    assert fraction_of(Hash64(b"abc").digest()) == pytest.approx(0.8466046359861451)
