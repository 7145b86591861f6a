"""The splits of a data set, and which of them a hash gives an example."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from aifx.core.digests import fraction_of

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_of(digest: bytes, fractions: Mapping[Split, float]) -> Split:
    """The split of a document or of a group of them, by the digest of a `Hash64`."""
    held_out = fraction_of(digest) - fractions["test"]
    return "test" if held_out < 0 else "validation" if held_out < fractions["validation"] else "train"


SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
"""Names of folders of pictures, and of splits in a list of pictures, in lower case."""


def split_folders(folders: Iterable[str]) -> dict[str, Split]:
    """The folders of splits among folders side by side, in order; none unless one is for training."""
    found = {folder: SPLIT_FOLDERS[folder.lower()] for folder in folders if folder.lower() in SPLIT_FOLDERS}
    return found if "train" in found.values() else {}
