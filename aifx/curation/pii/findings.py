"""Findings in a text, and the context of a place in it."""

from __future__ import annotations

import re
from typing import NamedTuple

BEFORE, AFTER = 48, 24
"""Characters around a number in which a word may say what it is, such as "SSN"."""


class Finding(NamedTuple):
    """Personal data in a text. It holds where the data is and never the data.

    Attributes:
        start, end: in characters (Unicode code points).
        check: why it is taken for this: "checksum", "format", "numbering plan" or "context", perhaps with what it is.
    """

    start: int
    end: int
    kind: str
    check: str

    def overlaps(self, other: Finding) -> bool:
        return self.start < other.end and other.start < self.end


def word_pattern(words: str) -> re.Pattern[str]:
    """Matches one of the words or phrases, which are separated by commas, in upper or lower case."""
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words.split(', ')))})(?!\w)", re.IGNORECASE)


def has_beside(text: str, start: int, end: int, words: re.Pattern[str]) -> bool:
    """Whether one of the words is near a place of a text, on the same line."""
    before = text[max(0, start - BEFORE) : start].rpartition("\n")[2]
    after = text[end : end + AFTER].partition("\n")[0]
    return words.search(before) is not None or words.search(after) is not None


def shape_of(value: str, longest: int = 32) -> str:
    """A value without its letters and digits, to see what kind of thing it is: "aaaa@aaa.aa" """
    letters = (("0" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c) for c in value[:longest])
    return re.sub(r"\s", " ", "".join(letters)) + ("…" if len(value) > longest else "")
