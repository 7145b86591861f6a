"""Sequences of n words that occur more than once in a text."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]

_FACTOR, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(29)  # of a hash by multiplication


class Repeats:
    """The repeated n-grams of texts.

    An n-gram occurs twice only if its first n - 1 words do, so each n looks at the places that are left by n - 1.

    Args:
        ids: of the words of all texts, text by text.
        text: the number of the text of each word.
        lengths: the characters of each word.
    """

    def __init__(self, ids: Ints, text: Ints, lengths: Ints) -> None:
        self._ids, self._text = ids, text
        self._ends = np.concatenate([[0], np.cumsum(lengths)])
        self._found: dict[int, tuple[Ints, NDArray[np.uint64]]] = {}

    def later(self, n: int) -> NDArray[np.bool_]:
        """Whether each word is in an n-gram that occurs earlier in its text."""
        starts, keys = self._repeated(n)
        is_first = np.ones(len(starts), bool)
        is_first[1:] = keys[1:] != keys[:-1]
        return self._covered(starts[~is_first], n)

    def top(self, n: int) -> NDArray[np.bool_]:
        """Whether each word is in the most frequent n-gram of its text.

        Of equally frequent ones, that with the most characters; of these, the first. An n-gram that occurs once is not
        frequent.
        """
        starts, keys = self._repeated(n)
        if not len(starts):
            return np.zeros(len(self._ids), bool)
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        counts = np.diff(np.append(first, len(starts)))
        place = starts[first]
        characters = self._ends[place + n] - self._ends[place]
        order = np.lexsort((place, -characters, -counts, self._text[place]))
        texts = self._text[place[order]]
        best = order[np.concatenate([[True], texts[1:] != texts[:-1]])]
        chosen = np.zeros(len(first), bool)
        chosen[best] = True
        return self._covered(starts[np.repeat(chosen, counts)], n)

    def _repeated(self, n: int) -> tuple[Ints, NDArray[np.uint64]]:
        """Where repeated n-grams begin, sorted by n-gram and place, and a key of each n-gram and text."""
        if n not in self._found:
            if n == 1:
                starts = np.arange(len(self._ids))
                keys = _mixed(self._text.astype(np.uint64), self._ids)
            else:
                starts, keys = self._repeated(n - 1)
                inside = starts + n <= len(self._ids)
                starts, keys = starts[inside], keys[inside]
                inside = self._text[starts + n - 1] == self._text[starts]
                starts = starts[inside]
                keys = _mixed(keys[inside], self._ids[starts + n - 1])
            order = np.argsort(keys, kind="stable")  # by n-gram, then by place: n - 1 left it so
            starts, keys = starts[order], keys[order]
            same = keys[1:] == keys[:-1]
            again = np.concatenate([same, [False]]) | np.concatenate([[False], same])
            self._found[n] = starts[again[: len(starts)]], keys[again[: len(starts)]]
        return self._found[n]

    def _covered(self, starts: Ints, n: int) -> NDArray[np.bool_]:
        """Whether each word is one of the n words from a start on."""
        change = np.zeros(len(self._ids) + 1, np.int64)
        np.add.at(change, starts, 1)
        np.add.at(change, starts + n, -1)
        covered: NDArray[np.bool_] = np.cumsum(change[:-1]) > 0
        return covered


def _mixed(keys: NDArray[np.uint64], ids: Ints) -> NDArray[np.uint64]:
    """Keys of sequences that are longer by a word; two sequences share one by chance, in 1 of 2^64 cases."""
    mixed = (keys ^ (keys >> _SHIFT)) * _FACTOR + ids.astype(np.uint64) + np.uint64(1)
    return mixed * _FACTOR ^ (mixed >> np.uint64(32))
