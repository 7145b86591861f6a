"""Personal data in a text: addresses, numbers of accounts and people, secrets and names are found, and masked.

Each function for a kind yields all that it finds, in any order; `Detector` decides what counts.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import ipaddress
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from aifx.core.errors import EnvironmentFault, UsageError, did_you_mean
from aifx.core.extras import install_command
from aifx.core.parsing import parse_toml

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


def beside(text: str, start: int, end: int) -> tuple[str, str]:
    """The text before and after a place, as far as a word in it may say what is there: on the same line."""
    return text[max(0, start - BEFORE) : start].rpartition("\n")[2], text[end : end + AFTER].partition("\n")[0]


def has_beside(text: str, start: int, end: int, words: re.Pattern[str]) -> bool:
    """Whether one of the words is near a place of a text, on the same line."""
    return any(words.search(side) is not None for side in beside(text, start, end))


def shape_of(value: str, longest: int = 32) -> str:
    """A value without its letters and digits, to see what kind of thing it is: "aaaa@aaa.aa" """
    letters = (("0" if c.isdigit() else "A" if c.isupper() else "a" if c.isalpha() else c) for c in value[:longest])
    return re.sub(r"\s", " ", "".join(letters)) + ("…" if len(value) > longest else "")


# Addresses of people and their devices

_LOCAL = re.compile(r"[\w.+%'-]{1,64}$")
_DOMAIN = re.compile(r"(?:[^\W_](?:[^\W_]|-){0,62}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_FILE_LABEL = re.compile(r"[\d.]*\d+x?|x\d*", re.IGNORECASE)  # of logo@2x.png and package@1.2.3.tgz

# (?:(?<![\w+.,:#-])(?<!\w/)|(?<=[^\W\d]:))(?:\(?\+ ?|\()?[0-9]..., written so that Python skips other characters in one
# loop: the first character is of one set, and what is before it is asked afterwards.
_PHONE = re.compile(
    r"[0-9(+](?:(?<![\w+.,:#-].)(?<!\w/.)|(?<=[^\W\d]:.))(?:(?<=[0-9])|(?:(?<=\()(?:\+ ?)?|(?<=\+) ?)[0-9])"
    r"[0-9 ().\-/\u00a0\u2010-\u2015]{5,22}[0-9](?!(?![xX]\d|(?i:ext))[\w@]|\.\d)"
)
_COUNTRY = re.compile(r"\(?(?:\+|00) ?(?=[1-9])")  # before a country's code
_EXTENSION = re.compile(r"(?i)[ ,;]{0,3}(?:ext(?:ension|n)?|x|#)[.:= ]{0,3}\d{1,6}(?![\w-])")
_PHONE_WORDS = word_pattern(
    "phone, telephone, tel, mobile, cell, fax, call, calling, dial, whatsapp, hotline, sms, reach me, reach us, "
    "my number, our number, telefon, mobil, fon, telefono, teléfono, móvil, téléphone, telefoon, telefoonnummer, "
    "mobiel, bel, gsm"
)
_OTHER_NUMBER = re.compile(
    r"(?i)(?<!\w)(?:isbn(?:[ -]?1[03])?(?: \(\w{1,6}\.?\))?|issn|ean|upc|gtin|doi|order|invoice|ticket|tracking|sku|"
    r"part|serial|version|build|ref|reference|rfc|id|case|model|issue|pages?|lines?|rows?|nhs|ssn|account|article|item|batch|lot|lat|latitude|"
    r"lon|lng|longitude|coordinates?|gps)\W{0,3}(?:no|nr|number|num)?\W{0,4}$"
)
_DASH = r"[ \u00a0\-\u2010-\u2015]"
_ISBN = re.compile(rf"(?<![\d+-])(?:97[89](?:{_DASH}?\d){{10}}|\d(?:{_DASH}?\d){{8}}{_DASH}?[\dXx])(?!{_DASH}?\d)")
_ISBN_WORD = re.compile(r"(?i)(?<!\w)isbns?(?:[ -]?1[03])?(?!\w)")
_DEGREES = r"(?<![\d.])(?:\d|[1-9]\d|1[0-7]\d|180)\.\d{3,}"
_COORDINATES = re.compile(
    rf"{_DEGREES}(?:°? ?[NSEWO]\b|°)?(?:[\s,;/|]{{1,3}}|, ?lon\w*\W{{1,2}})-?{_DEGREES}(?![.-]?\d)"  # a pair
    rf"|{_DEGREES} ?(?:°|[NSEWO]\b)|\b[NSEWO] ?\d{{1,3}}[° ]{{1,2}}\d{{1,2}}\.\d{{2,}}"
)

_IPV4 = re.compile(r"(?<![\w.-])(?<![A-Za-z]/)(?:\d{1,3}\.){3}\d{1,3}(?!\w|[.-]\d|/\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:]|\.\d)", re.ASCII)
_IP_WORDS = word_pattern(
    "ip, ipv4, host, hosts, server, address, addresses, client, gateway, router, dns, ping, ssh, login, logged, "
    "connected, connection, connecting, request, requests, remote, peer, visitor, from"
)
_VERSION = re.compile(
    r"(?i)(?:(?<!\w)(?:v|ver|version|versions|release|released|build|firmware|section|chapter|clause|upgraded?|updated?|"
    r"driver|kernel|rev|revision|figure|table)\W{0,3}|(?<!\w)v|§ ?)$"
)
_SMALL_PART = 32  # all parts of a version or of the number of a section are below

_MAC = re.compile(r"(?<![\w:.-])[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![\w-]|[:.]\w)", re.ASCII)
_MAC_WORDS = word_pattern("mac, bssid, hwaddr, ethernet, hardware, address")


def emails(text: str) -> Iterator[Finding]:
    """Addresses of the form local@domain, except remotes of Git and names of files such as logo@2x.png."""
    at = text.find("@")
    while at >= 0:
        local, domain = _LOCAL.search(text[max(0, at - 64) : at]), _DOMAIN.match(text, at + 1)
        if local is not None and domain is not None:
            name = local[0].lstrip(".'%")
            is_remote = name == "git" and text[domain.end() : domain.end() + 1] == ":"
            is_file = _FILE_LABEL.fullmatch(domain[0].rpartition(".")[0]) is not None
            if name and not name.endswith(".") and ".." not in name and not is_remote and not is_file:
                yield Finding(at - len(name), domain.end(), "email", "format")
        at = text.find("@", at + 1)


def phones(text: str, regions: Sequence[str]) -> Iterator[Finding]:
    """Numbers that the numbering plan of their country has, with their extensions.

    Those without a country's code, after "+" or "00", are looked for in `regions`.
    """
    from phonenumbers import Leniency, PhoneNumberMatcher

    for candidate in _PHONE.finditer(text):
        start, window = candidate.start(), candidate[0]
        country = _COUNTRY.match(window)
        has_plus = country is not None and "+" in country[0]
        is_other = not has_plus and _OTHER_NUMBER.search(text[max(0, start - 24) : start])
        if is_other or sum(map(str.isdigit, window)) < 7:
            continue
        is_called = has_beside(text, *candidate.span(), _PHONE_WORDS)
        others = [] if has_plus else list(_other_numbers(text, *candidate.span()))
        searches: list[tuple[str, str | None]] = [] if has_plus else [(window, region) for region in regions]
        if country is not None:
            searches.insert(0, ("+".rjust(country.end()) + window[country.end() :], None))
        for searched, region in searches:
            is_lenient = is_called or region is None
            leniency = Leniency.VALID if is_lenient else Leniency.STRICT_GROUPING
            first = next(
                (
                    match
                    for match in PhoneNumberMatcher(searched, region, leniency=leniency)
                    if (is_called or not match.raw_string.strip("()").isdigit())
                    and not any(a < start + match.end and start + match.start < b for a, b in others)
                ),
                None,
            )
            if first is not None:
                begin, end = start + first.start, start + first.end
                if region is None and country is not None:
                    begin = start + (country[0][0] == "(" and ")" not in first.raw_string)
                extension = _EXTENSION.match(text, end)
                yield Finding(begin, extension.end() if extension else end, "phone", "numbering plan")
                break


def _other_numbers(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The places of coordinates and of ISBNs, which have a check digit, at and around a place of a text."""
    from stdnum import isbn

    area = max(0, start - BEFORE), end + AFTER
    yield from (match.span() for match in _COORDINATES.finditer(text, *area))
    for match in _ISBN.finditer(text, *area):
        if not isbn.is_valid(match[0]):
            continue
        groups = re.split(_DASH, match[0])
        is_grouped = len(groups) == 4 and len(groups[-1]) == 1
        if is_grouped or len("".join(groups)) == 13 or _is_called_isbn(text, *match.span()):
            yield match.span()


def _is_called_isbn(text: str, start: int, end: int) -> bool:
    """Whether the last word before a number, otherwise the first after it, is "ISBN" and not of telephones."""
    before, after = beside(text, start, end)
    last = [max((match.end() for match in words.finditer(before)), default=0) for words in (_ISBN_WORD, _PHONE_WORDS)]
    if any(last):
        return last[0] > last[1]
    isbn, phone = _ISBN_WORD.search(after), _PHONE_WORDS.search(after)
    return isbn is not None and (phone is None or isbn.start() < phone.start())


def ip_addresses(text: str) -> Iterator[Finding]:
    """IPv4 and IPv6 addresses that can be somebody's: no loopback, no multicast, no number of a version."""
    for match in _IPV4.finditer(text):
        parts = [int(part) for part in match[0].split(".")]
        is_version = _VERSION.search(text[max(0, match.start() - 24) : match.start()]) is not None
        if parts[0] in (0, 255) or is_version or not _is_somebodys(match[0]):
            continue
        if max(parts) >= _SMALL_PART or has_beside(text, *match.span(), _IP_WORDS):
            yield Finding(*match.span(), "ip_address", "format: IPv4")
    for match in _IPV6.finditer(text):
        groups = [group for group in match[0].split(":") if group]
        if len(groups) >= 3 and any(map(str.isdigit, match[0])) and _is_somebodys(match[0]):
            yield Finding(*match.span(), "ip_address", "format: IPv6")


def _is_somebodys(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local)


def mac_addresses(text: str) -> Iterator[Finding]:
    """MAC addresses, except placeholders, times and dates."""
    for match in _MAC.finditer(text):
        value = match[0].lower()
        if len(set(value)) <= 2 or (
            value.replace(match[1], "").isdigit() and not has_beside(text, *match.span(), _MAC_WORDS)
        ):
            continue  # a placeholder; a time or a date
        yield Finding(*match.span(), "mac_address", "format")


# Numbers of accounts and people, which mostly have a check digit

_NUMBER = re.compile(r"(?<![A-Z0-9])[A-Z]{0,6} ?[0-9][A-Z0-9 ./+-]{6,}", re.ASCII)
"""Characters of a number of a person: longer than a year, and in upper case."""

_DIGITS = re.compile(r"(?<![\w.,/+-])\d(?:[ -]?\d){11,30}(?!\w|[.,]\d)", re.ASCII)
_CARD_GROUPS = ((4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (4, 4, 4, 1))
_MAESTRO_GROUPS = ((4, 4, 4), (4, 4, 5), (4, 4, 4, 2), (4, 4, 4, 3), (4, 4, 4, 4, 1), (4, 4, 4, 4, 2))
_MAESTRO = re.compile(r"(?:5[0678]\d\d|6304|639\d|67\d\d)\d{8,15}", re.ASCII)
_CARD_WORDS = word_pattern("card, cards, maestro, debit, credit, pan, karte, kartennummer, carte, tarjeta, pas")

# First digits and lengths of card numbers: ISO/IEC 7812, and the ranges that the networks publish.
_CARD = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}|"
    r"3(?:0[0-5]|[689]\d)\d{11}|6(?:011|4[4-9]\d|5\d\d)\d{12}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}",
    re.ASCII,
)

_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}", re.ASCII)
_SHORTEST_IBAN = 15


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
            if not one_separator or not luhn.is_valid(digits):
                continue
            place = match.start() + start, match.start() + end
            # Other numbers of less than 16 digits begin alike: articles of British makers with 50.
            is_maestro = _MAESTRO.fullmatch(digits) and (
                len(digits) >= 16 or len(digits) < len(value) or has_beside(text, *place, _CARD_WORDS)
            )
            if is_maestro or _CARD.fullmatch(digits):
                yield Finding(*place, "credit_card", "checksum: Luhn")


def _card_windows(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of neighbouring groups of digits that are written as a card number is."""
    for first, length in enumerate(lengths):
        if length >= 12:
            yield first, first
        for groups in _CARD_GROUPS if first else (*_CARD_GROUPS, *_MAESTRO_GROUPS):
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


@dataclass(frozen=True)
class NationalId:
    """An entry of national_ids.toml.

    Attributes:
        module: of python-stdnum, which checks the number; None if the pattern is all.
        pattern: needs nothing else.
        near: needs one of `words` beside it.
    """

    id: str
    module: Any
    pattern: re.Pattern[str] | None
    near: re.Pattern[str] | None
    words: re.Pattern[str] | None
    check: str

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> NationalId:
        alone = r"(?<![\w./+-])(?:{})(?!\w|[-/+.,]\d)"  # not within a longer number or word
        pattern, near = (
            re.compile(alone.format(entry[name]), re.ASCII) if name in entry else None for name in ("pattern", "near")
        )
        words = word_pattern(entry["words"]) if "words" in entry else None
        module = importlib.import_module(f"stdnum.{entry['module']}") if "module" in entry else None
        check = f"{'checksum' if entry.get('checksum', True) else 'format'}: {entry['id']}"
        return cls(entry["id"], module, pattern, near, words, check)

    def is_valid(self, value: str) -> bool:
        return self.module is None or bool(self.module.is_valid(value.replace(" ", "")))


@cache
def known_ids() -> tuple[NationalId, ...]:
    """The national ids that are looked for."""
    return tuple(map(NationalId.of, _id_tables()))


@cache
def _id_tables() -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = _read_table("national_ids.toml")["id"]
    return tables


def _read_table(file: str) -> dict[str, Any]:
    """A file of this package. Its whole name stands where it is read: the digest of the step's code finds it so."""
    return parse_toml(resources.files("aifx.curation.pii").joinpath(file).read_text("utf-8"))


# Secrets: private keys, keys of services, tokens, wallets

_LABEL = r"(?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"
_PRIVATE_KEY = re.compile(
    rf"-----BEGIN {_LABEL}(?:(?:(?!-----BEGIN)[\s\S]){{0,20000}}?-----END {_LABEL}|(?:\s*[A-Za-z0-9+/=]{{40,}})*)"
)
_JWT = re.compile(r"(?<![\w.-])(eyJ[\w-]{8,})\.eyJ[\w-]{8,}\.[\w-]{16,}", re.ASCII)

_ASSIGNED = re.compile(
    r"""(?i)(?:(?:api[_-]?key|api[_-]?secret|secret[_-]?key|access[_-]?key|access[_-]?token|auth[_-]?token|client[_-]?secret|"""
    r"""password|passwd)["']?\s*[:=]\s*["']?|bearer\s+)([\w+/=.~!@#$%^&*-]{12,200})(?![\w])"""
)
_LEAST_BITS = 3.2  # of entropy per character: words and placeholders have less, random letters and digits more

_BITCOIN = re.compile(r"(?<!\w)(?:[13][1-9A-HJ-NP-Za-km-z]{25,34}|bc1[02-9ac-hj-np-z]{11,71})(?!\w)", re.ASCII)
_ETHEREUM = re.compile(r"(?<!\w)0x[0-9a-fA-F]{40}(?!\w)", re.ASCII)


def private_keys(text: str) -> Iterator[Finding]:
    """Private keys in PEM, whole or cut off."""
    if "PRIVATE KEY" in text:
        yield from (Finding(*match.span(), "private_key", "format: PEM") for match in _PRIVATE_KEY.finditer(text))


def tokens(text: str) -> Iterator[Finding]:
    """JSON Web Tokens."""
    for match in _JWT.finditer(text):
        try:
            header = json.loads(base64.urlsafe_b64decode(match[1] + "=" * (-len(match[1]) % 4)))
        except ValueError:
            continue
        if isinstance(header, dict) and "alg" in header:
            yield Finding(*match.span(), "jwt", "format: header")


def api_keys(text: str) -> Iterator[Finding]:
    """Keys in the format of an issuer (api_keys.toml), and random values of names such as password."""
    pattern, least = _issued()
    for match in pattern.finditer(text):
        issuer = str(match.lastgroup).replace("_", "-")
        if len(match[0]) >= least[issuer]:
            yield Finding(*match.span(), "api_key", f"format: {issuer}")
    for match in _ASSIGNED.finditer(text):
        value = match[1]
        has_both = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
        if has_both and _entropy(value) >= _LEAST_BITS:
            yield Finding(*match.span(1), "api_key", "context")


def wallets(text: str) -> Iterator[Finding]:
    """Bitcoin addresses with a valid check sum, and Ethereum addresses."""
    from stdnum import bitcoin

    for match in _BITCOIN.finditer(text):
        if bitcoin.is_valid(match[0]):
            yield Finding(*match.span(), "crypto_wallet", "checksum: Bitcoin")
    yield from (Finding(*match.span(), "crypto_wallet", "format: Ethereum") for match in _ETHEREUM.finditer(text))


@cache
def _issued() -> tuple[re.Pattern[str], dict[str, int]]:
    """A pattern with a group per issuer, and the least length of each one's keys."""
    tables = _key_tables()
    groups = "|".join(f"(?P<{table['id'].replace('-', '_')}>{table['pattern']})" for table in tables)
    return re.compile(rf"(?<![\w.-])(?:{groups})(?![\w])", re.ASCII), {t["id"]: t.get("least", 0) for t in tables}


@cache
def _key_tables() -> list[dict[str, Any]]:
    tables: list[dict[str, Any]] = _read_table("api_keys.toml")["key"]
    return tables


def _entropy(value: str) -> float:
    """Bits per character."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


# Names of people, by Presidio and a model of spaCy: the extra `pii-names`. Nothing is fetched

MODEL = "en_core_web_lg"
"""Presidio's own choice for English."""


def names(text: str) -> Iterator[Finding]:
    """Names of people, as the model finds them in English."""
    for found in _analyzer().analyze(text=text, language="en", entities=["PERSON"]):
        yield Finding(found.start, found.end, "name", f"model: {MODEL}")


def check_names() -> None:
    """Raise EnvironmentFault if what finds names is not installed."""
    if importlib.util.find_spec("presidio_analyzer") is None:
        why = "names are found by presidio-analyzer, which is not installed"
        raise EnvironmentFault("--kinds name cannot be searched", why, install_command("pii-names"))
    if importlib.util.find_spec(MODEL) is None:
        why = f"the model {MODEL} of spaCy is not installed, and aifx fetches nothing"
        raise EnvironmentFault("--kinds name cannot be searched", why, f"python -m spacy download {MODEL}")


@cache
def _analyzer() -> Any:
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import NlpEngineProvider

    models = [{"lang_code": "en", "model_name": MODEL}]
    engine = NlpEngineProvider(nlp_configuration={"nlp_engine_name": "spacy", "models": models}).create_engine()
    return AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])


NAME = "name"

MOST_ROUNDS = 8


class Search(NamedTuple):
    """The search for one kind.

    Attributes:
        may_have: RE2 pattern that occurs in each text in which `find` finds something: it skips most texts fast. That
            of a kind with a table is of the table.
    """

    kind: str
    find: Callable[..., Iterator[Finding]]
    may_have: str


_SPACE = r"[\x{09}-\x{0d}\x{1c}-\x{20}\x{85}\pZ]"  # as Python's \s
_VALUE = r"""[^\s"'(){}<>,;]{12}"""
ASSIGNED = (
    rf"""(?i:(?:key|token|secret|passw(?:or)?d)["']?{_SPACE}*[:=]{_SPACE}*["']?{_VALUE}|bearer{_SPACE}+{_VALUE})"""
)
_GAP = r"[ ().\-/\x{a0}\x{2010}-\x{2015}]*"  # between the digits of a telephone number

SEARCHES = (
    Search("private_key", private_keys, "PRIVATE KEY"),
    Search("jwt", tokens, r"eyJ[\w-]{8}"),
    Search("api_key", api_keys, ""),
    Search("email", emails, "@"),
    Search("iban", ibans, r"[A-Z]{2}[0-9]{2}(?:[ -]?[A-Z0-9]){11}"),
    Search("crypto_wallet", wallets, "[13][1-9A-HJ-NP-Za-km-z]{25}|bc1[02-9ac-hj-np-z]{11}|0x[0-9A-Fa-f]{40}"),
    Search("credit_card", credit_cards, "[0-9](?:[ -]?[0-9]){11}"),
    Search("national_id", national_ids, ""),
    Search("mac_address", mac_addresses, "[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}"),
    Search(
        "ip_address",
        ip_addresses,
        r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f]{1,4}::?[0-9A-Fa-f]{1,4}::?[0-9A-Fa-f]",
    ),
    Search("phone", phones, f"[0-9](?:{_GAP}[0-9]){{6}}"),
    Search(NAME, names, ""),
)
"""If two kinds overlap, the earlier one counts: it is the more certain."""

KINDS = tuple(search.kind for search in SEARCHES if search.kind != NAME)


@dataclass(frozen=True)
class Detector:
    """Finds personal data of some kinds.

    Attributes:
        kinds: in `KINDS`, or "name".
        regions: ISO 3166 codes of countries whose telephone numbers are found without "+".
    """

    kinds: tuple[str, ...] = KINDS
    regions: tuple[str, ...] = ("US",)

    def find(self, text: str) -> list[Finding]:
        """All that is found, in order; no two overlap. One kind is found as if all were looked for."""
        return self._find(text, self._searches)

    def find_in(self, values: Any) -> Iterator[tuple[int, str, list[Finding]]]:
        """The number of each text with personal data, the text, and its places.

        Args:
            values: Arrow array of strings; nulls have nothing.
        """
        searches = self._searches
        # Most texts have nothing, which one pattern with all others in it says as fast as one of these.
        some = np.flatnonzero(_has(values, _any_of(search.may_have for search in searches)))
        values = values.take(pa.array(some))
        possible = np.array([_has(values, search.may_have) for search in searches])
        for place, number in enumerate(some.tolist()):
            text = values[place].as_py()
            chosen = [search for search, has in zip(searches, possible[:, place], strict=True) if has]
            if found := self._find(text, chosen):
                yield number, text, found

    def mask(self, found: Iterable[tuple[int, str, Sequence[Finding]]]) -> dict[int, str]:
        """Texts with "[EMAIL]" and so on instead of personal data, by their number.

        Nothing is found in the result: what only comes to light beside a mask is masked too.

        Args:
            found: as `find_in` gives it.
        """
        texts: dict[int, str] = {}
        for _ in range(MOST_ROUNDS):
            masked = {number: _masked(text, findings) for number, text, findings in found}
            texts |= masked
            numbers = list(masked)
            again = self.find_in(pa.array(list(masked.values()), pa.string()))
            found = [(numbers[place], text, findings) for place, text, findings in again]
            if not found:
                break
        return texts

    def _find(self, text: str, searches: Sequence[Search]) -> list[Finding]:
        found: list[Finding] = []
        for search in searches:
            new = _longest(search.find(text))
            found += [one for one in new if not any(one.overlaps(other) for other in found)]
        return sorted(one for one in found if one.kind in self.kinds)

    @cached_property
    def _searches(self) -> list[Search]:
        """Those of the kinds, and of the kinds that count before one of them."""
        last = max(number for number, search in enumerate(SEARCHES) if search.kind in self.kinds)
        keys = [table["pattern"] for table in _key_tables()]
        ids = [table[name] for table in _id_tables() for name in ("pattern", "near") if name in table]
        own: dict[str, dict[str, Any]] = {
            "phone": {"find": partial(phones, regions=self.regions)},
            "api_key": {"may_have": _any_of([*keys, ASSIGNED])},
            "national_id": {"may_have": _any_of(ids)},
        }
        return [search._replace(**own.get(search.kind, {})) for search in SEARCHES[: last + 1]]


def _has(values: Any, pattern: str) -> NDArray[np.bool_]:
    """Whether each text has a match of an RE2 pattern; nulls have none."""
    has = pc.fill_null(pc.match_substring_regex(values, pattern), False)
    return has.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


def _any_of(patterns: Iterable[str]) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def _masked(text: str, found: Sequence[Finding]) -> str:
    for one in reversed(found):
        text = f"{text[: one.start]}[{one.kind.upper()}]{text[one.end :]}"
    return text


def make_detector(kinds: Sequence[str], regions: Sequence[str]) -> Detector:
    """A detector. Raises UsageError for an unknown kind or region, EnvironmentFault if a kind needs an extra."""
    from phonenumbers import SUPPORTED_REGIONS

    known = [search.kind for search in SEARCHES]
    for kind in kinds:
        if kind not in known:
            raise UsageError(f"--kinds: no kind {kind!r}", did_you_mean(kind, known), "--kinds email,phone")
    for region in regions:
        if region not in SUPPORTED_REGIONS:
            raise UsageError(f"--region: no region {region!r}", "it is an ISO 3166 code such as DE", "--region US,DE")
    if NAME in kinds:
        check_names()
    return Detector(tuple(kind for kind in known if kind in kinds), tuple(dict.fromkeys(regions)))


def _longest(found: Iterator[Finding]) -> list[Finding]:
    """The longest of overlapping findings of one kind, and of equally long ones the first."""
    kept: list[Finding] = []
    for one in sorted(found, key=lambda one: (one.start - one.end, one)):
        if not any(one.overlaps(other) for other in kept):
            kept.append(one)
    return kept
