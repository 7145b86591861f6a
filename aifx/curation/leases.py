"""Leases of projects that share a root of data sets: a file for each project names the versions that it uses.

    .leases/<id of the project>.json

`aifx data gc --versions` keeps what a lease names until its end, which the file has. A project keeps its id for a root
in `runs/.leases.json`, with the tokens that it wrote into its lease last. A copy of the project has them too, and the
first of the two to write again changes the token: then the other one finds another project's token, and takes a new id.
"""

from __future__ import annotations

import json
import logging
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import TypeAdapter

from aifx.core.errors import DataError, EnvironmentFault
from aifx.core.files import exclusive, read_file
from aifx.core.json_files import encode, write_json
from aifx.core.json_values import encode_json, plain
from aifx.core.os_errors import in_brief
from aifx.core.parsing import parse_json
from aifx.core.project import Project
from aifx.data.versions.catalog import Catalog

logger = logging.getLogger(__name__)

LEASES = ".leases"
LEASE_DAYS = 90
STATE = ".leases.json"


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
        ends: a time in UTC; what the lease names is not kept from then on.
    """

    holder: str
    token: str
    ends: str
    uses: tuple[Use, ...]


_LEASE = TypeAdapter(Lease)


def is_shared(catalog: Catalog, project: Project) -> bool:
    """Whether other projects may use the data sets: their root is not in the project's folder."""
    return catalog.local is None or not catalog.local.resolve().is_relative_to(project.root.resolve())


def renew_lease(catalog: Catalog, project: Project, uses: Sequence[Use]) -> None:
    """Write the lease of a project on a shared root, for LEASE_DAYS from now. A root that refuses it is logged."""
    if not is_shared(catalog, project):
        return
    state_file, url = project.runs_path / STATE, catalog.store.url
    try:
        project.runs_path.mkdir(exist_ok=True)
        with exclusive(project.runs_path / f"{STATE}.lock"):
            try:
                states = parse_json(read_file(state_file))
            except (FileNotFoundError, ValueError):
                states = {}
            known = states.get(url) if isinstance(states, dict) else None
            project_id, tokens = known or (secrets.token_hex(8), [])
            if (data := catalog.store.read(_name(project_id))) is not None:
                with suppress(DataError):
                    tokens = [token for token in tokens if token == _parse(data, catalog, project_id).token]
                if len(tokens) != 1:  # another project's, or damaged
                    project_id, tokens = secrets.token_hex(8), []
            tokens = [*tokens, secrets.token_hex(8)]
            # First here: if this process is killed in between, the lease has the token before.
            write_json(state_file, {**(states if isinstance(states, dict) else {}), url: [project_id, tokens]})
            ends = (datetime.now(UTC) + timedelta(days=LEASE_DAYS)).isoformat(timespec="seconds")
            lease = Lease(f"{socket.gethostname()}:{project.root}", tokens[-1], ends, tuple(uses))
            data = encode(encode_json(plain(lease), indent=2, ensure_ascii=False) + "\n")
            catalog.store.write(_name(project_id), iter([data]))
    except (EnvironmentFault, OSError) as e:
        logger.warning(f"aifx data gc may delete what this project uses of {url}: {in_brief(e)}")


def leased_uses(catalog: Catalog) -> Iterator[Use]:
    """The versions that leases of projects name, with who holds them. Raises DataError for a damaged lease."""
    for name in catalog.store.files(LEASES):
        if not name.endswith(".json") or (data := catalog.store.read(f"{LEASES}/{name}")) is None:
            continue
        lease = _parse(data, catalog, name.removesuffix(".json"))
        if datetime.fromisoformat(lease.ends) < datetime.now(UTC):
            logger.info(f"the lease of {lease.holder} ended at {lease.ends}, and keeps nothing")
            continue
        for use in lease.uses:
            yield Use(use.reference, f"{use.who} of {lease.holder}, until {lease.ends[:10]}")


def _name(project_id: str) -> str:
    return f"{LEASES}/{project_id}.json"


def _parse(data: bytes, catalog: Catalog, project_id: str) -> Lease:
    try:
        lease: Lease = _LEASE.validate_python(json.loads(data))
        if datetime.fromisoformat(lease.ends).tzinfo is None:
            raise ValueError("ends has no time zone")
    except ValueError as e:
        what, why = f"{catalog.store.url}/{_name(project_id)} is damaged", str(e).splitlines()[0]
        raise DataError(what, why, "delete it, and run aifx data gc in the project that wrote it") from e
    return lease
