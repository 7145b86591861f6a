"""`files.json` of a checkpoint: the size and the SHA-256 of each of its files, by the process that wrote it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aifx.checkpoint.manifest import ITEM
from aifx.core.digests import sha256_of_json, size_and_sha256
from aifx.core.files import UnsafeFile, read_file
from aifx.core.json_files import sync_directory
from aifx.core.os_errors import naming
from aifx.core.parsing import parse_json

INVENTORY = "files.json"
THREADS = 4

Files = dict[str, tuple[int, str]]
"""By path within the checkpoint: the number of bytes, and their SHA-256 in hexadecimal."""


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and in its folders."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def seal_files(folder: Path, paths: Iterable[Path]) -> Files:
    """Make files of the checkpoint in `folder` survive a loss of power. Returns their sizes and SHA-256.

    While the disk takes one file, the processor digests another.
    """

    def seal(path: Path) -> tuple[str, tuple[int, str]]:
        sync_file(path)
        return str(path.relative_to(folder)), _summary(path)

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(pool.map(seal, paths))


def sync_file(path: Path) -> None:
    """Make the content of a file survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_folders(folder: Path) -> None:
    """Make the names in a folder, and in its folders, survive a loss of power."""
    for parent, _, _ in os.walk(folder):
        sync_directory(Path(parent))


def write_inventory(folder: Path, files: Files) -> None:
    """List the files of the checkpoint in `folder`, after which none may be written."""
    path = folder / ITEM / INVENTORY
    path.write_bytes(_encoded({name: {"bytes": size, "sha256": sha} for name, (size, sha) in files.items()}))
    sync_file(path)


def missing_files(folder: Path) -> str | None:
    """What is missing from the checkpoint in `folder`, found without reading arrays; None if nothing is.

    Does not find changed bytes.
    """
    try:
        sizes = {name: size for name, (size, _) in _read(folder).items()}
    except UnreadableInventory as e:
        return str(e)
    return next((why for name, size in sizes.items() if (why := _wrong_size(folder, name, size))), None)


def damaged_files(folder: Path) -> list[str]:
    """What is wrong with the files of the checkpoint in `folder`, one line per file. Reads all of them.

    Raises OSError if the machine refuses to read one.
    """
    try:
        files = _read(folder)
    except UnreadableInventory as e:
        return [f"{ITEM}/{INVENTORY}: {e}"]

    def wrong(name: str) -> str | None:
        size, sha = files[name]
        if why := _wrong_size(folder, name, size):
            return why
        return None if _summary(folder / name)[1] == sha else f"{name} has other bytes than were written"

    with ThreadPoolExecutor(THREADS) as pool:
        return [why for why in pool.map(wrong, files) if why]


class UnreadableInventory(Exception):
    """The inventory itself is missing or damaged."""


def _read(folder: Path) -> Files:
    try:
        return parse_inventory(read_file(folder / ITEM / INVENTORY, below=folder))
    except (FileNotFoundError, NotADirectoryError) as e:
        raise UnreadableInventory(f"{INVENTORY} is missing") from e
    except UnsafeFile as e:
        raise UnreadableInventory(f"{INVENTORY} cannot be read") from e


def parse_inventory(data: bytes) -> Files:
    """The files that the content of a `files.json` lists. Raises UnreadableInventory."""
    try:
        files = parse_json(data)["files"]
        if data != _encoded(files):
            raise UnreadableInventory(f"{INVENTORY} is not as it was written")
        return {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UnreadableInventory(f"{INVENTORY} cannot be read") from e


def _encoded(files: Mapping[str, Any]) -> bytes:
    """The one form in which a list of files is written, so that no byte can differ unnoticed."""
    body = {"files": dict(sorted(files.items()))}
    return json.dumps({**body, "checksum": sha256_of_json(body)}, indent=1).encode()


def _wrong_size(folder: Path, name: str, size: int) -> str | None:
    path = folder / name
    if not path.is_file():
        return f"{name} is missing"
    found = path.stat().st_size
    return None if found == size else f"{name} has {found:,} bytes and had {size:,}"


def _summary(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return size_and_sha256(file)
