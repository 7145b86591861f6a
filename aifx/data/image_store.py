"""The image store: pictures that were decoded once, as rows of one shape in the row cache (`aifx.data.row_cache`).

It is named by the SHA-256 of the pictures' files, and by what they were made to be. Its manifest has the geometry, and
for each picture that cannot be used the reason. It holds

    pixels          uint8 [pictures, height, width, channels]
    digests.npy     uint8 [pictures, 2, 32]: SHA-256 of each picture's bytes, and of its row of pixels

The digests of the rows stand for the pixels, which the manifest does not list, in place of a SHA-256 of the whole file
and of its blocks: a picture is what is read at once, and what is decoded again, into the same bytes. If anything else
is damaged, all pictures are decoded again.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.artifact import Artifact, Files, cached, read_sealed, seal_files
from aifx.core.errors import DataError
from aifx.core.os_errors import naming
from aifx.core.progress import report_progress
from aifx.core.project import cache_path
from aifx.data.readers.decoding import PIXELS, Decoded, Picture, decode_all, decode_one, write_row
from aifx.data.readers.pictures import BadPicture, Fit, Geometry, is_grey, open_picture
from aifx.data.row_cache import VERSION, FixedRows, open_mapped, rows_key
from aifx.machine.cpu import usable_cpus

logger = logging.getLogger(__name__)

DIGESTS = "digests.npy"


@dataclass(frozen=True)
class ImageStore:
    """An opened store of the pictures `files`."""

    files: Sequence[Picture]
    geometry: Geometry
    pixels: FixedRows  # uint8 [pictures, height, width, channels]
    digests: np.ndarray  # uint8 [pictures, 2, 32]
    problems: dict[int, str]  # why a picture cannot be used


class StoredImages:
    """Some pictures of a store, `[images, height, width, channels]`, indexed by arrays of whole numbers."""

    dtype = np.dtype(np.uint8)

    def __init__(self, store: ImageStore, rows: np.ndarray) -> None:
        self._pixels, self._rows = store.pixels, rows
        self.shape = (len(rows), *store.geometry.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: np.ndarray) -> np.ndarray:
        return self._pixels[self._rows[which]]


def open_images(
    files: Sequence[Picture],
    contents: Mapping[str, str],
    size: tuple[int, int],
    channels: int | None,
    fit: Fit,
    *,
    workers: int | None,
    what: str,
) -> ImageStore:
    """The store of these pictures, which is made if it is not there. Pictures that cannot be used are its `problems`.

    Args:
        contents: SHA-256 of the bytes of each file that can be read, by its path.
        size: height and width.
        channels: None takes 1 if all pictures are grey, otherwise 3.
        workers: processes that decode; None takes one for each core.
        what: what progress calls the pictures.

    Raises OSError, EnvironmentFault if the cache cannot be written, DataError for a picture that changes meanwhile.
    """

    def build(folder: Path) -> tuple[Mapping[str, Any], Files]:
        geometry = Geometry(*size, channels or _channels(files), fit)
        processes = len(usable_cpus()) if workers is None else workers
        content = _decode(files, contents, geometry, processes, what, folder)
        return content, seal_files(folder, [folder / DIGESTS])

    rows = [(contents.get(str(picture.path)), picture.row) for picture in files]
    path = cache_path("images") / rows_key("aifx.data.readers.decoding", size, channels, fit, rows)
    return cached(path, "image store", VERSION, build, partial(_open, files), logger.warning)


def _decode(
    files: Sequence[Picture], contents: Mapping[str, str], geometry: Geometry, workers: int, what: str, folder: Path
) -> Mapping[str, Any]:
    digests = np.zeros((len(files), 2, 32), np.uint8)
    problems: dict[int, str] = {}
    activity = f"decoding {what}"
    logger.info(activity)
    with report_progress(activity, len(files), "pictures") as progress:

        def done(decoded: Decoded) -> None:
            picture = files[decoded.index]
            if decoded.file and picture.row is None and decoded.file != contents.get(str(picture.path)):
                raise DataError(f"{picture.name} changed while it was read", "", "run it again when it is written")
            if decoded.why:
                problems[decoded.index] = decoded.why
            for part, digest in enumerate((decoded.file, decoded.pixels)):
                if digest:
                    digests[decoded.index, part] = np.frombuffer(bytes.fromhex(digest), np.uint8)
            progress.advance(1)

        decode_all(folder, files, geometry, workers, done)
    with naming(folder / DIGESTS):
        np.save(folder / DIGESTS, digests)
    return {"geometry": asdict(geometry), "problems": {str(row): why for row, why in sorted(problems.items())}}


def _open(files: Sequence[Picture], folder: Path, artifact: Artifact) -> ImageStore:
    """The store in a folder, of these files. Raises DamagedArtifact, OSError."""
    geometry = Geometry(**artifact.content["geometry"])
    problems = {int(row): why for row, why in artifact.content["problems"].items()}
    data = read_sealed(folder, artifact, DIGESTS, limit=artifact.files[DIGESTS].bytes)
    digests: np.ndarray = np.load(io.BytesIO(data))
    of_rows = digests[:, 1].tobytes()
    pixels = open_mapped(folder / PIXELS, lambda file: FixedRows(file, of_rows, geometry.shape))

    def decode_again(row: int) -> np.ndarray:
        picture = files[row]
        logger.warning(f"the cached pixels of {picture.name} are damaged; decoding it again")
        decoded, data = decode_one(picture, geometry)
        if decoded.pixels != digests[row, 1].tobytes().hex():
            why = decoded.why or "its bytes are others than when the training began"
            raise DataError(f"{picture.name} has changed", why, "run the command again")
        with open(folder / PIXELS, "r+b") as file:
            write_row(file.fileno(), row, data)
        return pixels.file  # a map of the file that was written

    pixels.repair = decode_again
    return ImageStore(files, geometry, pixels, digests, problems)


def _channels(files: Sequence[Picture]) -> int:
    """1 if all pictures are grey, otherwise 3."""
    for picture in files:
        with suppress(BadPicture, OSError), picture.open() as file, open_picture(file) as opened:
            if not is_grey(opened):
                return 3
    return 1
