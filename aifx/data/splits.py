"""The splits of a data set, and which of them a hash gives an example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from aifx.core.digests import fraction_of

Split: TypeAlias = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_of(digest: bytes, fractions: Mapping[Split, float]) -> Split:
    """The split of a document or of a group of them, by the digest of a `Hash64`."""
    held_out = fraction_of(digest) - fractions["test"]
    return "test" if held_out < 0 else "validation" if held_out < fractions["validation"] else "train"
