"""Roots in which somebody who can write has changed a value, and made all digests right again."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import Any

import tomli

from aifx.core.artifact import short
from aifx.core.digests import sha256_of, sha256_of_json

DEEP: Any = []
for _ in range(45):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 3, 2**63, 10**400, 1.5, -0.0, 1e308, math.nan, math.inf),
    *("", "x", "\ud800", "a\nb\x1b[31m", "../../x", "\0", "é" * 300, "9" * 64, "a" * 64, "0001-01-01T00:00:00+23:59"),
    *([], {}, [None], ["x"], [[1]], {"x": None}, {"": {"": 1}}, {"\n": 10**400}, DEEP),
)
"""Values of other types and ranges than any field has."""


def paths_in(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each value in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*before, key)
        yield from paths_in(one, (*before, key))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value at a place."""
    made = deepcopy(document)
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return made


def without(document: Any, path: tuple[Any, ...]) -> Any:
    """A copy that lacks a value."""
    made = deepcopy(document)
    place = made
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return made


def toml(value: Any) -> str:
    """A value in TOML, which has no null."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(k)} = {toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(one) for one in value if one is not None) + "]"
    if isinstance(value, str):
        return _text(value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _text(text: str) -> str:
    return json.dumps(text.encode("utf-8", "replace").decode(), ensure_ascii=True).replace("\\u007f", "\\u007F")


def table(values: Mapping[str, Any]) -> bytes:
    """A document in TOML."""
    return "".join(f"{_text(key)} = {toml(value)}\n" for key, value in values.items() if value is not None).encode()


class HostileRoot:
    """The documents of a root, by their path. Change one, and `write` a root in which it stands."""

    def __init__(self, folder: Path) -> None:
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.documents = {name: document for name in self.files if (document := self._document(name)) is not None}

    def _document(self, name: str) -> Any:
        data = self.files[name]
        if name.endswith(".toml"):
            return tomli.loads(data.decode())
        if name.endswith(".safetensors"):
            head = data[8 : 8 + int.from_bytes(data[:8], "little")]
            return json.loads(head) if head else None
        if not name.startswith("objects/"):
            return json.loads(data) if name.endswith(".json") else None
        try:
            envelope = json.loads(data)
            return {**envelope, "payload": json.loads(base64.b64decode(envelope["payload"]))}
        except ValueError:
            return tomli.loads(data.decode()) if b"[aliases" in data else None

    def _bytes(self, name: str, document: Any) -> bytes:
        data = self.files[name]
        if isinstance(document, bytes):
            return document
        if name.endswith(".toml") or (name.startswith("objects/") and data[:1] != b"{"):
            return table(document)
        if name.endswith(".safetensors"):
            start, head = 8 + int.from_bytes(data[:8], "little"), json.dumps(document).encode()
            return len(head).to_bytes(8, "little") + head + data[start:]
        if name.startswith("objects/"):
            payload = json.dumps(document.get("payload"), sort_keys=True, separators=(",", ":")).encode()
            rest = {"payload": base64.b64encode(payload).decode()} if "payload" in document else {}
            return _line({**document, **rest})
        return json.dumps(document).encode()

    def write(self, folder: Path, changed: str, document: Any) -> None:
        """Write the root into a new folder, with another document or other bytes in place of one."""
        renamed: dict[str, str] = {}

        def current(data: bytes) -> bytes:
            for old, new in renamed.items():
                data = data.replace(old.encode(), new.encode())
            return data

        def put(name: str, data: bytes) -> None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

        for name in (name for name in self.files if name.endswith("manifest.json")):
            home, manifest = name.removesuffix("/manifest.json"), self.documents[name]
            own = {one for one in self.files if one.startswith(f"{home}/") and one != name}
            data = {one: self._bytes(one, document) if one == changed else self.files[one] for one in own}
            if name == changed:
                manifest = document
            elif changed in own:
                entry = {"bytes": len(data[changed]), "sha256": sha256(data[changed]).hexdigest()}
                manifest = with_value(manifest, ("files", changed.removeprefix(f"{home}/")), entry)
            if isinstance(manifest, bytes):
                sealed, place = manifest, home
            else:
                sealed, digest = _sealed(manifest)
                renamed[self.documents[name]["digest"]] = digest
                place = f"{home.rpartition('/')[0]}/{short(digest)}"
            put(f"{place}/manifest.json", sealed)
            for one, content in data.items():
                put(one.replace(home, place, 1), content)
        objects = [name for name in self.files if name.startswith("objects/")]
        approvals = [one for one in objects if "'approval'" in str(self.documents.get(one))]
        entries = sorted(name for name in self.files if "/ledger/" in name or "/servers/" in name)
        policies = sorted(name for name in self.files if name.startswith("policy/"))
        previous: dict[str, str] = {}
        for name in [*(one for one in objects if one not in approvals), *policies, *approvals, *entries]:
            own_document = document if name == changed else self.documents.get(name)
            if name in objects:
                if name == changed:
                    data_ = self._bytes(name, own_document)
                elif own_document is not None and self.files[name][:1] == b"{":
                    data_ = self._bytes(name, json.loads(current(json.dumps(own_document).encode())))
                else:
                    data_ = self.files[name]
                renamed[name.removeprefix("objects/")] = sha256(data_).hexdigest()
                put(f"objects/{sha256(data_).hexdigest()}", data_)
                continue
            if isinstance(own_document, bytes):
                put(name, own_document)
                continue
            entry = json.loads(current(json.dumps(own_document).encode()))
            ledger = name.rpartition("/")[0]
            before = self.documents[name]
            if isinstance(entry, dict):
                if own_document.get("previous") == before["previous"] and ledger in previous:
                    entry["previous"] = previous[ledger]
                entry.pop("digest", None)
                digest = sha256_of(_line(entry).removesuffix(b"\n"))
                renamed[before["digest"]] = previous[ledger] = digest
                entry["digest"] = digest
            put(name, _line(entry))


def _line(document: Any) -> bytes:
    return (json.dumps(document, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _digest(document: Any) -> str:
    try:
        return sha256_of_json(document)
    except ValueError:  # NaN
        return "0" * 64


def _sealed(manifest: Any) -> tuple[bytes, str]:
    """The bytes of a manifest with right digests, and its digest."""
    if not isinstance(manifest, dict):
        return json.dumps(manifest).encode(), "0" * 64
    identity = {key: manifest[key] for key in ("format", "kind", "version", "content", "files") if key in manifest}
    more = {
        key: manifest[key] for key in manifest if key not in (*identity, "digest", "descriptions", "notes", "checksum")
    }
    digest = _digest(identity)
    rest = {"digest": digest} | {key: manifest[key] for key in ("descriptions", "notes") if key in manifest}
    document = {**identity, **more, **rest, "checksum": _digest(rest)}
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace"), digest
