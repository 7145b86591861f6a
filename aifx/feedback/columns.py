"""Columns of rows as they are compared: of a text its length, words and language, of a picture its light."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aifx.curation.column_samples import MOST_CHARACTERS, comparable, is_text, lengths_of
from aifx.curation.languages import identify
from aifx.data.readers.formats import IMAGE
from aifx.feedback.pictures import BRIGHTNESS, SHARPNESS, light_of

LENGTH, UNSEEN, LANGUAGE = ".length", ".unseen", ".language"
"""After the name of a column of texts: characters, the share of pairs of words that the reference does not have, and
the likeliest language."""


class Columns:
    """Columns of both sides as `compare_columns` takes them.

    Attributes:
        left_out: columns that cannot be compared, with the reason.
    """

    def __init__(self) -> None:
        self.sides: tuple[dict[str, Any], dict[str, Any]] = {}, {}
        self.left_out: dict[str, str] = {}

    def add(self, name: str, old: Any, new: Any) -> None:
        self.sides[0][name], self.sides[1][name] = old, new


def columns_of(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> Columns:
    """The columns of both sides."""
    found = Columns()
    names = [dict.fromkeys(name for row in rows for name in row) for rows in (old, new)]
    for name in dict.fromkeys([*names[0], *names[1]]):
        if name not in names[0] or name not in names[1]:
            found.left_out[name] = "only now" if name in names[1] else "only in the reference"
            continue
        sides = [[row.get(name) for row in rows] for rows in (old, new)]
        if name == IMAGE and np.ndim(sides[0][0]) >= 2:
            for after, *values in zip((BRIGHTNESS, SHARPNESS), *map(light_of, sides), strict=True):
                found.add(name + after, *values)
        elif is_text(sides[0]):
            found.add(name + LENGTH, *map(lengths_of, sides))
            found.add(name + UNSEEN, *_unseen(*sides))
            found.add(name + LANGUAGE, *map(_languages, sides))
        elif isinstance(made := comparable(sides[0], sides[1]), str):
            found.left_out[name] = made
        else:
            found.add(name, *made)
    return found


def _unseen(old: Sequence[Any], new: Sequence[Any]) -> tuple[Any, Any]:
    """The share of each text's pairs of words that no other text of the reference has."""
    pairs = [_pairs(text) for text in old]
    texts_with = Counter(itertools.chain.from_iterable(pairs))

    def share(found: set[int], own: int) -> float:
        return sum(texts_with[pair] <= own for pair in found) / len(found) if found else math.nan

    return np.array([share(one, 1) for one in pairs]), np.array([share(_pairs(text), 0) for text in new])


def _languages(texts: Sequence[Any]) -> list[str | None]:
    found, _ = identify([text if isinstance(text, str) else "" for text in texts])
    return [language if isinstance(text, str) else None for language, text in zip(found, texts, strict=True)]


def _pairs(text: Any) -> set[int]:
    """The hashes of a text's pairs of words."""
    words = re.findall(r"\w+", text[:MOST_CHARACTERS].casefold()) if isinstance(text, str) else []
    return {hash(pair) for pair in itertools.pairwise(words)}
