"""Licences that a use of data does not allow, as documents and errors have them."""

from __future__ import annotations

from dataclasses import dataclass

from aifx.core.errors import DataError, ErrorDocument
from aifx.core.json_values import plain


@dataclass(frozen=True)
class LicensedSources:
    """The sources with a licence.

    Attributes:
        license: SPDX expression, or "unknown".
        num_sources: all that have it.
        sources: "name@version: source" each, at most 1,000.
    """

    license: str
    num_sources: int
    sources: tuple[str, ...]


@dataclass(frozen=True)
class LicenseConflict:
    """Two licences that exclude each other, or one that the project does not allow.

    Attributes:
        licenses: the two or the one, each with its sources.
        why: the reason.
        url: the page that says so; null if datasets.license_allow does.
    """

    licenses: tuple[LicensedSources, ...]
    why: str
    url: str | None


class LicenseErrorDocument(ErrorDocument):
    """A refusal of licences in JSON."""

    license_conflicts: list[LicenseConflict]


class LicenseError(DataError):
    """Sources have licences that the project refuses.

    Args:
        conflicts: all that it refuses.
    """

    def __init__(self, what: str, why: str = "", hint: str = "", conflicts: tuple[LicenseConflict, ...] = ()) -> None:
        super().__init__(what, why, hint)
        self.conflicts = conflicts

    def document(self) -> LicenseErrorDocument:
        return {**super().document(), "license_conflicts": plain(self.conflicts)}
