# ruff: noqa: E501 (patterns as they stand in tokenizer.json files)
"""Patterns that may backtrack without end are found; those of the tokenizers that people bring are not suspected."""

from __future__ import annotations

import pytest

from aifx.data.tokenizer import WORDS
from aifx.data.tokenizer_checks import find_flaw

SAFE = [
    WORDS,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r"\w+@\w+\.\w+",
    r"(?:\p{L}\p{M}*)+",
    r"(?:\r\n|\n)+",
    r" {2,}",
    r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t)?",
    r"(?>a+)+$",
    r"(?:a+)++b",
    r"[]a]+b",
    r"\s+$",
    r"(?<!\n)\s+",
    r"<\|[^|]+\|>",
    r"\p{L}{1,16}",
]

HOSTILE = [
    r"(a+)+$",
    r"(a|a)*b",
    r"(a|ab|b)*c",
    r"(?:\w|\d)+!",
    r"a*a*b",
    r"(\w*)(\w*)(\w*)!",
    r"(a*)\1",
    r"((?:a|a){8}){8}c",
    "a?" * 30 + "a" * 30,
    r"(?:a|b|ab){1,40}c",
    r"(\w+\s?)+$",
    r"(?(1)a|b)",
    r"\g<0>",
    r"(?~abc)",
    r"a{1,5}{1,50}b",
    r".*.*=.*",
    r"(?:a{1,100}){1,100}$",
    r"(x+x+)+y",
    r"(?=(a+)+$)",
    r"([a-z]+)*[A-Z]",
    r"(.*a){12}",
]


@pytest.mark.parametrize("pattern", SAFE)
def test_patterns_of_known_tokenizers_are_accepted(pattern: str) -> None:
    assert find_flaw(pattern) is None


@pytest.mark.parametrize("pattern", HOSTILE)
def test_patterns_that_may_backtrack_without_end_are_found(pattern: str) -> None:
    assert find_flaw(pattern)
