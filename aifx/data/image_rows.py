"""Images of input files, one at a time: rows with a field "image" of whole numbers `[height, width, channels]`."""

from __future__ import annotations

import io
import logging
import math
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np

from aifx.core.errors import DataError, UsageError
from aifx.data.readers.documents import files_below
from aifx.data.readers.pictures import MODES, SUFFIXES, BadPicture, Geometry, decode
from aifx.data.readers.rows import FORMATS, Row, input_file, read_rows, unknown_format
from aifx.data.readers.sources import SourceFile

logger = logging.getLogger(__name__)

IMAGE_FIELD = "image"
FILE_FIELD = "file"
TRAINING_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
PICTURES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
HINT = "numpy.savez(path, images=values), with uint8 values [n, height, width] or [n, height, width, channels]"
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
    elif file.format == "npz":
        yield from _archive(file)
    elif file.format == "npy":
        with file.open() as stream:
            yield from _numbered(file, _array_rows(stream, file.name))
    elif file.format == "image":
        yield Row(file.name, 1, file.name, {IMAGE_FIELD: _picture(file, geometry)})
    elif file.format in FORMATS:
        for row in read_rows(file):
            if isinstance(data := row.values.get(IMAGE_FIELD), bytes):  # of a version of a data set
                yield replace(row, values={**row.values, IMAGE_FIELD: _decoded(data, row.place, geometry, DAMAGED)})
            elif FILE_FIELD in row.values and IMAGE_FIELD not in row.values:
                yield _listed(file, row, geometry)
            else:
                yield row
    else:
        raise unknown_format(file, (*PICTURES, "npz", "npy", "csv", "jsonl", "parquet"))


def _listed(file: SourceFile, row: Row, geometry: Geometry) -> Row:
    """A row with the picture that it names, relative to the file of the row."""
    path = file.path.parent / str(row.values[FILE_FIELD])
    return replace(row, values={**row.values, IMAGE_FIELD: _picture(input_file(str(path)), geometry)})


def _pictures(folder: Path) -> list[Path]:
    """Raises DataError for a folder without pictures."""
    found = [path for path in files_below(folder) if path.suffix.lower() in SUFFIXES]
    if not found:
        raise DataError(f"{folder} has no pictures", f"they are {', '.join(SUFFIXES)}", f"ls {folder}")
    return found


def _numbered(file: SourceFile, images: Iterator[np.ndarray]) -> Iterator[Row]:
    for number, image in enumerate(images, 1):
        yield Row(file.name, number, f"{file.name}: image {number}", {IMAGE_FIELD: image})


def _archive(file: SourceFile) -> Iterator[Row]:
    if file.is_stdin:
        raise UsageError("an .npz archive cannot be read from stdin", "its index is at the end", "name the file")
    try:
        with file.open() as stream, zipfile.ZipFile(stream) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            array, _ = image_arrays(members)
            if array not in members:
                raise DataError(f"{file.name}: no array {array!r}", f"it holds {', '.join(members) or 'nothing'}", HINT)
            with archive.open(members[array]) as values:
                yield from _numbered(file, _array_rows(values, f"{file.name}: {array}"))
    except (zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError: encrypted, or an unknown compression
        raise DataError(f"{file.name}: not an .npz archive that can be read", str(error), HINT) from None


def _array_rows(stream: IO[bytes], where: str) -> Iterator[np.ndarray]:
    """The rows of an array in the .npy format, read one at a time."""
    try:
        is_first_version = np.lib.format.read_magic(stream) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if is_first_version else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
    except (ValueError, EOFError, OverflowError) as error:
        raise DataError(f"{where} is not a NumPy array", str(error).splitlines()[0], HINT) from None
    if dtype != np.uint8 or len(shape) not in (3, 4) or fortran_order:
        order = " in Fortran order" if fortran_order else ""
        why = "images are uint8 in C order, [n, height, width] or [n, height, width, channels]"
        raise DataError(f"{where} is {dtype} of shape {list(shape)}{order}", why, HINT)
    size = math.prod(shape[1:])
    for number in range(1, shape[0] + 1):
        try:
            data = stream.read(size)
        except (zlib.error, zipfile.BadZipFile, EOFError) as error:
            raise DataError(f"{where} is damaged at image {number}", str(error), "copy it again") from None
        if len(data) < size:
            why = f"its header promises {shape[0]} images"
            raise DataError(f"{where} is cut off at image {number}", why, "copy it again")
        yield np.frombuffer(data, np.uint8).reshape(shape[1:])


def _picture(file: SourceFile, geometry: Geometry) -> np.ndarray:
    """A picture file as the model takes it."""
    with file.open() as stream:
        return _decoded(stream.read(), file.name, geometry, f"file {file.name}")


def _decoded(data: bytes, place: str, geometry: Geometry, hint: str) -> np.ndarray:
    """The bytes of a picture file as the model takes it. Raises DataError naming the place."""
    if geometry.channels not in MODES:
        what = f"{place}: a picture cannot have {geometry.channels} channels"
        raise DataError(what, "the model takes so many", HINT)
    try:
        return decode(io.BytesIO(data), geometry)
    except BadPicture as error:
        raise DataError(f"{place} cannot be used", str(error), hint) from None


def image_arrays(names: Collection[str]) -> list[str]:
    """The arrays with a data set's images and labels, of those that an archive holds."""
    return ["test_images", "test_labels"] if "images" not in names and "test_images" in names else ["images", "labels"]


def check_archive(path: Path) -> None:
    """Raise OSError or ValueError if `data.path` lacks an array; only the archive's directory is read."""
    if not path.is_file():
        raise OSError(f"no file {path}, which data.path names")
    with np.load(path, allow_pickle=False) as archive:
        if missing := set(TRAINING_ARRAYS) - set(archive.files):
            raise ValueError(f"{path} has no {', '.join(sorted(missing))}")
