"""The words of texts as 64-bit hashes, computed for many texts at once.

A word is a longest run of letters, marks and numbers, in lower case; all other characters separate words. In scripts
that write no spaces between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer), each character is a word.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from aifx.core.digests import Hash64
from aifx.core.errors import DataError
from aifx.data.readers.arrow import pa

HASHES = 1
"""Version of the hashes of words and of their runs. Raise it if a text would get others."""

U64: TypeAlias = NDArray[np.uint64]
I64: TypeAlias = NDArray[np.int64]

PIECE_BYTES = 1 << 18
"""Bytes of text at a time, so that the arrays of a piece stay in the processor's cache."""

_SEPARATOR, _LETTER, _WORD = 0, 1, 2  # classes of characters; a _WORD is a word by itself
_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
_PAGE = 256
_BLOCK, _LONG = 8, 64  # bytes
_MASKS = np.array([(1 << (8 * size)) - 1 for size in range(_BLOCK + 1)], np.uint64)
_SIZE, _WORD_FACTOR, _RUN = (
    np.uint64(factor) for factor in (0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD, 0xD1342543DE82EF95)
)  # odd, so that multiplication loses nothing


@dataclass(frozen=True)
class Words:
    """The words of texts, one text after the other.

    Attributes:
        hashes: of each word.
        firsts: [num_texts + 1] where the words of each text begin.
        begins: place of each word in the bytes of all texts.
        ends: place after each word.
    """

    hashes: U64
    firsts: I64
    begins: I64
    ends: I64

    @property
    def counts(self) -> I64:
        """Words of each text."""
        return np.diff(self.firsts)


@dataclass(frozen=True)
class Runs:
    """Hashes of the runs of n words of texts.

    Attributes:
        firsts: [num_texts + 1] where the runs of each text begin.
        words: which word each run begins with.
    """

    hashes: U64
    firsts: I64
    words: I64


def find_words(texts: Any) -> Words:
    """The words of an Arrow array of strings; a null has none. Raises DataError for text that is not UTF-8."""
    data, offsets = text_buffer(texts)
    found: list[tuple[U64, I64, I64]] = []
    for begin, end in _pieces(data, offsets):
        inner = offsets[np.searchsorted(offsets, begin, "left") : np.searchsorted(offsets, end, "left")] - begin
        hashes, begins, ends = _piece_words(data[begin:end], inner)
        found.append((hashes, begins + begin, ends + begin))
    if len(found) == 1:
        ((hashes, begins, ends),) = found
    else:
        hashes, begins, ends = (np.concatenate(column) for column in zip(_NOTHING, *found, strict=True))
    return Words(hashes, np.searchsorted(begins, offsets, "left").astype(np.int64), begins, ends)


def word_runs(words: Words, length: int, *, whole: bool) -> Runs:
    """Hashes of all runs of `length` words. With `whole`, a shorter text that has a word is a run."""
    counts = words.counts
    per_text = np.maximum(counts - length + 1, 0)
    is_short = (counts > 0) & (per_text == 0)
    if whole:
        per_text = per_text + is_short
    firsts = np.concatenate([[0], np.cumsum(per_text)])
    # A run hashes as a polynomial of its words; beyond the end of a short text, words count as 0.
    padded = np.concatenate([words.hashes, np.zeros(length, np.uint64)])
    hashes = padded[: len(words.hashes)].copy()
    for place in range(1, length):
        hashes *= _RUN
        hashes += padded[place : place + len(words.hashes)]
    at = spread(words.firsts[:-1], per_text)
    hashes = hashes[at]
    if whole:
        short = np.flatnonzero(is_short)
        whole_texts = np.zeros(len(short), np.uint64)
        for place in range(length):
            whole_texts *= _RUN
            whole_texts += padded[words.firsts[short] + place] * (counts[short] > place)
        hashes[firsts[short]] = whole_texts
    return Runs(mix(hashes), firsts, at)


def spread(begins: I64, counts: I64) -> I64:
    """Places of the parts that begin at `begins` and have `counts` elements, one part after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(begins - before, counts) + np.arange(counts.sum())


def group_starts(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each value differs from the one before it. The first does."""
    return np.concatenate([[True], values[1:] != values[:-1]])[: len(values)]


def mix(values: U64) -> U64:
    """splitmix64's last step, in place: each bit of the result depends on all bits of the value."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def text_buffer(texts: Any) -> tuple[NDArray[np.uint8], I64]:
    """The bytes of an Arrow array of strings or binaries without a copy, and [num_texts + 1] places in them."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks() if texts.num_chunks != 1 else texts.chunk(0)
    texts = texts.cast(pa.large_binary())  # copies the places, not the bytes
    _, places, data = texts.buffers()
    offsets = np.frombuffer(places, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if data is None or not len(offsets):
        return np.zeros(0, np.uint8), np.zeros(len(texts) + 1, np.int64)
    first = int(offsets[0])
    return np.frombuffer(data, np.uint8)[first : int(offsets[-1])], offsets - first


def text_pieces(texts: Any, most: int) -> Iterator[Any]:
    """Slices of an Arrow array of strings: whole texts of `PIECE_BYTES` at most, or one, and at most so many."""
    _, offsets = text_buffer(texts)
    begin = 0
    while begin < len(texts):
        end = int(np.searchsorted(offsets, offsets[begin] + PIECE_BYTES, "right")) - 1
        end = min(max(end, begin + 1), begin + most)
        yield texts.slice(begin, end - begin)
        begin = end


def _pieces(data: NDArray[np.uint8], offsets: I64) -> Iterator[tuple[int, int]]:
    """Parts of the bytes: each ends with a text, or, in a long one, after a character that separates words."""
    begin, size = 0, len(data)
    while begin < size:
        end = min(begin + PIECE_BYTES, size)
        last = int(offsets[int(np.searchsorted(offsets, end, "right")) - 1])
        if end == size or last == end:
            pass
        elif last > begin:
            end = last
        else:
            end = _next_space(data, end)
        yield begin, end
        begin = end


def _next_space(data: NDArray[np.uint8], begin: int) -> int:
    """The place after the next ASCII space, newline or other control character."""
    while begin < len(data):
        found = np.flatnonzero(data[begin : begin + PIECE_BYTES] <= 0x20)
        if len(found):
            return begin + int(found[0]) + 1
        begin += PIECE_BYTES
    return len(data)


def _piece_words(data: NDArray[np.uint8], texts_at: I64) -> tuple[U64, I64, I64]:
    """Hashes of the words of a piece, where each begins and where it ends. `texts_at` is where texts begin."""
    folded = data | np.uint8(0x20)
    is_word = (folded - np.uint8(ord("a"))) < 26
    lower = data | (is_word.view(np.uint8) << np.uint8(5))
    is_word |= (data - np.uint8(ord("0"))) < 10
    breaks = texts_at
    if (data >= 0x80).any():
        breaks = np.concatenate([texts_at, _mark_characters(data, lower, is_word)])
    # Words begin and end where is_word changes, and where two texts or characters meet that are words by themselves.
    edges = np.zeros(len(data) + 1, bool)
    edges[0], edges[-1] = is_word[0], is_word[-1]
    np.not_equal(is_word[1:], is_word[:-1], out=edges[1:-1])
    inner = breaks[(breaks > 0) & is_word[breaks]]
    meets = np.unique(inner[is_word[inner - 1]])
    places = np.flatnonzero(edges)
    if len(meets):
        places = np.sort(np.concatenate([places, meets, meets]))
    begins, ends = places[::2].copy(), places[1::2].copy()
    return _hashed(lower, begins, ends), begins, ends


def _hashed(data: NDArray[np.uint8], begins: I64, ends: I64) -> U64:
    """Hashes of parts of bytes. Two parts of up to 8 bytes have the same hash only if they are the same."""
    padded = np.concatenate([data, np.zeros(_BLOCK, np.uint8)])
    blocks = np.ndarray((len(data),), "<u8", padded, strides=(1,))  # the 8 bytes that begin at each place
    sizes = ends - begins
    hashes = _absorb(sizes.astype(np.uint64) * _SIZE, blocks[begins], sizes)
    for place in range(_BLOCK, _LONG, _BLOCK):
        rest = np.flatnonzero(sizes > place)
        if not len(rest):
            break
        hashes[rest] = _absorb(hashes[rest], blocks[begins[rest] + place], sizes[rest] - place)
    for word in np.flatnonzero(sizes > _LONG):
        digest = Hash64(data[begins[word] : ends[word]].tobytes()).digest()
        hashes[word] = int.from_bytes(digest, "little")
    return hashes


def _absorb(hashes: U64, blocks: U64, sizes: I64) -> U64:
    """The hashes with the first bytes of a block mixed in: as many as `sizes`, 8 at most."""
    hashes ^= blocks & _MASKS.take(np.minimum(sizes, _BLOCK))
    hashes *= _WORD_FACTOR
    hashes ^= hashes >> np.uint64(32)
    return hashes


def _mark_characters(data: NDArray[np.uint8], lower: NDArray[np.uint8], is_word: NDArray[np.bool_]) -> I64:
    """Enter characters beyond ASCII into `lower` and `is_word`. Returns places where a word begins or must end."""
    at = np.flatnonzero(data >= 0xC0)
    lead = data[at]
    sizes = 2 + (lead >= 0xE0).astype(np.int64) + (lead >= 0xF0)
    end = at[-1] + sizes[-1] if len(at) else 0
    if (sizes - 1).sum() != ((data & 0xC0) == 0x80).sum() or end > len(data):
        raise DataError("a text is not UTF-8", "it has bytes that are no character", "aifx data verify")
    codes: I64 = lead.astype(np.int64) & (0xFF >> (sizes + 1))
    for place in (1, 2, 3):
        has = sizes > place
        codes[has] = (codes[has] << 6) | (data[at[has] + place] & 0x3F)
    classes, small = _CHARACTERS.of(codes)
    letters = classes != _SEPARATOR
    for place in range(4):
        has = sizes > place
        is_word[at[has] + place] = letters[has]
    changed = np.flatnonzero(small != codes)
    for place in range(4):
        here = changed[sizes[changed] > place]
        bits = small[here] >> (6 * (sizes[here] - 1 - place))
        lower[at[here] + place] = 0x80 | (bits & 0x3F) if place else ((0xF00 >> sizes[here]) & 0xFF) | bits
    alone = classes == _WORD
    after = at[alone] + sizes[alone]
    return np.concatenate([at[alone], after[after < len(data)]])


class _Characters:
    """Class and lower case of each character, found when it first occurs, in pages."""

    def __init__(self) -> None:
        self._classes = np.zeros(sys.maxunicode + 1, np.uint8)
        self._lower = np.zeros(sys.maxunicode + 1, np.int64)
        self._is_known = np.zeros((sys.maxunicode + 1) // _PAGE, bool)

    def of(self, codes: I64) -> tuple[NDArray[np.uint8], I64]:
        pages = np.flatnonzero(np.bincount(codes // _PAGE))
        for page in pages[~self._is_known[pages]].tolist():
            begin, end = page * _PAGE, (page + 1) * _PAGE
            characters = [chr(code) for code in range(begin, end)]
            self._classes[begin:end] = [_class_of(character) for character in characters]
            self._lower[begin:end] = [_lower_of(character) for character in characters]
            self._is_known[page] = True
        return self._classes[codes], self._lower[codes]


def _class_of(character: str) -> int:
    # A character that this Unicode does not know yet is taken for a letter, as most new ones are.
    if unicodedata.category(character)[0] not in "LMN" and unicodedata.category(character) != "Cn":
        return _SEPARATOR
    return _WORD if any(first <= ord(character) <= last for first, last in _WITHOUT_SPACES) else _LETTER


def _lower_of(character: str) -> int:
    """The code of its lower case, if that has as many bytes."""
    low = character.lower()
    size, low_size = (len(text.encode("utf-8", "surrogatepass")) for text in (character, low))
    return ord(low) if len(low) == 1 and low_size == size else ord(character)


_CHARACTERS = _Characters()
_NOTHING = (np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))


class _Split(dict[int, str]):
    """For `str.translate`: a word by itself between spaces, a letter in lower case, a separator as a space."""

    def __missing__(self, code: int) -> str:
        kind, low = _class_of(chr(code)), chr(_lower_of(chr(code)))
        self[code] = " " if kind == _SEPARATOR else low if kind == _LETTER else f" {low} "
        return self[code]


_SPLIT = _Split()


def split_words(text: str) -> list[str]:
    """The words of one text, as they are hashed."""
    return [word for word in text.translate(_SPLIT).split(" ") if word]
