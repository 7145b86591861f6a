"""Comparing the files of a version with their SHA-256, wherever the version is.

`SHA256SUMS` lists every file of a version as sha256sum does, so that `sha256sum -c SHA256SUMS` needs no aifx. Its first
line, a comment to sha256sum, has the SHA-256 of the rest.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from aifx.core.artifact import writable_folder
from aifx.core.digests import sha256_of, sha256_of_values
from aifx.core.errors import DataError
from aifx.core.progress import report_progress
from aifx.core.project import cache_path
from aifx.core.stores import Store
from aifx.data.versions import DROPPED, MANIFEST, QUARANTINE, SHARDS, SUMS, Manifest, Version, parse_manifest

_HEADER = "# SHA-256 of the lines below: "
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")


@dataclass(frozen=True)
class CheckedFiles:
    """The files of a version after they were read.

    Attributes:
        damages: each damaged or missing file, and why.
    """

    files: int
    bytes: int
    damages: tuple[str, ...]


def sums_text(digests: Mapping[str, str]) -> str:
    """The content of SHA256SUMS."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return f"{_HEADER}{sha256_of(lines)}\n{lines}"


def check_files(store: Store, name: str, version: str) -> CheckedFiles:
    """Read every file of a version and compare it with its SHA-256.

    Args:
        store: the version's folder.
        name: of the data set.
    """
    damages = []
    digests, problem = _read_sums(store)
    if problem:
        damages.append(f"{SUMS} {problem}")
    manifest = _read_manifest(store, name, version)
    written: dict[str, int] = {}
    if isinstance(manifest, Manifest):
        digests |= {file.name: file.sha256 for file in manifest.files}
        written = {file.name: file.bytes for file in manifest.files}
    else:
        damages.append(f"{MANIFEST} {manifest}")
        digests.pop(MANIFEST, None)
    sizes = {file: store.size(file) for file in sorted(digests)}
    size = sum(size or 0 for size in sizes.values())
    with report_progress(f"reading {store.url}", size, "bytes") as progress, ThreadPoolExecutor(4) as pool:

        def problem_of(file: str) -> str:
            found = sizes[file]
            if found is None:
                return "is missing"
            if found != written.get(file, found):
                return f"has {found:,} bytes instead of {written[file]:,}"
            is_same = store.sha256(file, progress) == digests[file]
            return "" if is_same else "has other bytes than were written"

        damages += [f"{file} {why}" for file, why in zip(sizes, pool.map(problem_of, sizes), strict=True) if why]
    for folder in (SHARDS, DROPPED, QUARANTINE):
        found = sorted(f"{folder}/{file}" for file in store.files(folder))
        damages += [f"{file} is no file of this version" for file in found if file not in digests]
    return CheckedFiles(len(digests), size, tuple(damages))


def check_shards(version: Version) -> None:
    """Compare the shards with the manifest, unless they are as they were when they were last compared or written.

    Raises DataError for a damaged or missing one.
    """
    mark = _mark(version)
    if mark is not None and mark.exists():
        return
    for damage in version.damaged_shards():
        what, hint = f"{version.reference}: {damage}", f"aifx data verify {version.reference}"
        raise DataError(what, "its manifest has the SHA-256 of each file", hint)
    mark_checked(version)


def mark_checked(version: Version) -> None:
    """Record in the cache that the shards, as they are now, are those of the manifest."""
    if (mark := _mark(version)) is not None:
        with suppress(OSError), writable_folder(mark.parent):
            mark.touch()


def _mark(version: Version) -> Path | None:
    """The file that records a comparison, which is named by the size and time of each shard; None if one is missing."""
    try:
        state = [(str(path), found.st_size, found.st_mtime_ns) for path in version.shards if (found := path.stat())]
    except OSError:
        return None
    return cache_path("verified") / sha256_of_values(version.manifest.sha256, state)


def _read_sums(store: Store) -> tuple[dict[str, str], str]:
    """The digests in SHA256SUMS, or none and the reason."""
    data = store.read(SUMS)
    if data is None:
        return {}, "is missing"
    text = data.decode("utf-8", "replace")
    digests = {name: digest for digest, name in _LINE.findall(text)}
    if text != sums_text(digests):
        return {}, "has other bytes than were written"
    return digests, ""


def _read_manifest(store: Store, name: str, version: str) -> Manifest | str:
    """The manifest, or the reason why it cannot be read."""
    data = store.read(MANIFEST)
    if data is None:
        return "is missing"
    try:
        manifest = parse_manifest(data, MANIFEST, version)
    except DataError as e:
        return f"is damaged: {e.why}"
    return manifest if manifest.name == name else f"is that of {manifest.name!r}"
