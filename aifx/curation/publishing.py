"""What stands beside the shards of a version: its manifest, and its description for others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aifx.core.json_files import write_json
from aifx.core.json_values import plain
from aifx.curation.croissant import croissant_of
from aifx.data.versions import CROISSANT, MANIFEST, Manifest, Version


def describe(folder: Path, manifest: Manifest, parents: Sequence[Version]) -> None:
    """Write croissant.json and, last, manifest.json into the folder that holds the shards."""
    write_json(folder / CROISSANT, croissant_of(manifest))
    write_json(folder / MANIFEST, plain(manifest))
