"""Images of input files, one at a time: rows with a field "image" of whole numbers `[height, width, channels]`."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from aifx.core.errors import DataError
from aifx.data.readers import archives
from aifx.data.readers.documents import files_below
from aifx.data.readers.images import IMAGE, SUFFIXES
from aifx.data.readers.pictures import MODES, BadPicture, Geometry, decode
from aifx.data.readers.rows import FORMATS, Row, input_file, read_rows, unknown_format
from aifx.data.readers.sources import SourceFile

logger = logging.getLogger(__name__)

FILE_FIELD = "file"
PICTURES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
DAMAGED = "write it again, or leave it out"


def read_images(file: SourceFile, geometry: Geometry, *, skips: bool = False) -> Iterator[Row]:
    """The images of a file, in order: of .npz its array images (or else test_images), of .npy the one array, of a
    picture the picture, made to be as `geometry` says; the other formats hold them as nested lists in "image", .parquet
    also as the bytes of a picture file, or name pictures in "file". Of a folder, the pictures in it and in its folders,
    by name.

    Args:
        skips: leave out pictures of a folder that cannot be used, with a warning of each.

    Raises DataError naming the file.
    """
    if file.path.is_dir():
        for picture in _pictures(file.path):
            try:
                rows = list(read_images(input_file(str(picture)), geometry))
            except DataError as error:
                if not skips:
                    raise
                logger.warning(f"{error.what} ({error.why}): left out")
                continue
            yield from rows
    elif file.format in ("npz", "npy"):
        for number, image in enumerate(archives.read_images(file), 1):
            yield Row(file.name, number, f"{file.name}: image {number}", {IMAGE: image})
    elif file.format == "image":
        yield Row(file.name, 1, file.name, {IMAGE: _picture(file, geometry)})
    elif file.format in FORMATS:
        for row in read_rows(file):
            if isinstance(data := row.values.get(IMAGE), bytes):  # of a version of a data set
                yield replace(row, values={**row.values, IMAGE: _decoded(data, row.place, geometry, DAMAGED)})
            elif FILE_FIELD in row.values and IMAGE not in row.values:
                yield _listed(file, row, geometry)
            else:
                yield row
    else:
        raise unknown_format(file, (*PICTURES, "npz", "npy", "csv", "jsonl", "parquet"))


def _listed(file: SourceFile, row: Row, geometry: Geometry) -> Row:
    """A row with the picture that it names, relative to the file of the row."""
    path = file.path.parent / str(row.values[FILE_FIELD])
    return replace(row, values={**row.values, IMAGE: _picture(input_file(str(path)), geometry)})


def _pictures(folder: Path) -> list[Path]:
    """Raises DataError for a folder without pictures."""
    found = [path for path in files_below(folder) if path.suffix.lower() in SUFFIXES]
    if not found:
        raise DataError(f"{folder} has no pictures", f"they are {', '.join(SUFFIXES)}", f"ls {folder}")
    return found


def _picture(file: SourceFile, geometry: Geometry) -> np.ndarray:
    """A picture file as the model takes it."""
    with file.open() as stream:
        return _decoded(stream.read(), file.name, geometry, f"file {file.name}")


def _decoded(data: bytes, place: str, geometry: Geometry, hint: str) -> np.ndarray:
    """The bytes of a picture file as the model takes it. Raises DataError naming the place."""
    if geometry.channels not in MODES:
        what = f"{place}: a picture cannot have {geometry.channels} channels"
        raise DataError(what, "the model takes so many", archives.HINT)
    try:
        return decode(io.BytesIO(data), geometry)
    except BadPicture as error:
        raise DataError(f"{place} cannot be used", str(error), hint) from None
