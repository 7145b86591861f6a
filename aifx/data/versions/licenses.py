"""Licences of sources: which a project allows, and which exclude each other.

The table of licences that exclude each other is `license_conflicts.toml`; each rule has its source. aifx cannot know
whether a use makes one work of its sources, as a remix is, or a collection of works. It names the pairs, and a person
decides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from itertools import combinations, islice, product
from typing import Any

from pydantic import TypeAdapter

from aifx.core.errors import ConfigError, UsageError
from aifx.core.licensing import LicenseConflict, LicensedSources, LicenseError
from aifx.core.parsing import parse_toml
from aifx.core.plurals import counted
from aifx.core.project import Project
from aifx.data.versions.catalog import MIX, Catalog
from aifx.data.versions.manifest import UNKNOWN_LICENSE, Manifest, check_license

log = logging.getLogger(__name__)

MOST_CHOICES = 1000
"""Choices of an expression that are compared. An expression with more is one that nobody has written."""

MOST_NAMES, MOST_SOURCES = 5, 1000
"""Sources that a message names, and a document."""

VERSIONS = {
    "AGPL": ("1.0", "3.0"),
    "GFDL": ("1.1", "1.2", "1.3"),
    "GPL": ("1.0", "2.0", "3.0"),
    "LGPL": ("2.0", "2.1", "3.0"),
}
"""Versions of the licences that SPDX has with "-only" and "-or-later"."""


@dataclass(frozen=True)
class Rule:
    """Licences that exclude others, as patterns of SPDX identifiers.

    Attributes:
        unless: exceptions, which stand after WITH, that lift the rule.
        source: address of the page that says so.
    """

    licenses: tuple[str, ...]
    others: tuple[str, ...]
    why: str
    source: str
    unless: tuple[str, ...] = ()

    def excludes(self, one: str, other: str) -> bool:
        """Whether the rule is about these two, in this order."""
        license, _, exception = one.partition(" WITH ")
        with_license, _, with_exception = other.partition(" WITH ")
        if license == with_license or {exception, with_exception}.intersection(self.unless):
            return False
        is_meant = any(fnmatchcase(license, pattern) for pattern in self.licenses)
        return is_meant and any(fnmatchcase(with_license, pattern) for pattern in self.others)


@cache
def rules() -> tuple[Rule, ...]:
    """The table."""
    text = (resources.files("aifx.data.versions") / "license_conflicts.toml").read_text("utf-8")
    return tuple(TypeAdapter(list[Rule]).validate_python(parse_toml(text)["rules"]))


@cache
def choices(expression: str) -> tuple[frozenset[str], ...]:
    """The sets of licences of which a user may choose one, by an SPDX expression in its normal form.

    OR is a choice. So is "-or-later": it means that version or any later one, each with "-only".
    """
    from license_expression import Licensing

    parsed = Licensing().parse(expression)
    return tuple(dict.fromkeys(islice(_choices(parsed), MOST_CHOICES)))


def _choices(node: Any) -> Iterator[frozenset[str]]:
    from license_expression import LicenseSymbol, LicenseWithExceptionSymbol

    if isinstance(node, LicenseWithExceptionSymbol):
        exception = node.exception_symbol.key
        yield from (frozenset({f"{one} WITH {exception}"}) for one in _versions(node.license_symbol.key))
    elif isinstance(node, LicenseSymbol):
        yield from (frozenset({one}) for one in _versions(node.key))
    elif node.operator.strip() == "OR":
        for part in node.args:
            yield from _choices(part)
    else:
        for chosen in product(*(list(islice(_choices(part), MOST_CHOICES)) for part in node.args)):
            yield frozenset().union(*chosen)


def _versions(license: str) -> Iterator[str]:
    family, _, version = license.removesuffix("-or-later").rpartition("-")
    known = VERSIONS.get(family, ())
    if not license.endswith("-or-later") or version not in known:
        yield license
        return
    yield from (f"{family}-{each}-only" for each in known[known.index(version) :])


@cache
def find_conflict(one: str, other: str) -> tuple[str, str, Rule] | None:
    """Two licences of two expressions that exclude each other, and the rule; None if some choice of both has none."""
    found = None
    for chosen, others in product(choices(one), choices(other)):
        excluded = next(_excluded(chosen, others), None)
        if excluded is None:
            return None
        found = found or excluded
    return found


def _excluded(some: frozenset[str], others: frozenset[str]) -> Iterator[tuple[str, str, Rule]]:
    for one, other in product(sorted(some), sorted(others)):
        for rule in rules():
            if rule.excludes(one, other) or rule.excludes(other, one):
                yield one, other, rule


@cache
def allowed_licenses(given: tuple[str, ...]) -> frozenset[str]:
    """The licences that `datasets.license_allow` means. Raises ConfigError for one that is no SPDX expression."""
    allowed: set[str] = set()
    for one in given:
        try:
            normal = check_license(one)
        except UsageError as e:
            raise ConfigError(f"datasets.license_allow has {one!r}", e.why, 'license_allow = ["MIT"]') from None
        allowed.add(normal)
        if normal != UNKNOWN_LICENSE:
            allowed.update(*choices(normal))
    return frozenset(allowed)


def check_allowed(sources: Mapping[str, Sequence[str]], project: Project) -> None:
    """Raise LicenseError for licences that `datasets.license_allow` of the project does not have.

    Args:
        sources: those with each licence: an SPDX expression in its normal form, or "unknown", which must be allowed
            by that name.
    """
    if not project.license_allow:
        return
    allowed = allowed_licenses(project.license_allow)
    refused = [license for license in sorted(sources) if not _is_allowed(license, allowed)]
    if refused:
        names = f"the licence {refused[0]} of {_names(sources[refused[0]])}"
        more = f", nor {' and '.join(refused[1:])}" if refused[1:] else ""
        why = f"datasets.license_allow has {', '.join(project.license_allow)}"
        add = ", ".join(map(repr, refused))
        hint = f"leave them out, or add {add} to datasets.license_allow in aifx.toml"
        conflicts = tuple(LicenseConflict((_licensed(each, sources),), why, None) for each in refused)
        raise LicenseError(f"{names} is not allowed{more}", why, hint, conflicts)


def _is_allowed(license: str, allowed: frozenset[str]) -> bool:
    chosen = () if license == UNKNOWN_LICENSE else choices(license)
    plain = ({one.partition(" WITH ")[0] for one in choice} for choice in chosen)  # an exception allows more
    return license in allowed or any(choice <= allowed for choice in plain)


def check_licenses(
    manifests: Iterable[Manifest], catalog: Catalog, project: Project | None, use: str
) -> tuple[LicenseConflict, ...]:
    """Warn of sources whose licences exclude each other, or refuse them, as the project has it. Returns the conflicts.

    Args:
        manifests: versions that are used together; of a mix, the sources of its parts count.
        project: with `license_allow` and `license_conflicts`; without one, any licence is allowed.
        use: of the sources together, as a sentence has it: "the mix blend".

    Raises LicenseError for licences that are not allowed, or for conflicts if the project refuses them.
    """
    sources = _by_license(manifests, catalog)
    if project is not None:
        check_allowed(sources, project)
    messages: list[tuple[str, str]] = []
    conflicts: list[LicenseConflict] = []
    for pair in combinations(sorted(set(sources) - {UNKNOWN_LICENSE}), 2):
        if (found := find_conflict(*pair)) is None:
            continue
        *_, rule = found
        sides = " and ".join(f"{license} ({_names(sources[license])})" for license in pair)
        messages.append((f"licences of {use} exclude each other: {sides}", f"{rule.why}: {rule.source}"))
        licensed = tuple(_licensed(license, sources) for license in pair)
        conflicts.append(LicenseConflict(licensed, rule.why, rule.source))
    if messages and project is not None and project.license_conflicts == "refuse":
        what, why = messages[0]
        more = f"; {counted(len(messages) - 1, 'more conflict')}" if messages[1:] else ""
        hint = "leave out the sources of one of them; aifx data add --license corrects a wrong licence"
        raise LicenseError(f"{what}{more}", why, hint, tuple(conflicts))
    for what, why in messages:
        log.warning("%s: %s", what, why)
    return tuple(conflicts)


def _licensed(license: str, sources: Mapping[str, Sequence[str]]) -> LicensedSources:
    found = sources[license]
    return LicensedSources(license, len(found), tuple(found[:MOST_SOURCES]))


def _by_license(manifests: Iterable[Manifest], catalog: Catalog) -> Mapping[str, Sequence[str]]:
    """The sources of versions by licence, each with its version."""
    found: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        parts = [manifest]
        if manifest.step.name == MIX:
            parts = [catalog.manifest(parent) for parent in manifest.parents]
        for part in parts:
            for source in part.sources:
                found.setdefault(source.license, {})[f"{part.reference}: {source.name}"] = None
    return {license: list(names) for license, names in found.items()}


def _names(sources: Sequence[str]) -> str:
    more = f" and {len(sources) - MOST_NAMES:,} more" if len(sources) > MOST_NAMES else ""
    return f"{', '.join(sources[:MOST_NAMES])}{more}"
