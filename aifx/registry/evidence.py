"""Attestations: what somebody found out, or decided, about a version. Each is an object named by its own digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from aifx.core.errors import DataError
from aifx.core.json_values import plain
from aifx.core.parsing import fault_in
from aifx.core.project import Project
from aifx.registry.ledger import first_fault
from aifx.registry.roots import OBJECTS, Root
from aifx.registry.signing import Envelope, parse_envelope, read_given, sign
from aifx.registry.state import ModelState

Kind = Literal[
    "eval", "comparison", "contamination", "bench", "drill", "approval", "signature", "trust-code", "author", "file"
]
"""What is signed says what the signature is for: "signature" releases a version, "trust-code" lets its code run, and
"author" says who made it. None passes for another."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, defer_build=True)


class _Side(_Part):
    digest: str | None = None
    settings: dict[str, Any] | None = None


class _Gate(_Part):
    expr: str
    passed: bool


class _Result(_Part):
    figures: dict[str, Any] = {}


class _Content(_Part):
    """What the rules of a policy and pages read of the content of evidence: the rest may be anything."""

    config_digest: str | None = None
    subject: _Side | None = None
    incumbent: _Side | None = None
    metrics: dict[str, Any] = {}
    gates: list[_Gate] = []
    slices: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    passed: bool | None = None


class _Comparison(_Content):
    metric: str = ""
    direction: str | None = None
    verdict: str = ""
    against: str | None = None
    different_settings: dict[str, Any] | None = None


class _Contamination(_Content):
    reference: str
    overlapping: int
    against: list[dict[str, Any]] = []


class _Bench(_Content):
    results: list[_Result] = []


_CONTENTS: Mapping[Kind, type[_Part]] = {
    "eval": _Content,
    "comparison": _Comparison,
    "contamination": _Contamination,
    "bench": _Bench,
    "drill": _Content,
}


def check_content(kind: Kind, content: Mapping[str, Any]) -> None:
    """Raise ValueError for evidence in which rules and pages could not read what they need."""
    try:
        _CONTENTS.get(kind, _Part).model_validate(content)
    except ValidationError as e:
        raise ValueError(first_fault(e)) from e


@dataclass(frozen=True)
class Attestation:
    """Evidence about a version.

    Attributes:
        subject: digest of the version.
        made_by: the person or machine that attested it.
        time: in UTC.
        content: by the kind: the document of the command that made it; of a file its name, size and SHA-256.
        envelope: with the signatures.
        digest: of the envelope.
    """

    kind: Kind
    subject: str
    made_by: str
    time: str
    content: Mapping[str, Any]
    envelope: Envelope
    digest: str

    @property
    def objects(self) -> tuple[str, ...]:
        """Digests of all that the root keeps of it: the envelope, and the bytes of an attested file."""
        file = self.content.get("sha256")
        return (self.digest, file) if self.kind == "file" and isinstance(file, str) else (self.digest,)

    @property
    def when(self) -> datetime:
        return datetime.fromisoformat(self.time)


@cache
def _attestation() -> TypeAdapter[Attestation]:
    """The parser of an attestation: to build it takes longer than a promotion without evidence should."""
    return TypeAdapter(Attestation)


def attest(
    root: Root, kind: Kind, subject: str, made_by: str, content: Mapping[str, Any], key: Path | None = None
) -> Attestation:
    """Keep an attestation in the root, signed if a key is given. An entry of the ledger must name it then."""
    time = datetime.now(UTC).isoformat(timespec="microseconds")
    values = {"kind": kind, "subject": subject, "made_by": made_by, "time": time, "content": plain(content)}
    return read_attestation(root, root.put(sign(values, key).encode()))


def read_attestation(root: Root, digest: str) -> Attestation:
    """An attestation by its digest. Raises DataError if it is missing or damaged."""
    place = f"{root.store.url}/{OBJECTS}/{digest}"
    envelope = parse_envelope(root.get(digest), place)
    try:
        made = _attestation().validate_python({**envelope.content, "envelope": envelope, "digest": digest})
        check_content(made.kind, made.content)
        return made
    except (ValueError, TypeError) as e:
        raise DataError(f"{place} is no attestation", fault_in(e), "aifx registry verify") from e


def attestation_about(root: Root, digest: str, subject: str) -> Attestation:
    """An attestation, which must be about a version. Raises DataError: an entry of another version may name it."""
    made = read_attestation(root, digest)
    if made.subject != subject:
        place = f"{root.store.url}/{OBJECTS}/{digest}"
        why = f"it is about {made.subject[:12]}, and an entry names it for {subject[:12]}"
        raise DataError(f"{place} is not about that version", why, "aifx registry verify")
    return made


def attestations_of(root: Root, state: ModelState, subject: str) -> tuple[Attestation, ...]:
    """The attestations about a version that entries of its model name, in their order."""
    entries = state.about(subject, "push", "attest", "approve")
    digests = dict.fromkeys(digest for entry in entries for digest in entry.evidence)
    return tuple(attestation_about(root, digest, subject) for digest in digests)


def trusted_signer(root: Root, state: ModelState, subject: str, project: Project) -> str | None:
    """The file of a key that the project trusts and that signed that the code of a version may run; None if none did.

    Raises UsageError for a file of `registry.trusted_keys` that cannot be read.
    """
    keys = {name: read_given(project.root / name).decode(errors="replace") for name in project.trusted_keys}
    signed = (one for one in attestations_of(root, state, subject) if one.kind == "trust-code") if keys else ()
    return next((name for one in signed for name in one.envelope.signers(keys)), None)
