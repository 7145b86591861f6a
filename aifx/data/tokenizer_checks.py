"""What a tokenizer.json of strangers may not hold: it would exhaust the memory, or never come to an end."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from aifx.core.errors import DataError
from aifx.data.patterns import find_flaw

MOST_GROWTH = 256
"""Bytes that one byte of text may become. NFKC needs 11 (U+FDFA), a space as "<space>" 7."""

_GROWTH = {"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 1.5, "BertNormalizer": 7.5, "ByteLevel": 2}
"""The most that each normalizer of Hugging Face's library makes of a byte, from the Unicode tables; others: 1."""


def check_vocabulary(vocabulary: Mapping[str, int], name: str) -> None:
    """Raises DataError if ids go far beyond the number of tokens: a model has a row for each id."""
    highest = max(vocabulary.values(), default=0)
    if highest > 2 * len(vocabulary) + 2**16:
        why = f"it has {len(vocabulary):,} tokens, and a model needs a row for each id"
        raise DataError(f"{name}: its ids go up to {highest:,}", why, "number its tokens from 0")


def check_description(description: Mapping[str, Any], name: str) -> None:
    """Raises DataError if a pattern may backtrack without end, or a step makes very long text of short text."""
    for step in ("normalizer", "pre_tokenizer", "decoder"):
        for pattern in _patterns(description.get(step)):
            if flaw := find_flaw(pattern):
                hint = "use possessive quantifiers or atomic groups, which give nothing back"
                raise DataError(f"{name}: matching its {step} may never end", f"{flaw}: {pattern[:200]}", hint)
        if (growth := _growth(description.get(step) or {})) > MOST_GROWTH:
            what = f"{name}: its {step} makes {growth:,.0f} bytes of one byte of text"
            raise DataError(what, f"{MOST_GROWTH} are allowed", f"shorten the replacements of its {step}")


@contextmanager
def library_errors(name: str) -> Iterator[None]:
    """Turn what the tokenizers library raises on a text into a DataError: also its panics, which are no Exception."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException" and type(error) is not Exception:
            raise
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "retry-limit" in why:
            why = f"its pattern backtracks without end ({why})"
        hint = 'data.tokenizer is "bpe", "char", "byte" or another tokenizer.json'
        raise DataError(f"{name} fails on this text", why, hint) from error


def _patterns(step: Any) -> Iterator[str]:
    """All regular expressions below a step of the description."""
    parts = step if isinstance(step, list) else step.values() if isinstance(step, Mapping) else ()
    for part in parts:
        if isinstance(part, Mapping) and isinstance(part.get("Regex"), str):
            yield part["Regex"]
        yield from _patterns(part)


def _growth(step: Mapping[str, Any]) -> float:
    """The most bytes that one byte of text becomes."""
    kind = step.get("type")
    if kind == "Sequence":
        parts = next((step[key] for key in ("normalizers", "pretokenizers", "decoders") if key in step), ())
        return math.prod(map(_growth, parts))
    if kind == "Replace":
        size = len(str(step.get("content", "")).encode())
        pattern = step.get("pattern") or {}
        return max(size / max(len(str(pattern["String"]).encode()), 1), 1) if "String" in pattern else size + 1
    if kind == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")).encode())
    if kind == "Precompiled":
        return max(_longest_replacement(str(step.get("precompiled_charsmap", ""))), 1)
    return float(_GROWTH.get(str(kind), 1))


def _longest_replacement(charsmap: str) -> int:
    """Of SentencePiece's table: the size of a trie, the trie, then replacements that end with a zero byte each."""
    try:
        data = base64.b64decode(charsmap)
    except (binascii.Error, ValueError):
        return 1  # the library refuses it
    return max(map(len, data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")))
