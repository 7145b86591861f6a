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
from numpy.typing import NDArray

from aifx.curation.ngrams import Repeats

Values: TypeAlias = NDArray[Any]

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
"""Characters of scripts that do not put spaces between words."""

UNSPACED_SHARE = 0.2
"""A text is written without spaces if more of its characters are of these scripts."""

SENTENCE_END = r"""[.!?…]+["'”’»)\]]*(?:\s|$)|[。！？]"""


class Parts:
    """The words, lines or paragraphs of texts.

    Attributes:
        values: Arrow array of strings, text by text.
        text: the number of the text of each part.
    """

    def __init__(self, lists: Any, num_texts: int, trim: bool) -> None:
        import pyarrow.compute as pc

        values = lists.flatten()
        text = np.repeat(np.arange(num_texts), _numbers(lists.value_lengths()))
        if trim:
            values = pc.utf8_trim_whitespace(values)
        filled = pc.greater(pc.binary_length(values), 0)
        self.values = values.filter(filled)
        self.text = text[_numbers(filled)]
        self._num_texts = num_texts

    @cached_property
    def lengths(self) -> Values:
        """Characters of each part."""
        import pyarrow.compute as pc

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
        import pyarrow.compute as pc

        return Parts(pc.utf8_split_whitespace(self.values), len(self), trim=False)

    @cached_property
    def lines(self) -> Parts:
        import pyarrow.compute as pc

        return Parts(pc.split_pattern(self.values, "\n"), len(self), trim=True)

    @cached_property
    def paragraphs(self) -> Parts:
        import pyarrow.compute as pc

        return Parts(pc.split_pattern_regex(self.values, r"\n\s*\n"), len(self), trim=True)

    @cached_property
    def repeats(self) -> Repeats:
        return Repeats(self.words.ids, self.words.text, self.words.lengths)

    @cached_property
    def is_unspaced(self) -> NDArray[np.bool_]:
        """Whether each text is written without spaces between words."""
        import pyarrow.compute as pc

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


def _words(texts: Texts, _: None) -> Values:
    return texts.words.counts


def _word_length(texts: Texts, _: None) -> Values:
    return texts.words.share(texts.words.lengths)


def _characters(texts: Texts, _: None) -> Values:
    import pyarrow.compute as pc

    return _numbers(pc.utf8_length(texts.values))


def _occurrences(texts: Texts, phrases: Sequence[str]) -> Values:
    import pyarrow.compute as pc

    counts = (pc.count_substring(texts.values, phrase, ignore_case=True) for phrase in phrases)
    return np.sum([_numbers(count) for count in counts], axis=0)


def _phrases_per_word(texts: Texts, phrases: Sequence[str]) -> Values:
    return _ratio(_occurrences(texts, phrases), texts.words.counts)


def _distinct_words(texts: Texts, phrases: Sequence[str]) -> Values:
    import pyarrow.compute as pc

    patterns = (rf"(?i)(?:^|[^\pL\pN_]){re.escape(phrase)}(?:$|[^\pL\pN_])" for phrase in phrases)
    found = (pc.match_substring_regex(texts.values, pattern) for pattern in patterns)
    return np.sum([_numbers(has) for has in found], axis=0)


def _alphabetic_words(texts: Texts, _: None) -> Values:
    import pyarrow.compute as pc

    words = texts.words
    return words.share(_numbers(pc.match_substring_regex(words.vocabulary, r"\pL"))[words.ids])


def _lines_starting_with(texts: Texts, phrases: Sequence[str]) -> Values:
    import pyarrow.compute as pc

    return _share_of_lines(texts, pc.starts_with, phrases)


def _lines_ending_with(texts: Texts, phrases: Sequence[str]) -> Values:
    import pyarrow.compute as pc

    return _share_of_lines(texts, pc.ends_with, phrases)


def _share_of_lines(texts: Texts, has: Callable[[Any, str], Any], phrases: Sequence[str]) -> Values:
    lines = texts.lines
    found = [_numbers(has(lines.values, phrase)) for phrase in phrases]
    return lines.share(np.any(found, axis=0))


def _short_lines(texts: Texts, length: int) -> Values:
    return texts.lines.share(texts.lines.lengths < length)


def _duplicate_lines(texts: Texts, _: None) -> Values:
    return texts.lines.share(texts.lines.is_repeated)


def _duplicate_line_characters(texts: Texts, _: None) -> Values:
    return texts.lines.character_share(texts.lines.is_repeated)


def _duplicate_paragraphs(texts: Texts, _: None) -> Values:
    return texts.paragraphs.share(texts.paragraphs.is_repeated)


def _duplicate_paragraph_characters(texts: Texts, _: None) -> Values:
    return texts.paragraphs.character_share(texts.paragraphs.is_repeated)


def _top_ngram_characters(texts: Texts, n: int) -> Values:
    return texts.words.character_share(texts.repeats.top(n))


def _duplicate_ngram_characters(texts: Texts, n: int) -> Values:
    return texts.words.character_share(texts.repeats.later(n))


def _sentences(texts: Texts, _: None) -> Values:
    import pyarrow.compute as pc

    return _numbers(pc.count_substring_regex(texts.values, SENTENCE_END))


MEASURES: Mapping[str, Measure] = {
    "words": Measure(_words, "number of words", counts_words=True),
    "word_length": Measure(_word_length, "mean characters per word", counts_words=True),
    "characters": Measure(_characters, "number of characters"),
    "occurrences": Measure(_occurrences, "occurrences of `phrases`, in upper or lower case", "phrases"),
    "phrases_per_word": Measure(_phrases_per_word, "occurrences of `phrases` per word", "phrases", True),
    "distinct_words": Measure(
        _distinct_words, "how many of `phrases` occur as a word, in upper or lower case", "phrases", True
    ),
    "alphabetic_words": Measure(_alphabetic_words, "share of words with a letter", counts_words=True),
    "lines_starting_with": Measure(
        _lines_starting_with, "share of lines that begin with one of `phrases`", "phrases"
    ),
    "lines_ending_with": Measure(_lines_ending_with, "share of lines that end with one of `phrases`", "phrases"),
    "short_lines": Measure(_short_lines, "share of lines with fewer than `length` characters", "length"),
    "duplicate_lines": Measure(_duplicate_lines, "share of lines that repeat an earlier line"),
    "duplicate_line_characters": Measure(_duplicate_line_characters, "share of characters in such lines"),
    "duplicate_paragraphs": Measure(_duplicate_paragraphs, "share of paragraphs that repeat an earlier one"),
    "duplicate_paragraph_characters": Measure(
        _duplicate_paragraph_characters, "share of characters in such paragraphs"
    ),
    "top_ngram_characters": Measure(
        _top_ngram_characters, "share of characters in the most frequent sequence of `n` words", "n", True
    ),
    "duplicate_ngram_characters": Measure(
        _duplicate_ngram_characters,
        "share of characters in sequences of `n` words that repeat an earlier sequence",
        "n",
        True,
    ),
    "sentences": Measure(_sentences, "number of ends of sentences"),
}  # fmt: skip


def _ratio(part: Values, whole: Values) -> Values:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


def _numbers(values: Any) -> Values:
    """The values of an Arrow array without nulls."""
    found: Values = values.to_numpy(zero_copy_only=False)
    return found
