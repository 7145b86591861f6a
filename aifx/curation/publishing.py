"""The files of a version beside its shards: descriptions for other programs, and the manifest that seals it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aifx.core.artifact import Artifact, SealedFile, seal
from aifx.core.digests import sha256_of
from aifx.core.files import RECORDS_LIMIT, replace_file
from aifx.core.json_files import encode
from aifx.core.json_values import encode_json, plain
from aifx.curation.croissant import croissant_of
from aifx.curation.profile import Profile
from aifx.data.versions import CROISSANT, PROFILE, SUMS, Manifest, sums_of


def seal_version(folder: Path, manifest: Manifest, profile: Profile) -> Artifact:
    """Write croissant.json, profile.json, SHA256SUMS and, last, manifest.json into the folder that holds the shards."""
    documents = {CROISSANT: _document(croissant_of(manifest)), PROFILE: _document(plain(profile))}
    for name, data in documents.items():
        replace_file(folder / name, data)
    artifact = manifest.artifact({name: SealedFile(len(data), sha256_of(data)) for name, data in documents.items()})
    replace_file(folder / SUMS, sums_of(artifact))
    seal(folder, artifact, limit=RECORDS_LIMIT)  # a manifest has each source, such as a picture
    return artifact


def _document(document: Mapping[str, Any]) -> bytes:
    return encode(encode_json(document, indent=2, ensure_ascii=False) + "\n")
