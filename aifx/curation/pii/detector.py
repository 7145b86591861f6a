"""Finding personal data of all kinds in a text, and masking it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

from aifx.core.errors import UsageError, did_you_mean
from aifx.curation.pii.finders import (
    Finding,
    api_keys,
    check_names,
    credit_cards,
    emails,
    ibans,
    ip_addresses,
    mac_addresses,
    names,
    national_ids,
    phones,
    private_keys,
    tokens,
    wallets,
)

NAME = "name"

MOST_ROUNDS = 8


class Search(NamedTuple):
    """The search for one kind.

    Attributes:
        may_have: RE2 pattern that occurs in each text in which `find` finds something: it skips most texts fast.
    """

    kind: str
    find: Callable[..., Iterator[Finding]]
    may_have: str


SEARCHES = (
    Search("private_key", private_keys, "PRIVATE KEY"),
    Search("jwt", tokens, r"eyJ[\w-]{8}"),
    Search("api_key", api_keys, r"[\w.:/=+-]{20}|(?i)(?:key|token|secret|passw(?:or)?d)[\"']?\s*[:=]|bearer\s"),
    Search("email", emails, "@"),
    Search("iban", ibans, r"[A-Z]{2}[0-9]{2}[ -]?[A-Z0-9]"),
    Search("crypto_wallet", wallets, "[0-9A-Za-z]{14}"),
    Search("credit_card", credit_cards, "[0-9](?:[ -]?[0-9]){11}"),
    Search("national_id", national_ids, "[0-9][A-Z0-9 ./+-]{6}"),
    Search("mac_address", mac_addresses, "[0-9A-Fa-f]{2}[:-][0-9A-Fa-f]{2}[:-]"),
    Search("ip_address", ip_addresses, r"[0-9]\.[0-9]{1,3}\.[0-9]|:[0-9A-Fa-f]{0,4}:"),
    Search("phone", phones, r"[0-9][0-9 ().\-/\x{a0}\x{2010}-\x{2015}]{5}"),
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
        import numpy as np
        import pyarrow.compute as pc

        may = [pc.fill_null(pc.match_substring_regex(values, search.may_have), False) for search in self._searches]
        possible = np.array([mask.to_numpy(zero_copy_only=False) for mask in may])
        for place in np.flatnonzero(possible.any(axis=0)):
            text = values[place].as_py()
            searches = [search for search, has in zip(self._searches, possible[:, place], strict=True) if has]
            if found := self._find(text, searches):
                yield int(place), text, found

    def mask(self, text: str, found: Iterable[Finding]) -> str:
        """The text with "[EMAIL]" and so on instead of personal data.

        Nothing is found in the result: what only comes to light beside a mask is masked too.
        """
        found = list(found)
        for _ in range(MOST_ROUNDS):
            if not found:
                break
            for one in reversed(found):
                text = f"{text[: one.start]}[{one.kind.upper()}]{text[one.end :]}"
            found = self.find(text)
        return text

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
        in_regions = partial(phones, regions=self.regions)
        return [
            search._replace(find=in_regions) if search.kind == "phone" else search for search in SEARCHES[: last + 1]
        ]


def make_detector(kinds: Sequence[str], regions: Sequence[str]) -> Detector:
    """Raises UsageError for an unknown kind or region, EnvironmentFault if a kind needs what is not installed."""
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
    """Of overlapping findings of one kind, the longest, and of these the first."""
    kept: list[Finding] = []
    for one in sorted(found, key=lambda one: (one.start - one.end, one)):
        if not any(one.overlaps(other) for other in kept):
            kept.append(one)
    return kept
