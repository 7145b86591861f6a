"""Pictures: each file is a row, with its bytes unchanged."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aifx.data.readers.base import ROW_BYTES, BadRow, Batch, ReadOptions, batch_of
from aifx.data.readers.streams import open_bytes, read_whole

if TYPE_CHECKING:
    from pyarrow import Schema

IMAGE, LABEL = "image", "label"


def find_schema(path: str, compression: str, options: ReadOptions, *, is_whole: bool) -> Schema:
    """The columns of pictures, the same for every file."""
    import pyarrow as pa

    return pa.schema([(IMAGE, pa.binary()), (LABEL, pa.string())])


def read(path: str, compression: str, schema: Schema, options: ReadOptions) -> Iterator[Batch]:
    """The picture, if it can be decoded and has no more pixels than Pillow allows."""
    import pyarrow as pa

    from aifx.data.readers.pictures import BadPicture, open_picture

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
    images = [] if bad else [data]
    labels = pa.nulls(len(images), pa.string())
    yield batch_of(pa.table([pa.array(images, pa.binary()), labels], schema=schema), 0, bad)
