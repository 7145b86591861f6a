"""A ledger: numbered entries, each created exclusively, and each naming the digest of the one before.

    <folder>/00000001.json
    <folder>/00000002.json
    ...

The digest of an entry is the SHA-256 of its file without the digest, `, "digest": "<64 digits>"` before the last brace,
and without the line break.

What a ledger says at any time is a fold over its entries. So nothing can change without an entry, and two writers
cannot both write entry n: one of them finds the name taken (`Store.create`). A changed, missing or reordered entry
breaks the chain. A removed last entry does not, and shows only against a digest that was kept elsewhere (Haber and
Stornetta 1991, "How to Time-Stamp a Digital Document").
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from aifx.core.digests import sha256_of
from aifx.core.errors import AifxError, DataError, ExitCode
from aifx.core.json_files import encode
from aifx.core.json_values import encode_json
from aifx.core.parsing import parse_json
from aifx.core.stores import Store

_NAME = re.compile(r"(\d{8,})\.json")


class LostRace(AifxError):
    """Another entry came first, so that what this one was decided on may not hold any more."""

    exit_code = ExitCode.PREEMPTED
    _transient = True


class DamagedLedger(DataError):
    """An entry of a ledger is missing, changed or in the wrong place."""


@dataclass(frozen=True)
class Entry:
    """One act, or one judgement.

    Attributes:
        number: from 1.
        previous: digest of the entry before; empty for the first.
        action: "push", "promote".
        version: digest of the model version that it is about, if there is one.
        alias: that it gives to the version, if any.
        evidence: digests of the attestations that it rests on.
        time: in UTC, by the clock of the machine that wrote it.
        request: the id by which the caller can ask again.
        facts: what else the act says, by its kind.
        digest: of its file; empty until it is in its place in a ledger.
    """

    action: str
    actor: str
    request: str = ""
    version: str = ""
    alias: str = ""
    evidence: tuple[str, ...] = ()
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    number: int = 0
    previous: str = ""
    time: str = ""
    digest: str = ""

    def requested(self, request: str) -> Entry:
        """The same entry, made by a request."""
        return replace(self, request=request)

    def sealed(self, number: int, previous: str, time: str) -> Entry:
        """The entry in its place in a ledger, with its digest."""
        placed = replace(self, number=number, previous=previous, time=time)
        return replace(placed, digest=sha256_of(placed._body()))

    def encode(self) -> bytes:
        """The bytes of the file of an entry that is sealed: always the same for the same entry."""
        return self._body()[:-1] + _end(self.digest)

    def _body(self) -> bytes:
        """Its file without the digest."""
        values = {name: value for name, value in vars(self).items() if name != "digest"}
        return encode(encode_json(values, ensure_ascii=False))


def _end(digest: str) -> bytes:
    """The end of the file of an entry."""
    return b', "digest": "%b"}\n' % digest.encode()


_DIGEST = re.compile("[0-9a-f]{64}")


_UNREAD: Any = None
"""A default that nothing reads, in place of an empty list or dict, which pydantic would copy for each entry."""


class _Finding(BaseModel):
    model_config = ConfigDict(defer_build=True)

    rule: str
    passed: bool
    found: str = ""
    hint: str = ""
    evidence: list[str] = _UNREAD


class _Pushed(BaseModel):
    model_config = ConfigDict(defer_build=True)

    actor: str
    copied_from: _Pushed | None = None


class _Facts(BaseModel):
    """What folds over entries read of their facts: the rest may be anything."""

    model_config = ConfigDict(defer_build=True)

    run: str | None = None
    step: int | None = None
    copied_from: _Pushed | None = None
    previous: str | None = None
    checkpoint: str | None = None
    config_digest: str | None = None
    data: list[str] = _UNREAD
    licenses: list[str] = _UNREAD
    set: dict[str, str] = _UNREAD
    removed: list[str] = _UNREAD
    findings: list[_Finding] = _UNREAD
    kind: str | None = None
    head: str | None = None
    head_number: int | None = None


_ENTRY = TypeAdapter(Entry)


@dataclass(frozen=True)
class Ledger:
    """The entries in a folder of a store.

    Attributes:
        store: the folder, which need not exist.
        name: for messages, such as "the ledger of fraud".
    """

    store: Store
    name: str

    def entries(self, known: Sequence[Entry] = ()) -> tuple[Entry, ...]:
        """All entries in order. Raises DamagedLedger naming the first that breaks the chain, EnvironmentFault.

        Args:
            known: the first ones, as an earlier call returned them. If their files are there, they are not read again.
        """
        entries, problems = self.inspect(known)
        if problems:
            raise DamagedLedger(f"{self.name} is damaged", problems[0], "aifx registry verify")
        return entries

    def inspect(self, known: Sequence[Entry] = ()) -> tuple[tuple[Entry, ...], list[str]]:
        """The entries that can be read, and a line for each that is damaged, missing or in the wrong place.

        Args:
            known: as of `entries`.
        """
        kinds = {name: kind for name, kind in self.store.kinds().items() if _NAME.fullmatch(name)}
        names = {name for name, kind in kinds.items() if kind == "file"}
        if not names.issuperset(file_name(entry.number) for entry in known):
            known = ()
        numbers = {int(name.removesuffix(".json")) for name in kinds} - {entry.number for entry in known}
        files = dict(self.store.read_many([name for number in numbers if (name := file_name(number)) in names]))
        entries, problems = list(known), list[str]()
        previous, last = known[-1].digest if known else "", len(known)
        for number in sorted(numbers):
            if (gap := number - last) > 1:  # one line: a stray file may have any number
                after = f", and so are the {gap - 2} after it" if gap > 2 else ""
                problems.append(f"{self._url(number - gap + 1)} is missing{after}")
                previous = "unknown"
            last = number
            try:
                if kinds.get(file_name(number)) in ("directory", "other"):
                    raise ValueError("is not a regular file")
                entry = _parse(files.get(file_name(number)), number)
            except ValueError as e:
                problems.append(f"{self._url(number)} {e}")
                previous = "unknown"
                continue
            if previous not in ("unknown", entry.previous):
                problems.append(f"{self._url(number)} follows {entry.previous[:12] or 'no entry'}, not {previous[:12]}")
            entries.append(entry)
            previous = entry.digest
        return tuple(entries), problems

    def _url(self, number: int) -> str:
        return f"{self.store.url}/{file_name(number)}"

    def append(self, entries: Sequence[Entry], entry: Entry) -> Entry:
        """Write an entry after those that were read, and return it with its number and time.

        Raises LostRace if another entry came first, and as `Store.create`.
        """
        number, previous = len(entries) + 1, entries[-1].digest if entries else ""
        time = datetime.now(UTC).isoformat(timespec="microseconds")
        made = entry.sealed(number, previous, time)
        if not self.store.create(file_name(number), made.encode()):
            what = f"another entry of {self.name} came first"
            raise LostRace(what, f"entry {number} was written meanwhile", "run the same command again")
        return made


def _parse(data: bytes | None, number: int) -> Entry:
    """Parse the bytes of an entry. Raises ValueError with the reason if they were changed."""
    if data is None:
        raise ValueError("is missing")
    try:
        doc = parse_json(data)
        end = _end(doc["digest"])
        entry: Entry = _ENTRY.validate_python(doc)
        _Facts.model_validate(entry.facts, strict=True)
        if datetime.fromisoformat(entry.time).tzinfo is None:
            raise ValueError(f"its time {entry.time} has no zone")
        if wrong := next((one for one in (entry.version, *entry.evidence) if one and not _DIGEST.fullmatch(one)), None):
            raise ValueError(f"{wrong[:64]!r} is no SHA-256")
    except ValidationError as e:
        raise ValueError(f"is no entry: {first_fault(e)}") from e
    except (ValueError, AttributeError, KeyError, TypeError) as e:
        raise ValueError(f"is no entry: {str(e).splitlines()[0]}") from e
    if entry.number != number:
        raise ValueError(f"has the number {entry.number}")
    if not data.endswith(end) or sha256_of(data.removesuffix(end) + b"}") != entry.digest:
        raise ValueError("has other bytes than were written")
    return entry


def first_fault(error: ValidationError) -> str:
    """The key of the first value of a wrong type, and what is wrong with it."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def file_name(number: int) -> str:
    return f"{number:08}.json"


def find_request(entries: Sequence[Entry], request: str) -> Entry | None:
    """The entry that a request made before, if it made one."""
    return next((entry for entry in entries if entry.request == request), None)


def new_request() -> str:
    """An id for a request that came without one."""
    return secrets.token_hex(16)
