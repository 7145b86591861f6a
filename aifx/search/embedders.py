"""Embedders: they turn texts into vectors whose inner product is the cosine of their angle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aifx.curation.words import HASHES, I64, U64, Words, find_words, mix, spread, text_buffer, word_runs

F32: TypeAlias = NDArray[np.float32]
EmbedderKind: TypeAlias = Literal["ngrams", "run", "encoder"]

NGRAMS: EmbedderKind = "ngrams"
RUN: EmbedderKind = "run"
ENCODER: EmbedderKind = "encoder"


@dataclass(frozen=True)
class EmbedderRecord:
    """An embedder in the manifest of an index.

    Attributes:
        name: what `--embedder` names.
        settings: all that a vector depends on, with the digests of the files that are read.
    """

    kind: EmbedderKind
    name: str
    dims: int
    settings: Mapping[str, Any]


class Embedder(ABC):
    """Embeds texts. A pickle of it goes to other processes if `uses_processes`."""

    uses_processes: ClassVar[bool] = False

    @property
    @abstractmethod
    def record(self) -> EmbedderRecord: ...

    @abstractmethod
    def embed(self, texts: Any) -> F32:
        """Vectors `[texts, dims]` of length 1 of an Arrow array of strings; of length 0 for a text without content."""


def normalized(vectors: NDArray[Any]) -> F32:
    """The rows of a matrix at length 1; rows of zeros stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)


NGRAMS_ALGORITHM = 1
"""Version of the vectors. Raise it if a text would get another one."""

PART_BYTES = 4
"""Length of the parts of words. Each word has a space before and after it."""

PART_WEIGHT = 0.5
"""Weight of a part of a word; a word has 1."""

TEXTS_AT_A_TIME = 1 << 10
_HASH_BITS = 48  # of a key; the number of the text is above them
_SALTS = tuple(np.uint64(salt) for salt in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


@dataclass(frozen=True)
class HashedNgrams(Embedder):
    """The embedder that needs no model: texts that share words, pairs of words or parts of words are near each other.

    Each n-gram adds the square root of its count to one of the dimensions, with a sign (Weinberger et al. 2009,
    "Feature Hashing for Large Scale Multitask Learning", arXiv 0902.2206). Both follow from a hash of its bytes, so the
    same text has the same vector everywhere. The square root keeps frequent words from outweighing all others.
    """

    dims: int = 512

    uses_processes = True

    @property
    def record(self) -> EmbedderRecord:
        return EmbedderRecord(NGRAMS, NGRAMS, self.dims, {"algorithm": NGRAMS_ALGORITHM, "words": HASHES})

    def embed(self, texts: Any) -> F32:
        parts = [self._embed(texts.slice(at, TEXTS_AT_A_TIME)) for at in range(0, len(texts), TEXTS_AT_A_TIME)]
        return np.concatenate(parts) if parts else np.zeros((0, self.dims), np.float32)

    def _embed(self, texts: Any) -> F32:
        size = len(texts) * self.dims
        sums = np.zeros(size)
        for text, hashes, weight in _ngrams(texts):
            keys = np.sort((text.astype(np.uint64) << np.uint64(_HASH_BITS)) | (hashes >> np.uint64(64 - _HASH_BITS)))
            firsts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else keys.astype(int)
            counts = np.diff(np.append(firsts, len(keys)))
            keys = keys[firsts]
            # The lowest bit of the hash is the sign, the others name the dimension.
            signs = 1.0 - 2.0 * (keys & np.uint64(1))
            hashes = (keys & np.uint64((1 << _HASH_BITS) - 1)) >> np.uint64(1)
            places = (keys >> np.uint64(_HASH_BITS)) * np.uint64(self.dims) + hashes % np.uint64(self.dims)
            sums += np.bincount(places.astype(np.int64), weight * signs * np.sqrt(counts), size)
        return normalized(sums.reshape(len(texts), self.dims))


def _ngrams(texts: Any) -> Iterator[tuple[I64, U64, float]]:
    """For each sort of n-grams: the text of each, its hash, and the weight of the sort."""
    import pyarrow.compute as pc

    lower = pc.utf8_lower(texts)
    words = find_words(lower)
    text = np.repeat(np.arange(len(texts)), words.counts)
    yield text, mix(words.hashes ^ _SALTS[0]), 1.0
    pairs = word_runs(words, 2, whole=False)
    yield np.repeat(np.arange(len(texts)), np.diff(pairs.firsts)), mix(pairs.hashes ^ _SALTS[1]), 1.0
    counts, parts = _word_parts(lower, words)
    yield np.repeat(text, counts), mix(parts ^ _SALTS[2]), PART_WEIGHT


def _word_parts(texts: Any, words: Words) -> tuple[I64, U64]:
    """The number of parts of each word, and the bytes of all parts as numbers."""
    counts: I64 = np.maximum(words.ends - words.begins + 2 - PART_BYTES + 1, 0)
    data, _ = text_buffer(texts)
    padded = np.concatenate([[0], data, np.zeros(8, np.uint8)]).astype(np.uint8)  # a place before the first word
    blocks = np.ndarray((len(data) + 1,), "<u8", padded, strides=(1,))  # the 8 bytes that begin at each place
    parts = blocks[spread(words.begins, counts)] & np.uint64((1 << 8 * PART_BYTES) - 1)
    # Whatever separates words counts as a space, in the first byte of a word's first part and the last of its last.
    heads = (np.cumsum(counts) - counts)[counts > 0]
    tails = (np.cumsum(counts) - 1)[counts > 0]
    space, last = np.uint64(ord(" ")), np.uint64(8 * (PART_BYTES - 1))
    parts[heads] = (parts[heads] & ~np.uint64(0xFF)) | space
    parts[tails] = (parts[tails] & ~(np.uint64(0xFF) << last)) | (space << last)
    return counts, parts
