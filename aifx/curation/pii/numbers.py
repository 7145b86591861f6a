"""Numbers of accounts and people, which mostly have a check digit: cards, IBANs, national ids."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from aifx.core.parsing import parse_toml
from aifx.curation.pii.findings import Finding, has_beside, word_pattern

_NUMBER = re.compile(r"(?<![A-Z0-9])[A-Z]{0,6} ?[0-9][A-Z0-9 ./+-]{6,}", re.ASCII)
"""Characters of a number of a person: longer than a year, and in upper case."""

_DIGITS = re.compile(r"(?<![\w.,/+-])\d(?:[ -]?\d){11,30}(?!\w|[.,]\d)", re.ASCII)
_CARD_GROUPS = ((4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1))

# First digits and lengths of card numbers: ISO/IEC 7812, and the ranges that the networks publish.
_CARD = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"3(?:0[0-5]|[689]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}",
    re.ASCII,
)

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}", re.ASCII)
_SHORTEST_IBAN = 15


@dataclass(frozen=True)
class NationalId:
    """A line of national_ids.toml, made ready."""

    id: str
    module: str
    pattern: re.Pattern[str] | None
    near: re.Pattern[str] | None
    words: re.Pattern[str] | None
    has_checksum: bool

    @property
    def check(self) -> str:
        return f"checksum: {self.id}" if self.has_checksum else f"format: {self.id}"

    def is_valid(self, value: str) -> bool:
        return not self.module or bool(_stdnum(self.module).is_valid(value.replace(" ", "")))


def credit_cards(text: str) -> Iterator[Finding]:
    """Card numbers of a known network, in usual groups, with Luhn's check digit."""
    from stdnum import luhn

    for match in _DIGITS.finditer(text):
        groups = [(part.start(), part.end()) for part in re.finditer(r"\d+", match[0])]
        for first, last in _card_windows([end - start for start, end in groups]):
            start, end = groups[first][0], groups[last][1]
            value = match[0][start:end]
            digits = value.replace(" ", "").replace("-", "")
            one_separator = not (" " in value and "-" in value)
            if one_separator and _CARD.fullmatch(digits) and luhn.is_valid(digits):
                yield Finding(match.start() + start, match.start() + end, "credit_card", "checksum: Luhn")


def _card_windows(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of neighbouring groups of digits that are written as a card number is."""
    for first, length in enumerate(lengths):
        if length >= 13:
            yield first, first
        for groups in _CARD_GROUPS:
            if tuple(lengths[first : first + len(groups)]) == groups:
                yield first, first + len(groups) - 1


def ibans(text: str) -> Iterator[Finding]:
    """IBANs with their check digits (ISO 7064), of any country."""
    from stdnum import iban

    for match in _IBAN.finditer(text):
        ends = [place + 1 for place, character in enumerate(match[0]) if character not in " -"]
        for end in reversed(ends[_SHORTEST_IBAN - 1 :]):
            following = text[match.start() + end : match.start() + end + 1]
            if not following.isalnum() and iban.is_valid(match[0][:end].replace("-", ""), check_country=False):
                yield Finding(match.start(), match.start() + end, "iban", "checksum: ISO 7064 mod 97")
                break


def national_ids(text: str) -> Iterator[Finding]:
    """Numbers that match a pattern and check of national_ids.toml, near a word for them if the entry requires one."""
    for area in _NUMBER.finditer(text):
        begin, end = area.start(), min(len(text), area.end() + 2)  # to see what follows a number
        for known in known_ids():
            if known.pattern is not None:
                for match in known.pattern.finditer(text, begin, end):
                    if known.is_valid(match[0]):
                        yield Finding(*match.span(), "national_id", known.check)
            if known.near is not None and known.words is not None:
                for match in known.near.finditer(text, begin, end):
                    if has_beside(text, *match.span(), known.words) and known.is_valid(match[0]):
                        yield Finding(*match.span(), "national_id", f"{known.check}, context")


@cache
def known_ids() -> tuple[NationalId, ...]:
    """The national ids that are looked for."""
    text = resources.files("aifx.curation.pii").joinpath("national_ids.toml").read_text("utf-8")
    return tuple(_national_id(table) for table in parse_toml(text)["id"])


def _national_id(table: Mapping[str, Any]) -> NationalId:
    words = word_pattern(table["words"]) if "words" in table else None
    return NationalId(
        id=table["id"],
        module=table.get("module", ""),
        pattern=_alone(table.get("pattern")),
        near=_alone(table.get("near")),
        words=words,
        has_checksum=table.get("checksum", True),
    )


def _alone(pattern: str | None) -> re.Pattern[str] | None:
    """The pattern, not within a longer number or word."""
    return re.compile(rf"(?<![\w./+-])(?:{pattern})(?!\w|[-/+.,]\d)", re.ASCII) if pattern else None


@cache
def _stdnum(module: str) -> Any:
    return importlib.import_module(f"stdnum.{module}")
