"""Measures of texts, for rules: of many texts at a time, but the value of a text depends on it alone.

Words are separated by whitespace, lines by line feeds, paragraphs by blank lines. Lines and paragraphs count without
the whitespace around them, and not at all if they are blank. Characters are Unicode code points; those of a share are
the characters of the words, lines or paragraphs. A text without words (lines, paragraphs) has the share 0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Values: TypeAlias = NDArray[Any]

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
"""Characters of scripts that do not put spaces between words."""

UNSPACED_SHARE = 0.2
"""A text is written without spaces if more of its characters are of these scripts."""

SENTENCE_END = r"""[.!?…]+["'”’»)\]]*(?:\s|$)|[。！？]"""

_FACTOR, _SHIFT = np.uint64(0x9E3779B97F4A7C15), np.uint64(29)  # of a hash by multiplication


class Parts:
    """The words, lines or paragraphs of texts.

    Attributes:
        values: Arrow array of strings, text by text.
        text: the number of the text of each part.
    """

    def __init__(self, lists: Any, num_texts: int, trim: bool) -> None:
        values = lists.flatten()
        text = np.repeat(np.arange(num_texts), _numbers(lists.value_lengths()))
        if trim:
            values = pc.utf8_trim_whitespace(values)
        filled = pc.greater(pc.binary_length(values), 0)
        self.values = values.filter(filled)
        self.text = text[_numbers(filled)]
        self._num_texts = num_texts
        self._repeats: dict[int, tuple[Ints, NDArray[np.uint64]]] = {}

    @cached_property
    def lengths(self) -> Values:
        """Characters of each part."""
        return _numbers(pc.utf8_length(self.values))

    @cached_property
    def ids(self) -> Values:
        """A number of each part, the same for equal parts."""
        ids: Values = _numbers(self._encoded.indices).astype(np.int64)
        return ids

    @cached_property
    def vocabulary(self) -> Any:
        """Arrow array of the distinct parts, by id."""
        return self._encoded.dictionary

    @cached_property
    def _encoded(self) -> Any:
        return self.values.dictionary_encode()

    @cached_property
    def counts(self) -> Values:
        return np.bincount(self.text, minlength=self._num_texts)

    @cached_property
    def characters(self) -> Values:
        """Characters of the parts of each text."""
        return self.sums(self.lengths)

    @cached_property
    def is_repeated(self) -> NDArray[np.bool_]:
        """Whether the same part is earlier in the text."""
        _, first = np.unique(self.text * len(self.vocabulary) + self.ids, return_index=True)
        repeated = np.ones(len(self.text), bool)
        repeated[first] = False
        return repeated

    def sums(self, values: Values) -> Values:
        """The sum of values of parts, by text."""
        return np.bincount(self.text, values, self._num_texts)

    def share(self, values: Values) -> Values:
        """The mean of values of parts, by text."""
        return _ratio(self.sums(values), self.counts)

    def character_share(self, chosen: NDArray[np.bool_]) -> Values:
        """Of the characters of the parts of each text, the share in the chosen parts."""
        return _ratio(self.sums(self.lengths * chosen), self.characters)

    def in_later_ngram(self, n: int) -> NDArray[np.bool_]:
        """Whether each part is in an n-gram that occurs earlier in its text."""
        starts, keys = self._repeated(n)
        is_first = np.ones(len(starts), bool)
        is_first[1:] = keys[1:] != keys[:-1]
        return self._covered(starts[~is_first], n)

    def in_top_ngram(self, n: int) -> NDArray[np.bool_]:
        """Whether each part is in the most frequent n-gram of its text.

        Of equally frequent ones, that with the most characters; of these, the first. An n-gram that occurs once is not
        frequent.
        """
        starts, keys = self._repeated(n)
        if not len(starts):
            return np.zeros(len(self.ids), bool)
        first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        counts = np.diff(np.append(first, len(starts)))
        place = starts[first]
        ends = np.concatenate([[0], np.cumsum(self.lengths)])
        characters = ends[place + n] - ends[place]
        order = np.lexsort((place, -characters, -counts, self.text[place]))
        texts = self.text[place[order]]
        best = order[np.concatenate([[True], texts[1:] != texts[:-1]])]
        chosen = np.zeros(len(first), bool)
        chosen[best] = True
        return self._covered(starts[np.repeat(chosen, counts)], n)

    def _repeated(self, n: int) -> tuple[Ints, NDArray[np.uint64]]:
        """Where repeated n-grams begin, sorted by n-gram and place, and a key of each n-gram and text.

        An n-gram occurs twice only if its first n - 1 parts do, so each n looks at the places that are left by n - 1.
        """
        if n not in self._repeats:
            if n == 1:
                starts = np.arange(len(self.ids))
                keys = _mixed(self.text.astype(np.uint64), self.ids)
            else:
                starts, keys = self._repeated(n - 1)
                inside = starts + n <= len(self.ids)
                starts, keys = starts[inside], keys[inside]
                inside = self.text[starts + n - 1] == self.text[starts]
                starts = starts[inside]
                keys = _mixed(keys[inside], self.ids[starts + n - 1])
            order = np.argsort(keys, kind="stable")  # by n-gram, then by place: n - 1 left it so
            starts, keys = starts[order], keys[order]
            same = keys[1:] == keys[:-1]
            again = np.concatenate([same, [False]]) | np.concatenate([[False], same])
            self._repeats[n] = starts[again[: len(starts)]], keys[again[: len(starts)]]
        return self._repeats[n]

    def _covered(self, starts: Ints, n: int) -> NDArray[np.bool_]:
        """Whether each part is one of the n parts from a start on."""
        change = np.zeros(len(self.ids) + 1, np.int64)
        np.add.at(change, starts, 1)
        np.add.at(change, starts + n, -1)
        covered: NDArray[np.bool_] = np.cumsum(change[:-1]) > 0
        return covered


class Texts:
    """Some texts, and the views of them that measures share.

    Args:
        values: Arrow array of strings, none of them null.
    """

    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def words(self) -> Parts:
        return Parts(pc.utf8_split_whitespace(self.values), len(self), trim=False)

    @cached_property
    def lines(self) -> Parts:
        return Parts(pc.split_pattern(self.values, "\n"), len(self), trim=True)

    @cached_property
    def paragraphs(self) -> Parts:
        return Parts(pc.split_pattern_regex(self.values, r"\n\s*\n"), len(self), trim=True)

    @cached_property
    def is_unspaced(self) -> NDArray[np.bool_]:
        """Whether each text is written without spaces between words."""
        unspaced = np.zeros(len(self), bool)
        others = np.flatnonzero(~_numbers(pc.string_is_ascii(self.values)))
        if len(others):
            chosen = self.values.take(others)
            count = _numbers(pc.count_substring_regex(chosen, UNSPACED))
            unspaced[others] = count > UNSPACED_SHARE * _numbers(pc.utf8_length(chosen))
        return unspaced


@dataclass(frozen=True)
class Measure:
    """A number that describes a text.

    Attributes:
        of: gives the value of each text; it takes the texts and the option.
        summary: for docs.
        option: the key of a rule that it needs: "phrases", "n", "length", or "" for none.
        counts_words: whether it makes no sense for texts that are written without spaces between words.
    """

    of: Callable[[Texts, Any], Values]
    summary: str
    option: str = ""
    counts_words: bool = False


def _occurrences(texts: Texts, phrases: Sequence[str]) -> Values:
    counts = (pc.count_substring(texts.values, phrase, ignore_case=True) for phrase in phrases)
    return np.sum([_numbers(count) for count in counts], axis=0)


def _distinct_words(texts: Texts, phrases: Sequence[str]) -> Values:
    patterns = (rf"(?i)(?:^|[^\pL\pN_]){re.escape(phrase)}(?:$|[^\pL\pN_])" for phrase in phrases)
    found = (pc.match_substring_regex(texts.values, pattern) for pattern in patterns)
    return np.sum([_numbers(has) for has in found], axis=0)


def _alphabetic_words(texts: Texts, _: None) -> Values:
    words = texts.words
    return words.share(_numbers(pc.match_substring_regex(words.vocabulary, r"\pL"))[words.ids])


def _share_of_lines(texts: Texts, has: Callable[[Any, str], Any], phrases: Sequence[str]) -> Values:
    found = [_numbers(has(texts.lines.values, phrase)) for phrase in phrases]
    return texts.lines.share(np.any(found, axis=0))


MEASURES: Mapping[str, Measure] = {
    "words": Measure(lambda texts, _: texts.words.counts, "number of words", counts_words=True),
    "word_length": Measure(
        lambda texts, _: texts.words.share(texts.words.lengths), "mean characters per word", counts_words=True
    ),
    "characters": Measure(lambda texts, _: _numbers(pc.utf8_length(texts.values)), "number of characters"),
    "occurrences": Measure(_occurrences, "occurrences of `phrases`, in upper or lower case", "phrases"),
    "phrases_per_word": Measure(
        lambda texts, phrases: _ratio(_occurrences(texts, phrases), texts.words.counts),
        "occurrences of `phrases` per word",
        "phrases",
        counts_words=True,
    ),
    "distinct_words": Measure(
        _distinct_words,
        "how many of `phrases` occur as a word, in upper or lower case",
        "phrases",
        counts_words=True,
    ),
    "alphabetic_words": Measure(_alphabetic_words, "share of words with a letter", counts_words=True),
    "lines_starting_with": Measure(
        lambda texts, phrases: _share_of_lines(texts, pc.starts_with, phrases),
        "share of lines that begin with one of `phrases`",
        "phrases",
    ),
    "lines_ending_with": Measure(
        lambda texts, phrases: _share_of_lines(texts, pc.ends_with, phrases),
        "share of lines that end with one of `phrases`",
        "phrases",
    ),
    "short_lines": Measure(
        lambda texts, length: texts.lines.share(texts.lines.lengths < length),
        "share of lines with fewer than `length` characters",
        "length",
    ),
    "duplicate_lines": Measure(
        lambda texts, _: texts.lines.share(texts.lines.is_repeated), "share of lines that repeat an earlier line"
    ),
    "duplicate_line_characters": Measure(
        lambda texts, _: texts.lines.character_share(texts.lines.is_repeated), "share of characters in such lines"
    ),
    "duplicate_paragraphs": Measure(
        lambda texts, _: texts.paragraphs.share(texts.paragraphs.is_repeated),
        "share of paragraphs that repeat an earlier one",
    ),
    "duplicate_paragraph_characters": Measure(
        lambda texts, _: texts.paragraphs.character_share(texts.paragraphs.is_repeated),
        "share of characters in such paragraphs",
    ),
    "top_ngram_characters": Measure(
        lambda texts, n: texts.words.character_share(texts.words.in_top_ngram(n)),
        "share of characters in the most frequent sequence of `n` words",
        "n",
        counts_words=True,
    ),
    "duplicate_ngram_characters": Measure(
        lambda texts, n: texts.words.character_share(texts.words.in_later_ngram(n)),
        "share of characters in sequences of `n` words that repeat an earlier sequence",
        "n",
        counts_words=True,
    ),
    "sentences": Measure(
        lambda texts, _: _numbers(pc.count_substring_regex(texts.values, SENTENCE_END)), "number of ends of sentences"
    ),
}


def _ratio(part: Values, whole: Values) -> Values:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


def _numbers(values: Any) -> Values:
    """The values of an Arrow array without nulls."""
    found: Values = values.to_numpy(zero_copy_only=False)
    return found


def _mixed(keys: NDArray[np.uint64], ids: Ints) -> NDArray[np.uint64]:
    """Keys of sequences that are longer by a word; two sequences share one by chance, in 1 of 2^64 cases."""
    mixed = (keys ^ (keys >> _SHIFT)) * _FACTOR + ids.astype(np.uint64) + np.uint64(1)
    return mixed * _FACTOR ^ (mixed >> np.uint64(32))
