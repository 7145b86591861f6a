"""Addresses of people and their devices: email, telephone, IP and MAC addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence

from aifx.curation.pii.findings import Finding, has_beside, word_pattern

_LOCAL = re.compile(r"[\w.+%'-]{1,64}$")
_DOMAIN = re.compile(r"(?:[^\W_](?:[^\W_]|-){0,62}\.){1,8}[^\W\d_]{2,24}(?![\w-])")
_FILE_LABEL = re.compile(r"[\d.]*\d+x?|x\d*", re.IGNORECASE)  # of logo@2x.png and package@1.2.3.tgz

_PHONE = re.compile(r"(?<![\w+.,:#-])(?<![\w]/)[+(]?[0-9][0-9 ().\-/\u00a0\u2010-\u2015]{5,22}[0-9](?![\w@])")
_PHONE_WORDS = word_pattern(
    "phone, telephone, tel, mobile, cell, fax, call, calling, dial, whatsapp, hotline, sms, reach me, reach us, "
    "my number, our number, telefon, mobil, fon, telefono, teléfono, móvil, téléphone, telefoon, gsm"
)
_OTHER_NUMBER = re.compile(
    r"(?i)(?<!\w)(?:isbn|issn|doi|order|invoice|ticket|tracking|sku|part|serial|version|build|ref|reference|rfc|id|"
    r"case|model|issue|pages?|lines?|rows?|nhs|ssn|account|article|item|batch|lot)\W{0,3}(?:no|nr|number|num)?\W{0,4}$"
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
    """Numbers that the numbering plan of their country has. Those without "+" are looked for in `regions`."""
    for candidate in _PHONE.finditer(text):
        if sum(map(str.isdigit, candidate[0])) >= 7:
            yield from _phones_in(text, *candidate.span(), regions)


def _phones_in(text: str, start: int, end: int, regions: Sequence[str]) -> Iterator[Finding]:
    from phonenumbers import Leniency, PhoneNumberMatcher

    is_called = has_beside(text, start, end, _PHONE_WORDS)
    window = text[start:end]
    is_international = window.startswith("+")
    if not is_international and _OTHER_NUMBER.search(text[max(0, start - 24) : start]):
        return
    leniency = Leniency.VALID if is_called or is_international else Leniency.STRICT_GROUPING
    for region in (None,) if is_international else regions:
        for match in PhoneNumberMatcher(window, region, leniency=leniency):
            if not is_called and match.raw_string.isdigit():
                continue
            yield Finding(start + match.start, start + match.end, "phone", "numbering plan")
            return


def ip_addresses(text: str) -> Iterator[Finding]:
    """IPv4 and IPv6 addresses that can be somebody's: no loopback, no multicast, no number of a version."""
    for match in _IPV4.finditer(text):
        parts = match[0].split(".")
        if any(int(part) > 255 or (part[0] == "0" and part != "0") for part in parts):
            continue
        address = ipaddress.IPv4Address(match[0])
        if (
            int(parts[0]) in (0, 255)
            or _is_nobodys(address)
            or _VERSION.search(text[max(0, match.start() - 24) : match.start()])
        ):
            continue
        if all(int(part) < _SMALL_PART for part in parts) and not has_beside(text, *match.span(), _IP_WORDS):
            continue
        yield Finding(*match.span(), "ip_address", "format: IPv4")
    for match in _IPV6.finditer(text):
        groups = [group for group in match[0].split(":") if group]
        if len(groups) < 3 or not any(map(str.isdigit, match[0])):
            continue
        try:
            address6 = ipaddress.IPv6Address(match[0])
        except ValueError:
            continue
        if not _is_nobodys(address6):
            yield Finding(*match.span(), "ip_address", "format: IPv6")


def _is_nobodys(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local


def mac_addresses(text: str) -> Iterator[Finding]:
    """MAC addresses, except placeholders, times and dates."""
    for match in _MAC.finditer(text):
        value = match[0].lower()
        if len(set(value)) <= 2 or (
            value.replace(match[1], "").isdigit() and not has_beside(text, *match.span(), _MAC_WORDS)
        ):
            continue  # a placeholder; a time or a date
        yield Finding(*match.span(), "mac_address", "format")
