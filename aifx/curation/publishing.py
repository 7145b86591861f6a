"""The files of a version beside its shards: the manifest, and descriptions for other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aifx.core.digests import sha256_of
from aifx.core.files import replace_file
from aifx.core.json_files import encode
from aifx.core.json_values import encode_json, plain
from aifx.curation.croissant import croissant_of
from aifx.curation.profile import Profile
from aifx.data.verification import sums_text
from aifx.data.versions import CROISSANT, MANIFEST, PROFILE, SUMS, Manifest


def describe(folder: Path, manifest: Manifest, profile: Profile) -> None:
    """Write croissant.json, profile.json, SHA256SUMS and, last, manifest.json into the folder that holds the shards."""
    documents = {
        CROISSANT: _document(croissant_of(manifest)),
        PROFILE: _document(plain(profile)),
        MANIFEST: _document(plain(manifest)),
    }
    digests = {name: sha256_of(data) for name, data in documents.items()}
    digests |= {file.name: file.sha256 for file in manifest.files}
    for name in (CROISSANT, PROFILE):
        replace_file(folder / name, documents[name])
    replace_file(folder / SUMS, sums_text(digests).encode())
    replace_file(folder / MANIFEST, documents[MANIFEST])


def _document(document: Mapping[str, Any]) -> bytes:
    return encode(encode_json(document, indent=2, ensure_ascii=False) + "\n")
