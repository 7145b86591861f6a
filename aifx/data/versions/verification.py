"""Comparing the files of a version with their SHA-256, wherever the version is.

`SHA256SUMS` lists every file of a version as sha256sum does, so that `sha256sum -c SHA256SUMS` needs no aifx. Its first
line, a comment to sha256sum, has the SHA-256 of the rest. If the manifest is damaged, the other files are compared with
it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aifx.core.artifact import MANIFEST, Artifact, DamagedArtifact, SealedFile, check_once, parse_files
from aifx.core.artifact_copies import damaged_in_store
from aifx.core.errors import DataError
from aifx.core.files import UnsafeFile
from aifx.core.progress import report_progress
from aifx.core.stores import Store
from aifx.data.versions.manifest import (
    DROPPED,
    KIND,
    QUARANTINE,
    SHARDS,
    SUMS,
    VERSION,
    Version,
    read_version,
    sums_of,
    sums_text,
)

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


def check_files(store: Store, name: str, version: str) -> CheckedFiles:
    """Read every file of a version and compare it with its SHA-256.

    Args:
        store: the version's folder.
        name: of the data set.
    """
    artifact, damages = _read_manifest(store, name, version), []
    try:
        sums = store.read(SUMS)
    except UnsafeFile:  # a link or a FIFO
        sums = b""
    if isinstance(artifact, Artifact):
        is_same = sums == sums_of(artifact)
    else:
        damages.append(f"{MANIFEST} {artifact}")
        artifact = Artifact(KIND, VERSION, {}, _listed_files(store, sums or b""))
        is_same = bool(artifact.files)
    if not is_same:
        damages.append(f"{SUMS} {'is missing' if sums is None else 'has other bytes than were written'}")
    size = artifact.size_bytes + (store.size(MANIFEST) or 0)
    with report_progress(f"reading {store.url}", size, "bytes") as progress:
        damages += damaged_in_store(store, artifact, progress)
    for folder in (SHARDS, DROPPED, QUARANTINE):
        stored = sorted(f"{folder}/{file}" for file in store.files(folder))
        damages += [f"{file} is no file of this version" for file in stored if file not in artifact.files]
    return CheckedFiles(len(artifact.every_file) + 1, size, tuple(damages))


def check_shards(version: Version) -> None:
    """Compare the shards with the manifest, unless they are as they were when they were last compared or written.

    Raises DataError for a damaged or missing one.
    """
    shards = version.manifest.shards
    with report_progress(f"verifying {version.reference}", sum(shard.bytes for shard in shards), "bytes") as progress:
        try:
            check_once(version.path, version.manifest.artifact(), [shard.name for shard in shards], progress)
        except DamagedArtifact as e:
            what, hint = f"{version.reference}: {e.why}", f"aifx data verify {version.reference}"
            raise DataError(what, "its manifest has the SHA-256 of each file", hint) from e


def _listed_files(store: Store, sums: bytes) -> dict[str, SealedFile]:
    """The files in SHA256SUMS but the manifest; none if it is damaged, or names one outside of the version."""
    text = sums.decode("utf-8", "replace")
    digests = {name: digest for digest, name in _LINE.findall(text)}
    if text != sums_text(digests):
        return {}
    digests.pop(MANIFEST, None)
    try:
        files = parse_files({name: {"bytes": 0, "sha256": digest} for name, digest in digests.items()})
    except ValueError:
        return {}
    return {name: SealedFile(store.size(name) or 0, file.sha256) for name, file in files.items()}


def _read_manifest(store: Store, name: str, version: str) -> Artifact | str:
    """The version, or the reason why its manifest cannot be used."""
    try:
        found = read_version(store, version)
    except DataError as e:
        return f"is damaged: {e.why.removeprefix(f'{MANIFEST}: ')}"
    if found is None:
        return "is missing"
    artifact, manifest = found
    return artifact if manifest.name == name else f"is that of {manifest.name!r}"
