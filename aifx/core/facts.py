"""Facts about a machine: nested dictionaries and lists of plain JSON values, and two words for missing ones.

`Absent` is a part that this machine does not have or does not show. A rule that reads it is skipped. `Unknown` is a
part that should have been read and could not be. A rule that reads it reports a finding, since a part that nobody
looked at must never pass for healthy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Facts: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Absent:
    """There is none, or it is not shown here. `why` says what is missing, and how to grant it where possible."""

    why: str


@dataclass(frozen=True)
class Unknown:
    """It could not be read. `why` says what went wrong, and `remedy` what to do about it."""

    why: str
    remedy: str = ""


def to_document(value: Any) -> Any:
    """Facts as JSON can hold them."""
    if isinstance(value, Absent):
        return {"$absent": value.why}
    if isinstance(value, Unknown):
        return {"$unknown": value.why, "$remedy": value.remedy}
    if isinstance(value, Mapping):
        return {str(key): to_document(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_document(item) for item in value]
    return value


def from_document(value: Any) -> Any:
    """The inverse of `to_document`, for a document that may have been damaged on the way."""
    if isinstance(value, dict):
        if "$absent" in value:
            return Absent(str(value["$absent"]))
        if "$unknown" in value:
            return Unknown(str(value["$unknown"]), str(value.get("$remedy", "")))
        return {str(key): from_document(item) for key, item in value.items()}
    if isinstance(value, list):
        return [from_document(item) for item in value]
    return value
