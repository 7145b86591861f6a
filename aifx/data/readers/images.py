"""Pictures: each file is a row, with its bytes unchanged, and what it shows."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from aifx.data.readers.base import ROW_BYTES, BadRow, Batch, ReadOptions, batch_of

if TYPE_CHECKING:
    from pyarrow import Field, Schema

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


def find_schema(path: str, compression: str, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The column of pictures, the same for every file."""
    import pyarrow as pa

    return pa.schema([(IMAGE, pa.binary())])


def read(path: str, compression: str, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The picture, if it can be decoded and has no more pixels than Pillow allows."""
    import pyarrow as pa

    from aifx.data.readers.pictures import BadPicture, open_picture
    from aifx.data.readers.streams import open_bytes, read_whole

    with open_bytes(path, compression, options) as stream:
        data = read_whole(stream, ROW_BYTES + 1)
    bad = []
    try:
        if len(data) > ROW_BYTES:
            raise BadPicture(f"it has more than {ROW_BYTES >> 20} MiB")
        with open_picture(io.BytesIO(data)) as picture:
            picture.load()
    except BadPicture as e:
        bad = [BadRow(1, str(e), data)]
    yield batch_of(pa.table([pa.array([] if bad else [data], pa.binary())], schema=schema), 0, bad)
