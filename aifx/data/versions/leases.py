"""Leases on a root of data sets that projects share: a file for each project names the versions that it uses.

    .leases/<id of the project>.json

`aifx data gc --versions` keeps what a lease names until its end, which the file has. A lease names what a project
refers to, such as the versions of its runs, and what its commands read: `Catalog.open` takes a lease on each version.
A command without a project has the lease of its user's cache.

A project keeps its id for a root in `runs/.leases.json`, with the tokens that it wrote into its lease last. A copy of
the project has them too, and the first of the two to write again changes the token: then the other one finds another
project's token, and takes a new id.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from pydantic import TypeAdapter

from aifx.core.errors import AifxError, DataError
from aifx.core.files import exclusive, read_file
from aifx.core.json_files import encode, write_json
from aifx.core.json_values import encode_json, plain
from aifx.core.os_errors import in_brief
from aifx.core.parsing import parse_json
from aifx.core.project import Project, cache_path
from aifx.core.stores import Store

logger = logging.getLogger(__name__)

LEASES = ".leases"
LEASE_DAYS = 90
READ_DAYS = 7
"""Days for which a version stays that a command has begun to read."""

RENEWAL_S = 3600.0
"""A process that reads a version again looks after so long whether the lease still names it."""

STATE = ".leases.json"
_held: dict[tuple[str, Path, str], float] = {}
"""When this process looked last, by root, file of the project's id, and version."""


@dataclass(frozen=True)
class Use:
    """A version that something refers to.

    Attributes:
        reference: "name@<64 digits>".
        who: what refers to it, such as "run main".
    """

    reference: str
    who: str


@dataclass(frozen=True)
class Lease:
    """The versions that a project uses.

    Attributes:
        holder: machine and folder of the project, for people.
        token: that the project wrote last.
        ends: a time in UTC; the uses keep nothing from then on.
        read: the end of the lease on each version that a command began to read, by whole reference.
    """

    holder: str
    token: str
    ends: str
    uses: tuple[Use, ...] = ()
    read: Mapping[str, str] = field(default_factory=dict)

    def keeps(self, reference: str, days: float) -> bool:
        """Whether the lease keeps a version for so many days from now."""
        ends = [self.ends for use in self.uses if use.reference == reference]
        return any(_is_later(end, days) for end in [*ends, self.read.get(reference, "")] if end)


@cache
def _typed() -> TypeAdapter[Lease]:
    return TypeAdapter(Lease)


def is_shared(store: Store, project: Project | None) -> bool:
    """Whether other projects may use the data sets: their root is not in the project's folder.

    A folder that a command without a project names is shared if a project has a lease there.
    """
    if (folder := store.folder) is None:
        return True
    if project is None:
        return (folder / LEASES).is_dir()
    return not folder.resolve().is_relative_to(project.root.resolve())


def renew_lease(store: Store, project: Project, uses: Sequence[Use]) -> None:
    """Write what a project on a shared root uses, for LEASE_DAYS from now. A root that refuses it is logged."""
    if is_shared(store, project):
        ends = _in_days(LEASE_DAYS)
        try:
            _rewrite(store, project, lambda lease: replace(lease, ends=ends, uses=tuple(uses)))
        except (AifxError, OSError) as e:
            logger.warning(f"aifx data gc may delete what this project uses of {store.url}: {in_brief(e)}")


def hold_for_reading(store: Store, project: Project | None, reference: str) -> None:
    """Keep a version on a shared root for READ_DAYS from now, unless the lease keeps it for most of these already."""
    if not is_shared(store, project):
        return
    try:
        key = store.url, _state_folder(project), reference
        if time.monotonic() - _held.get(key, -RENEWAL_S) < RENEWAL_S:
            return

        def change(lease: Lease) -> Lease | None:
            if lease.keeps(reference, READ_DAYS - 1):
                return None
            lasting = {one: end for one, end in lease.read.items() if _is_later(end)}
            return replace(lease, read={**lasting, reference: _in_days(READ_DAYS)})

        _rewrite(store, project, change)
        _held[key] = time.monotonic()
    except (AifxError, OSError) as e:  # such as a root that can only be read
        logger.info(f"aifx data gc of another project may delete {reference[:80]} meanwhile: {in_brief(e)}")


def leased_uses(store: Store) -> Iterator[Use]:
    """The versions that leases name, with who holds them. Raises DataError for a damaged lease."""
    for name in store.files(LEASES):
        if not name.endswith(".json") or (data := store.read(f"{LEASES}/{name}")) is None:
            continue
        lease = _parse(data, store, name.removesuffix(".json"))
        if _is_later(lease.ends):
            for use in lease.uses:
                yield Use(use.reference, f"{use.who} of {lease.holder}, until {lease.ends[:10]}")
        elif lease.uses:
            logger.info(f"the lease of {lease.holder} ended at {lease.ends}, and keeps nothing")
        for reference, end in lease.read.items():
            if _is_later(end):
                yield Use(reference, f"a command of {lease.holder} that reads it, until {end[:10]}")


def _rewrite(store: Store, project: Project | None, change: Callable[[Lease], Lease | None]) -> None:
    """Write the lease of a project again, changed, unless `change` gives None. Raises AifxError, OSError.

    The lease is one object or is replaced by a rename, so that it is whole whenever the process is killed. Some file
    systems of fsspec do otherwise: a lease that is not whole is written again by its project.
    """
    folder, place = _state_folder(project), _place(store, project)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / f"{STATE}.lock"):
        try:
            states = parse_json(read_file(folder / STATE))
        except (FileNotFoundError, ValueError):
            states = {}
        states = states if isinstance(states, dict) else {}
        project_id, tokens = states.get(place) or (secrets.token_hex(8), [])
        holder = f"{socket.gethostname()}:{project.root if project else folder}"
        lease = Lease(holder, "", _in_days(0))
        try:
            if (data := store.read(_name(project_id))) is not None:
                lease = _parse(data, store, project_id)  # if it is another project's, with what it has of this one
                is_own = lease.token in tokens
                project_id, tokens = (project_id, [lease.token]) if is_own else (secrets.token_hex(8), [])
        except DataError as e:
            logger.warning(f"{e.what}, and is written again")
        if (changed := change(replace(lease, holder=holder))) is None:
            return
        tokens = [*tokens, secrets.token_hex(8)]
        # First here: if this process is killed in between, the lease has one of the tokens before.
        write_json(folder / STATE, {**states, place: [project_id, tokens]})
        data = encode(encode_json(plain(replace(changed, token=tokens[-1])), indent=2, ensure_ascii=False) + "\n")
        store.write(_name(project_id), iter([data]))


def _state_folder(project: Project | None) -> Path:
    return project.runs_path if project is not None else cache_path("leases")


def _place(store: Store, project: Project | None) -> str:
    """The root as the file of the project's ids names it: a folder by its path from the project."""
    if store.folder is None or project is None:
        return store.url
    return os.path.relpath(store.folder.resolve(), project.root.resolve())


def _name(project_id: str) -> str:
    return f"{LEASES}/{project_id}.json"


def _in_days(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).isoformat(timespec="seconds")


def _is_later(end: str, days: float = 0) -> bool:
    """Whether a time is more than so many days from now."""
    return datetime.fromisoformat(end) > datetime.now(UTC) + timedelta(days=days)


def _parse(data: bytes, store: Store, project_id: str) -> Lease:
    try:
        lease = _typed().validate_python(json.loads(data))
        if any(datetime.fromisoformat(end).tzinfo is None for end in (lease.ends, *lease.read.values())):
            raise ValueError("a time has no time zone")
    except ValueError as e:
        what, why = f"{store.url}/{_name(project_id)} is damaged", str(e).splitlines()[0]
        raise DataError(what, why, "run aifx data gc in the project that wrote it; if that is gone, delete it") from e
    return lease
