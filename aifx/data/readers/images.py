"""Columns of pictures: the encoded bytes, and what each shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from pyarrow import Field

IMAGE = "image"
"""The column of encoded pictures, and the field of a row with one to predict from."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Of files of pictures."""

Target: TypeAlias = str | tuple[str, ...] | float
"""What a picture shows: a class, several, or a number."""

TargetKind: TypeAlias = Literal["label", "labels", "value"]
TARGETS: tuple[TargetKind, ...] = get_args(TargetKind)
"""The columns of targets: a version has one of them."""


def target_field(target: Target) -> Field:
    """The column of a target."""
    import pyarrow as pa

    if isinstance(target, str):
        return pa.field("label", pa.string())
    return pa.field("labels", pa.list_(pa.string())) if isinstance(target, tuple) else pa.field("value", pa.float64())
