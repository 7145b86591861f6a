"""Checks of a tokenizer.json of strangers, which could exhaust the memory, or never come to an end.

Also the size of its longest token, which bounds the tokens of a text from below.
"""

from __future__ import annotations

import base64
import functools
import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from aifx.core.errors import DataError

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
    """Raise DataError if ids go far beyond the number of tokens: a model has a row for each id."""
    highest = max(vocabulary.values(), default=0)
    if highest > 2 * len(vocabulary) + 2**16:
        why = f"it has {len(vocabulary):,} tokens, and a model needs a row for each id"
        raise DataError(f"{name}: its ids go up to {highest:,}", why, "number its tokens from 0")


def check_description(description: Mapping[str, Any], name: str) -> None:
    """Raise DataError if a pattern may backtrack without end, or a step makes very long text of short text."""
    for step in ("normalizer", "pre_tokenizer", "decoder"):
        for pattern in _patterns(description.get(step)):
            if flaw := find_flaw(pattern):
                hint = "use possessive quantifiers or atomic groups, which give nothing back"
                raise DataError(f"{name}: matching its {step} may never end", f"{flaw}: {pattern[:200]}", hint)
        if (growth := math.prod(map(_growth, steps_of(description.get(step))))) > MOST_GROWTH:
            what = f"{name}: its {step} makes {growth:,.0f} bytes of one byte of text"
            raise DataError(what, f"{MOST_GROWTH} are allowed", f"shorten the replacements of its {step}")


def most_bytes_of_token(description: Mapping[str, Any]) -> int | None:
    """The most bytes of text that one token covers: a text of more than N times as many has more than N tokens.

    None if there is no limit, since the tokenizer drops text or has a token for unknown text.
    """
    model, added = description["model"], description.get("added_tokens") or ()
    steps = steps_of(description.get("pre_tokenizer"))
    is_bytewise = any(step.get("type") == "ByteLevel" for step in steps)  # one character of a token is one byte
    alphabet = frozenset(pre_tokenizers.ByteLevel.alphabet()) if is_bytewise else _SPELT_BYTES
    shrinkage = math.prod(map(_shrinkage, steps_of(description.get("normalizer"))))
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
    if kind == "Replace" and (content := str(step.get("content", "")).encode()):
        pattern = (step.get("pattern") or {}).get("String")
        return math.inf if pattern is None else max(len(str(pattern).encode()) / len(content), 1)
    return SHRINKAGE.get(str(kind), math.inf)


def steps_of(step: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a sequence, and of those in it, as one list; otherwise the step alone."""
    if not step:
        return []
    if step.get("type") != "Sequence":
        return [step]
    parts = next((step[key] for key in ("normalizers", "pretokenizers", "decoders") if key in step), ())
    return [one for part in parts for one in steps_of(part)]


def _longest_replacement(charsmap: str) -> int:
    """The bytes of the longest replacement in SentencePiece's table.

    It holds the size of a trie, the trie, then replacements that end with a zero byte each.
    """
    try:
        data = base64.b64decode(charsmap)
    except ValueError:
        return 1  # the library refuses it
    return max(map(len, data[4 + int.from_bytes(data[:4], "little") :].split(b"\0")))


# Tokenizers match regular expressions with Oniguruma, which backtracks. A pattern is refused if text may exist on which
# the number of ways to match grows exponentially, or faster than with the square of a word's length. This is decided
# from the pattern alone:
#
# - a repeated group must leave one way to go on at each character;
# - a branch may hold one unbounded repetition that can give characters back to what follows it;
# - a branch may hold few optional parts, and no back reference, recursion, condition or absence operator.
#
# Possessive quantifiers and atomic groups give nothing back, so they are always accepted.

MANY = 8  # repetitions of a group that count as unbounded, together with those of the groups around it
LONG = 64  # repetitions of a character that do
MOST_OPTIONAL = 12  # parts of a branch, each of which doubles the ways to match
_QUANTIFIER = re.compile(r"([*+?])([?+]?)|\{(\d*)(,?)(\d*)\}(\??)")
_BRACED = re.compile(r"[pP]\{[^}]*\}|x\{[^}]*\}|x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{4}|[kgRX0-9]|.", re.DOTALL)
_CLASS_PART = re.compile(r"\\.|\[\^?\]?|.", re.DOTALL)  # a closing bracket that begins a class is text
_FLAGS = re.compile(r"\(\?([imxWDSPaul-]*)([:)])")


class _Unsupported(Exception):
    """The pattern uses what this module does not judge."""


@dataclass(frozen=True)
class _Item:
    """A part of a branch: a character class (`source`), a group or lookaround (`branches`), or an anchor (neither)."""

    source: str = ""
    branches: tuple[tuple[_Item, ...], ...] = ()
    low: int = 1
    high: float = 1
    keeps: bool = False  # atomic or possessive: gives nothing back
    is_group: bool = False

    @property
    def is_exact(self) -> bool:
        return self.low == self.high


def find_flaw(pattern: str) -> str | None:
    """The reason why `pattern` may backtrack without end, or None."""
    try:
        branches, end = _parse(pattern, 0)
        if end != len(pattern):
            raise _Unsupported("an unbalanced parenthesis")
    except _Unsupported as error:
        return f"it uses {error}"
    return _judge(branches, 1)


def _judge(branches: tuple[tuple[_Item, ...], ...], factor: float) -> str | None:
    for branch in branches:
        for item in branch:
            if not item.is_group:
                continue
            times = factor * max(item.high, 1)
            if times > MANY and not item.keeps and not _is_deterministic(item.branches):
                return "it repeats a group that can match the same text in more than one way"
            if flaw := _judge(item.branches, 1 if item.keeps else times):
                return flaw
        loops, optional = _count(branch)
        if loops > 1:
            return f"{loops} repetitions of one branch compete for the same characters"
        if optional > MOST_OPTIONAL:
            return f"one branch has {optional} optional parts"
    return None


def _count(branch: tuple[_Item, ...]) -> tuple[int, int]:
    """Unbounded repetitions, and optional parts, that may give characters back to a mandatory part after them."""
    loops = optional = 0
    for place, item in enumerate(branch):
        rest = branch[place + 1 :]
        if item.keeps or not any(other.low for other in rest):
            continue
        if item.is_group:
            inner = [_count((*nested, _Item())) for nested in item.branches]
            loops += max(count for count, _ in inner)
            optional += max(count for _, count in inner) + (len(item.branches) > 1 or not item.is_exact)
        elif item.source and not item.is_exact:
            if not loops and rest[0].low and _are_disjoint(item, rest[0]):
                continue  # one way to match, unless a repetition before it moves where it begins
            loops += item.high > LONG
            optional += item.high <= LONG
    return loops, optional


def _is_deterministic(branches: tuple[tuple[_Item, ...], ...]) -> bool:
    """Whether the next character alone decides how a repetition of these branches goes on."""
    firsts = [branch[0] if branch else _Item() for branch in branches]
    if any(not item.source or not item.low for item in firsts):
        return False
    if any(not _are_disjoint(one, other) for n, one in enumerate(firsts) for other in firsts[:n]):
        return False
    for branch in branches:
        for place, item in enumerate(branch):
            if not item.source:
                return False
            following = [branch[place + 1]] if place + 1 < len(branch) else firsts
            if not item.is_exact and not all(other.low and _are_disjoint(item, other) for other in following):
                return False
    return True


def _are_disjoint(one: _Item, other: _Item) -> bool:
    return bool(one.source and other.source) and not _members(one.source) & _members(other.source)


@functools.cache
def _members(source: str) -> frozenset[str]:
    """The characters of a sample that the class matches, in either case."""
    sample = _sample()
    return frozenset(sample) - frozenset(normalizers.Replace(Regex(f"(?i:{source})"), "").normalize_str(sample))


@functools.cache
def _sample() -> str:
    """All of ASCII and Latin-1, and up to 40 further characters of each general category."""
    found: dict[str, list[str]] = defaultdict(list)
    for character in map(chr, chain(range(0x100, 0xD800), range(0xE000, 0x30000))):  # without surrogates
        found[unicodedata.category(character)].append(character)
    latin = map(chr, range(0x100))
    return "".join((*latin, *(character for known in found.values() for character in known[:40])))


def _parse(pattern: str, at: int) -> tuple[tuple[tuple[_Item, ...], ...], int]:
    """The branches from `at` up to an unmatched ")" or the end, and where that is."""
    branches: list[list[_Item]] = [[]]
    while at < len(pattern) and pattern[at] != ")":
        if pattern[at] == "|":
            branches.append([])
            at += 1
            continue
        item, at = _atom(pattern, at)
        if item is not None:
            item, at = _quantified(item, pattern, at)
            branches[-1].append(item)
    return tuple(map(tuple, branches)), at


def _quantified(item: _Item, pattern: str, at: int) -> tuple[_Item, int]:
    while found := _QUANTIFIER.match(pattern, at):
        sign, suffix, low, comma, high, _ = found.groups()
        if not sign and not (low or high):
            break  # a brace that is text
        if item.low != 1 or item.high != 1:
            item = _Item(branches=((item,),), is_group=True)  # a quantifier of a quantifier
        if sign:
            bound, keeps = 1 if sign == "?" else math.inf, item.keeps or suffix == "+"
            item = replace(item, low=int(sign == "+"), high=bound, keeps=keeps)
        else:
            item = replace(item, low=int(low or 0), high=float(high or (math.inf if comma else low)))
        at = found.end()
    return item, at


def _atom(pattern: str, at: int) -> tuple[_Item | None, int]:
    """The part that begins at `at`, without its quantifier, and where it ends; None for a comment or a flag."""
    character = pattern[at]
    if character == "(":
        return _group(pattern, at)
    if character == "[":
        end = _class_end(pattern, at)
        return _Item(pattern[at:end]), end
    if character in "^$":
        return _Item(), at + 1
    if character == "\\":
        if not (escape := _BRACED.match(pattern, at + 1)):
            raise _Unsupported("an unfinished escape")
        if escape[0] in "kg123456789":
            raise _Unsupported("a back reference or a recursion")
        if escape[0] in "bBAzZGK":
            return _Item(), escape.end()
        return _Item(f"\\{escape[0]}"), escape.end()
    return _Item(character if character == "." else re.escape(character)), at + 1


def _group(pattern: str, at: int) -> tuple[_Item | None, int]:
    if pattern.startswith("(?#", at):
        end = pattern.find(")", at)
        return None, end + 1 if end >= 0 else len(pattern)
    atomic = pattern.startswith(("(?=", "(?!", "(?>", "(?<=", "(?<!"), at)
    if atomic:
        at += 4 if pattern[at + 2] == "<" else 3
    elif pattern.startswith("(?<", at):
        at = pattern.find(">", at) + 1 or len(pattern)
    elif flags := _FLAGS.match(pattern, at):
        if "x" in flags[1].split("-")[0]:
            raise _Unsupported("the flag x")
        at = flags.end()
        if flags[2] == ")":
            return None, at
    elif pattern.startswith("(?", at):
        raise _Unsupported(f"{pattern[at : at + 3]}")
    else:
        at += 1
    branches, end = _parse(pattern, at)
    if end >= len(pattern):
        raise _Unsupported("an unbalanced parenthesis")
    return _Item(branches=branches, keeps=atomic, is_group=True), end + 1


def _class_end(pattern: str, at: int) -> int:
    """Where the character class that begins at `at` ends; classes may be nested."""
    depth = 0
    for part in _CLASS_PART.finditer(pattern, at):
        depth += part[0].startswith("[") - (part[0] == "]")
        if not depth:
            return part.end()
    raise _Unsupported("an unfinished character class")
