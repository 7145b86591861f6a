"""Images in files of NumPy: the arrays of an archive (.npz), and the rows of an array (.npz, .npy) one at a time."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np

from aifx.core.errors import DataError, UsageError
from aifx.data.readers.sources import SourceFile

TRAINING_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
HINT = "numpy.savez writes one, with uint8 images [n, height, width] or [n, height, width, channels]: docs/images.md"


@contextmanager
def _open_archive(file: SourceFile) -> Iterator[Any]:
    """The numpy.lib.npyio.NpzFile of an archive, of which only the directory is read.

    Raises DataError, also for what is read of it in the block, UsageError for standard input.
    """
    if file.is_stdin:
        raise UsageError("an .npz archive cannot be read from stdin", "its index is at the end", "name the file")
    with file.open() as stream:
        if not zipfile.is_zipfile(stream):
            why = f"{stream.seek(0, 2):,} bytes that are no zip file"
            raise DataError(f"{file.name}: not an .npz archive", why, HINT)
        stream.seek(0)
        try:
            with np.load(stream, allow_pickle=False) as archive:
                yield archive
        except (zipfile.BadZipFile, RuntimeError, ValueError) as error:  # encrypted; bytes before it
            raise DataError(f"{file.name}: a damaged archive", str(error), "copy it again") from None


def check_archive(file: SourceFile) -> None:
    """Raise DataError if an archive to train on lacks an array."""
    with _open_archive(file) as archive:
        _check_names(archive, TRAINING_ARRAYS, file.name)


def _check_names(archive: Any, names: Collection[str], file: str) -> None:
    for name in names:
        if name not in archive.files:
            held = f"it holds {', '.join(archive.files) or 'nothing'}"
            raise DataError(f"{file}: no array {name!r}", held, HINT)


def image_arrays(names: Collection[str]) -> list[str]:
    """The arrays with a data set's images and labels, of those that an archive holds."""
    return ["test_images", "test_labels"] if "images" not in names and "test_images" in names else ["images", "labels"]


def read_arrays(file: SourceFile, needed: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Arrays of an archive: those `needed`, by default those of `image_arrays`. Raises DataError, UsageError."""
    with _open_archive(file) as archive:
        needed = needed or image_arrays(archive.files)
        _check_names(archive, needed, file.name)
        return {key: _array(archive, key, file.name) for key in needed}


def _array(archive: Any, key: str, name: str) -> np.ndarray:
    try:
        values = archive[key]
    except (ValueError, EOFError, zipfile.BadZipFile, RuntimeError, zlib.error) as error:
        why = "it holds Python objects" if "pickle" in str(error) else str(error)
        raise DataError(f"{name}: array {key!r} cannot be read", why, HINT) from None
    if not isinstance(values, np.ndarray):
        raise DataError(f"{name}: {key!r} is not a NumPy array", "", HINT)
    return values


def read_images(file: SourceFile) -> Iterator[np.ndarray]:
    """The images of an archive or of an .npy file, one at a time: uint8 `[height, width]` or with channels.

    Raises DataError, UsageError.
    """
    if file.format == "npy":
        with file.open() as stream:
            yield from _rows(stream, file.name)
        return
    with _open_archive(file) as archive:
        name = image_arrays(archive.files)[0]
        _check_names(archive, [name], file.name)
        with archive.zip.open(f"{name}.npy") as stream:
            yield from _rows(stream, f"{file.name}: {name}")


def _rows(stream: IO[bytes], where: str) -> Iterator[np.ndarray]:
    """The rows of an array in the .npy format."""
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
