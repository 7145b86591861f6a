"""What the name of a data set means, and the requests that gave it a meaning: both change with one rename.

    <name>/latest                    the version; after the first request also a line with the digits of the last one
    <name>/requests/<digits>.json    a request with its outcome, and the digits of the one before

The file of a request is written before `latest`, and counts once `latest` leads to it. So a call that was killed leaves
a name that means what it did and a request that was not done, or neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError
from aifx.core.json_files import encode
from aifx.core.json_values import encode_json
from aifx.core.parsing import parse_json
from aifx.core.requests import Request, RequestDone, check_act
from aifx.core.stores import Store
from aifx.data.versions.manifest import LATEST

REQUESTS = "requests"
"""The folder of a data set with the requests that changed what its name means, or were refused."""

DIGITS = 32


@dataclass(frozen=True)
class Meaning:
    """The content of `latest`.

    Attributes:
        version: None for none; "" if the file is damaged.
        last: digits of the last request; "" for none.
    """

    version: str | None = None
    last: str = ""


def read_meaning(store: Store) -> Meaning:
    """What a name means, in the folder of its data set."""
    data = store.read(LATEST)
    if data is None:
        return Meaning()
    version, last = (*(line.strip() for line in data.decode(errors="replace").splitlines()[:2]), "", "")[:2]
    return Meaning(None if last and not version else version, last)


def write_meaning(store: Store, version: str | None, last: str) -> None:
    """Let a name mean a version, in the folder of its data set, after a last request."""
    lines = [version or "", last] if last else [version or ""]
    store.write(LATEST, iter(["".join(f"{line}\n" for line in lines).encode()]))


def check_request(store: Store, request: Request) -> None:
    """Raise RequestDone if a request was done in the folder of a data set, UsageError if its id did another act."""
    digits = _digits(request)
    if store.size(_file(digits)) is None or digits not in _counting(store):
        return
    kept = _read(store, digits)
    check_act(request.id, kept["act"] == request.act, f"it is of {kept['act']}")
    raise RequestDone(kept["outcome"])


def finish_request(store: Store, version: str | None, request: Request, outcome: Mapping[str, Any]) -> None:
    """Let a name mean a version, or what it means, and keep that a request did that. The caller holds the data set.

    Raises as `check_request`, if another call did it meanwhile.
    """
    check_request(store, request)
    now, digits = read_meaning(store), _digits(request)
    kept = {"request": request.id, "act": request.act, "outcome": outcome, "previous": now.last}
    store.write(_file(digits), iter([encode(encode_json(kept, ensure_ascii=False) + "\n")]))
    write_meaning(store, now.version if version is None else version, digits)


def _counting(store: Store) -> Iterator[str]:
    """The digits of the requests that were done, the last one first."""
    digits = read_meaning(store).last
    while digits:
        yield digits
        digits = _read(store, digits)["previous"]


def _read(store: Store, digits: str) -> dict[str, Any]:
    """A request that counts. Raises DataError."""
    data, why = store.read(_file(digits)), "it is missing"
    if data is not None:
        try:
            kept = parse_json(data)
            if kept.keys() == {"request", "act", "outcome", "previous"} and _digits_of(kept["request"]) == digits:
                found: dict[str, Any] = kept
                return found
            why = "it has other content than was written"
        except (ValueError, AttributeError, TypeError) as e:
            why = str(e).splitlines()[0]
    raise DataError(f"{store.url}/{_file(digits)} is damaged", why, "restore it from a copy, or use another --request")


def _file(digits: str) -> str:
    return f"{REQUESTS}/{digits}.json"


def _digits(request: Request) -> str:
    return _digits_of(request.id)


def _digits_of(id: str) -> str:
    return sha256_of(id)[:DIGITS]
