"""What a tokenizer.json of strangers may not hold: it would exhaust the memory, or never come to an end.

Also the size of its longest token, which bounds the tokens of a text from below.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tokenizers import pre_tokenizers

from aifx.core.errors import DataError
from aifx.data.patterns import find_flaw

MOST_GROWTH = 256
"""Bytes that one byte of text may become. NFKC needs 11 (U+FDFA), a space as "<space>" 7."""

_GROWTH = {"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 1.5, "BertNormalizer": 7.5, "ByteLevel": 2}
"""The most that each normalizer of Hugging Face's library makes of a byte, from the Unicode tables; others: 1."""


SHRINKAGE = {"NFC": 9, "NFD": 3, "NFKC": 12, "NFKD": 4, "Lowercase": 3, "Prepend": 1, "ByteLevel": 1}
"""The most bytes of text that these normalizers make one byte of, from the Unicode tables; others can drop any text.

A composed character has at most a third of the bytes of its parts, and parts a third (NFKD: a quarter) of the
character that they replace: 9 and 12 are the products.
"""

_KEEPING = ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split")
"""Pre-tokenizers that drop no text, unless their behavior is "Removed"."""

_SPELT_BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))


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


def most_bytes_of_token(description: Mapping[str, Any]) -> int | None:
    """The most bytes of text that one token covers: a text of more than N times as many has more than N tokens.

    None if there is no limit, since the tokenizer drops text or has a token for unknown text.
    """
    model, added = description["model"], description.get("added_tokens") or ()
    steps = _steps(description.get("pre_tokenizer"), "pretokenizers")
    is_bytewise = any(step.get("type") == "ByteLevel" for step in steps)  # one character of a token is one byte
    alphabet = frozenset(pre_tokenizers.ByteLevel.alphabet()) if is_bytewise else _SPELT_BYTES
    shrinkage = _shrinkage(description.get("normalizer") or {})
    if (
        model.get("type") != "BPE"
        or not (is_bytewise or model.get("byte_fallback"))
        or not model["vocab"].keys() >= alphabet
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
        or any(token.get("lstrip") or token.get("rstrip") for token in added)
        or any(step.get("type") not in _KEEPING or step.get("behavior") == "Removed" for step in steps)
        or math.isinf(shrinkage)
    ):
        return None
    sizes = [len(token) if is_bytewise else len(token.encode()) for token in model["vocab"]]
    return math.ceil(shrinkage * max([*sizes, *(len(token["content"].encode()) for token in added)]))


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


def _shrinkage(step: Mapping[str, Any]) -> float:
    """The most bytes of text that a normalizer makes one byte of."""
    kind = step.get("type")
    if kind is None:
        return 1
    if kind == "Sequence":
        return math.prod(_shrinkage(part) for part in step.get("normalizers", ()))
    if kind == "Replace" and (content := str(step.get("content", "")).encode()):
        pattern = (step.get("pattern") or {}).get("String")
        return math.inf if pattern is None else max(len(str(pattern).encode()) / len(content), 1)
    return SHRINKAGE.get(str(kind), math.inf)


def _steps(step: Mapping[str, Any] | None, parts: str) -> list[Mapping[str, Any]]:
    """A step and those of its sequence, as one list."""
    if not step:
        return []
    return [one for part in step[parts] for one in _steps(part, parts)] if step.get("type") == "Sequence" else [step]


def _longest_replacement(charsmap: str) -> int:
    """Of SentencePiece's table: the size of a trie, the trie, then replacements that end with a zero byte each."""
    try:
        data = base64.b64decode(charsmap)
    except (binascii.Error, ValueError):
        return 1  # the library refuses it
    return max(map(len, data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")))
