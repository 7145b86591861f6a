"""Repair of texts: one Unicode form, and the characters that were meant where a text was decoded wrongly."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any, Literal, TypeAlias

UnicodeForm: TypeAlias = Literal["NFC", "NFKC", "none"]

MOST_ROUNDS = 8
"""Texts decoded wrongly more often than this stay as they are."""

_SUSPECT = re.compile(r"[^\x00-\x7f]{2}|[\xc0-\xff][ ?]|[\x00-\x08\x0b-\x1f\x7f-\xa0\u2028\u2029\ufeff\ufffd]")
"""In lines that ftfy repairs: mojibake is two such characters together, or an accented letter before a space."""

_ODD = r"[\x00-\x08\x0b-\x1f\x7f]|[^\x00-\x7f]"  # all that a repair may change


def repaired(values: Any, form: UnicodeForm, encoding: bool) -> Any:
    """Texts in a Unicode form, and without mojibake and control characters if `encoding`.

    Repairing them again changes nothing.

    Args:
        values: Arrow array of strings.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if form == "none" and not encoding:
        return values
    odd = pc.match_substring_regex(values, _ODD)
    if not pc.any(odd, min_count=0).as_py():
        return values
    old = values.filter(odd).to_pylist()
    new = [_repaired_text(text, form, encoding) for text in old]
    if old == new:
        return values
    places = np.flatnonzero(odd.to_numpy(zero_copy_only=False))
    return pc.replace_with_mask(values, _mask(len(values), places), pa.array(new, values.type))


def _mask(length: int, places: Any) -> Any:
    import numpy as np
    import pyarrow as pa

    mask = np.zeros(length, bool)
    mask[places] = True
    return pa.array(mask)


def _repaired_text(text: str, form: UnicodeForm, encoding: bool) -> str:
    if not encoding or not _SUSPECT.search(text):
        return _normal(text, form)
    found = text
    for _ in range(MOST_ROUNDS):
        before = found
        # ftfy decides line by line: breaks first, so that the next look at the text finds the same lines.
        found = "\n".join(_repaired_line(line, form) for line in _fixes().fix_line_breaks(found).split("\n"))
        if found == before:
            return found
    return _normal(text, form)


def _repaired_line(line: str, form: UnicodeForm) -> str:
    if not _SUSPECT.search(line):
        return _normal(line, form)
    import ftfy

    return _normal(ftfy.fix_text(line, _config()), form)


def _normal(text: str, form: UnicodeForm) -> str:
    return text if form == "none" else unicodedata.normalize(form, text)


@cache
def _config() -> Any:
    """Repairs alone: typographic quotes, ligatures, wide characters and HTML entities stay."""
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        normalization=None,
        explain=False,
    )


@cache
def _fixes() -> Any:
    from ftfy import fixes

    return fixes
