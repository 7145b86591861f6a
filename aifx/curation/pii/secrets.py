"""Secrets: private keys, keys of services, tokens, wallets."""

from __future__ import annotations

import base64
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import resources

from aifx.core.parsing import parse_toml
from aifx.curation.pii.findings import Finding

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
    text = resources.files("aifx.curation.pii").joinpath("api_keys.toml").read_text("utf-8")
    tables = parse_toml(text)["key"]
    groups = "|".join(f"(?P<{table['id'].replace('-', '_')}>{table['pattern']})" for table in tables)
    return re.compile(rf"(?<![\w.-])(?:{groups})(?![\w])", re.ASCII), {t["id"]: t.get("least", 0) for t in tables}


def _entropy(value: str) -> float:
    """Bits per character."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)
