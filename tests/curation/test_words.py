"""Words and their runs: hashed many at a time, as plain Python splits one text."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_rows import words_of

from aifx.core.errors import DataError
from aifx.curation import words as words_module
from aifx.curation.words import find_words, spread, text_pieces, word_runs

TEXTS = st.lists(
    st.one_of(st.text(max_size=40), st.text("abcAB1 .,-\n_é中文ไทยПр🙂İẞ\u0301", max_size=60)), max_size=12
)


@settings(deadline=None, max_examples=100)
@given(TEXTS, st.integers(8, 40))
def test_words_are_those_of_plain_python(texts: list[str], piece: int) -> None:
    """However the bytes are cut into pieces."""
    before, words_module.PIECE_BYTES = words_module.PIECE_BYTES, piece
    try:
        found = find_words(pa.array(texts, pa.string()))
    finally:
        words_module.PIECE_BYTES = before
    hashes: dict[str, int] = {}
    data = "".join(texts).encode()
    for index, text in enumerate(texts):
        expected = words_of(text)
        here = slice(found.firsts[index], found.firsts[index + 1])
        assert found.counts[index] == len(expected)
        for word, hash_, begin, end in zip(
            expected, found.hashes[here], found.begins[here], found.ends[here], strict=True
        ):
            assert words_of(data[begin:end].decode()) == [word]
            assert hashes.setdefault(word, int(hash_)) == hash_
    assert len(set(hashes.values())) == len(hashes)


@settings(deadline=None)
@given(TEXTS, st.integers(1, 6), st.booleans())
def test_runs_are_those_of_plain_python(texts: list[str], length: int, whole: bool) -> None:
    runs = word_runs(find_words(pa.array(texts, pa.large_string())), length, whole=whole)
    hashes: dict[tuple[str, ...], int] = {}
    for index, text in enumerate(texts):
        words = words_of(text)
        expected = [tuple(words[at : at + length]) for at in range(len(words) - length + 1)]
        if whole and words and not expected:
            expected = [tuple(words)]
        found = runs.hashes[runs.firsts[index] : runs.firsts[index + 1]].tolist()
        assert len(found) == len(expected)
        for run, hash_ in zip(expected, found, strict=True):
            assert hashes.setdefault(run, hash_) == hash_
    assert len(set(hashes.values())) == len(hashes)


def test_a_slice_and_a_null_have_the_words_of_their_rows() -> None:
    texts = pa.array(["one two", None, "three", "", "four five six"])
    assert find_words(texts).counts.tolist() == [2, 0, 1, 0, 3]
    assert find_words(texts.slice(2)).counts.tolist() == [1, 0, 3]
    assert find_words(texts.slice(1, 1)).counts.tolist() == [0]
    assert find_words(pa.array([], pa.string())).counts.tolist() == []


def test_pieces_are_all_texts_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words_module, "PIECE_BYTES", 10)
    texts = pa.chunked_array([["skipped", "one", None, ""], ["three four five six", "é", "seven", "eight"]]).slice(1)
    pieces = list(text_pieces(texts, 3))
    assert [len(piece) for piece in pieces] == [3, 1, 2, 1]
    assert pa.concat_arrays([chunk for piece in pieces for chunk in piece.chunks]).equals(texts.combine_chunks())
    assert list(text_pieces(pa.array([], pa.string()), 3)) == []


def test_long_words_are_hashed_whole() -> None:
    long = "x" * 70
    found = find_words(pa.array([f"{long}a {long}b {long}a {'y' * 64} {'y' * 63}z"]))
    assert len(set(found.hashes.tolist())) == 4
    assert found.hashes[0] == found.hashes[2]


@pytest.mark.parametrize("data", [b"a \xff b", b"\xc3", b"\x80 word", b"\xe4\xb8"])
def test_bytes_that_are_no_text(data: bytes) -> None:
    texts = pa.Array.from_buffers(pa.string(), 1, pa.array([data], pa.binary()).buffers())
    with pytest.raises(DataError, match="not UTF-8"):
        find_words(texts)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5))))
def test_places_of_parts(parts: list[tuple[int, int]]) -> None:
    import numpy as np

    begins, counts = (np.array([part[side] for part in parts], np.int64) for side in (0, 1))
    assert spread(begins, counts).tolist() == [begin + at for begin, count in parts for at in range(count)]
