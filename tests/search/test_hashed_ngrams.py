"""Vectors of hashed n-grams: compared with n-grams that plain Python counts, and the same everywhere."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from aifx.curation.words import split_words
from aifx.search.embedders import HashedNgrams

TEXTS = [
    "Call me Ishmael. Some years ago, never mind how long",
    "call ME Ishmael: some years ago!",
    "The whale, the whale, the white WHALE",
    "Ünïcode Straße МОСКВА 東京は夜",
    "a b a",
    "",
    "?!",
    None,
    "x" * 100,
]


def counted(text: str | None) -> Counter[tuple[str, object]]:
    words = split_words((text or "").lower())
    found: Counter[tuple[str, object]] = Counter(("word", word) for word in words)
    found.update(("pair", pair) for pair in pairwise(words))
    for word in words:
        padded = b" " + word.encode() + b" "
        found.update(("part", padded[at : at + 4]) for at in range(len(padded) - 3))
    return found


def cosine(one: Counter[tuple[str, object]], other: Counter[tuple[str, object]]) -> float:
    """The cosine of the square roots of counts, where a part of a word has half the weight of a word."""

    def product(a: Counter[tuple[str, object]], b: Counter[tuple[str, object]]) -> float:
        return sum(math.sqrt(n * b[key]) * (0.25 if key[0] == "part" else 1.0) for key, n in a.items())

    lengths = math.sqrt(product(one, one) * product(other, other))
    return product(one, other) / lengths if lengths else 0.0


@pytest.mark.slow
def test_cosines_are_those_of_counted_ngrams() -> None:
    """With many dimensions, no two n-grams of these texts share one."""
    vectors = HashedNgrams(1 << 20).embed(pa.array(TEXTS))
    wanted = [[cosine(counted(one), counted(other)) for other in TEXTS] for one in TEXTS]
    np.testing.assert_allclose(vectors @ vectors.T, wanted, atol=1e-6)


def test_vectors_are_the_same_everywhere() -> None:
    vectors = HashedNgrams().embed(pa.array(TEXTS))
    assert vectors.shape == (len(TEXTS), 512)
    digest = hashlib.sha256(np.round(vectors * 2**20).astype("<i4").tobytes()).hexdigest()
    assert digest[:16] == "3fbab17108365657"


def test_a_vector_does_not_depend_on_other_texts() -> None:
    texts = pa.chunked_array([pa.array(TEXTS * 300)]).chunk(0)
    alone = HashedNgrams(64).embed(pa.array(TEXTS))
    np.testing.assert_array_equal(HashedNgrams(64).embed(texts), np.tile(alone, (300, 1)))
    np.testing.assert_array_equal(HashedNgrams(64).embed(texts.slice(2, 3)), alone[2:5])
    assert HashedNgrams(64).embed(texts.slice(0, 0)).shape == (0, 64)
