"""The image store: pictures that were decoded once, in one memory-mapped array.

A store is an artefact (`aifx.core.artifact`) in the cache, in a folder that is named by a digest of the names, sizes
and times of its pictures and of what they were made to be. Its manifest has the geometry, and for each picture that
cannot be used the reason. It holds

    pixels        uint8 [pictures, height, width, channels]
    digests.npy   uint8 [pictures, 2, 32]: SHA-256 of each picture's file, and of its row of pixels

The digests are the only file in the manifest. Those of the rows stand for the pixels, in place of a SHA-256 of the
whole file and of its blocks: a picture is what is read at once, and what is decoded again, into the same bytes. A row
is verified when it is first read, and one that is damaged is decoded again. If anything else is damaged, all pictures
are.
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
import PIL

from aifx.core.artifact import Artifact, DamagedArtifact, Files, cached, read_sealed, seal_files
from aifx.core.digests import sha256_of, sha256_of_values
from aifx.core.errors import DataError
from aifx.core.files import UnsafeFile, open_file
from aifx.core.os_errors import naming
from aifx.core.progress import report_progress
from aifx.core.project import cache_path
from aifx.data.readers.decoding import PIXELS, Decoded, Picture, decode_all, decode_one, write_row
from aifx.data.readers.pictures import BadPicture, Fit, Geometry, is_grey, open_picture
from aifx.machine.cpu import usable_cpus

logger = logging.getLogger(__name__)

KIND, VERSION = "image store", 2
"""The artefact's kind, and the version of its content: a part of the digest in the folder's name."""

DIGESTS = "digests.npy"


@dataclass(frozen=True)
class ImageStore:
    """An opened store of the pictures `files`."""

    files: Sequence[Picture]
    path: Path
    geometry: Geometry
    pixels: np.ndarray  # uint8 [pictures, height, width, channels], memory-mapped
    digests: np.ndarray  # uint8 [pictures, 2, 32]
    problems: dict[int, str]  # why a picture cannot be used

    def file_digest(self, index: int) -> bytes:
        return bytes(self.digests[index, 0])


class StoredImages:
    """Some pictures of a store, `[images, height, width, channels]`, indexed by arrays of whole numbers."""

    dtype = np.dtype(np.uint8)

    def __init__(self, store: ImageStore, rows: np.ndarray) -> None:
        self._store, self._rows = store, rows
        self._checked = np.zeros(len(rows), bool)
        self.shape = (len(rows), *store.geometry.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: np.ndarray) -> np.ndarray:
        for index in np.unique(which[~self._checked[which]]).tolist():
            self._check(int(self._rows[index]))
            self._checked[index] = True
        images: np.ndarray = self._store.pixels[self._rows[which]]
        return images

    def _check(self, row: int) -> None:
        """Compare a row with its digest; if it is damaged, decode it again. Raises DataError if its file changed.

        Threads that find the same damage write the same bytes.
        """
        store = self._store
        expected = bytes(store.digests[row, 1]).hex()
        if sha256_of(store.pixels[row]) == expected:
            return
        picture = store.files[row]
        logger.warning(f"the cached pixels of {picture.name} are damaged; decoding it again")
        decoded, pixels = decode_one(picture, store.geometry)
        if decoded.pixels != expected:
            why = decoded.why or "its bytes are others than when the training began"
            raise DataError(f"{picture.name} has changed", why, "run the command again")
        with open(store.path / PIXELS, "r+b") as file:
            write_row(file.fileno(), row, pixels)


def open_images(
    files: Sequence[Picture], size: tuple[int, int], channels: int | None, fit: Fit, *, workers: int | None, what: str
) -> ImageStore:
    """The store of these pictures, which is made if it is not there. Pictures that cannot be used are its `problems`.

    Args:
        size: height and width.
        channels: None takes 1 if all pictures are grey, otherwise 3.
        workers: processes that decode; None takes one for each core.
        what: what progress calls the pictures.

    Raises OSError, EnvironmentFault if the cache cannot be written.
    """
    state = [_state(picture) for picture in files]
    path = cache_path("images") / sha256_of_values(VERSION, PIL.__version__, size, channels, fit, state)

    def build(folder: Path) -> tuple[Mapping[str, Any], Files]:
        geometry = Geometry(*size, channels or _channels(files), fit)
        return _build(files, geometry, len(usable_cpus()) if workers is None else workers, what, folder)

    return cached(path, KIND, VERSION, build, partial(_open, files), logger.warning)


def _build(
    files: Sequence[Picture], geometry: Geometry, workers: int, what: str, folder: Path
) -> tuple[Mapping[str, Any], Files]:
    digests = np.zeros((len(files), 2, 32), np.uint8)
    problems: dict[int, str] = {}
    activity = f"decoding {what}"
    logger.info(activity)
    with report_progress(activity, len(files), "pictures") as progress:

        def done(decoded: Decoded) -> None:
            if decoded.why:
                problems[decoded.index] = decoded.why
            else:
                for part, digest in enumerate((decoded.file, decoded.pixels)):
                    digests[decoded.index, part] = np.frombuffer(bytes.fromhex(digest), np.uint8)
            progress.advance(1)

        decode_all(folder, files, geometry, workers, done)
    stream = io.BytesIO()
    np.save(stream, digests)
    with naming(folder / DIGESTS):
        (folder / DIGESTS).write_bytes(stream.getvalue())
    content = {"geometry": asdict(geometry), "problems": {str(row): why for row, why in sorted(problems.items())}}
    return content, seal_files(folder, [folder / DIGESTS])


def _open(files: Sequence[Picture], folder: Path, artifact: Artifact) -> ImageStore:
    """The store in a folder, of these files. Raises DamagedArtifact, OSError."""
    geometry = Geometry(**artifact.content["geometry"])
    problems = {int(row): why for row, why in artifact.content["problems"].items()}
    digests = np.load(io.BytesIO(read_sealed(folder, artifact, DIGESTS, limit=artifact.files[DIGESTS].bytes)))
    shape = (len(files), *geometry.shape)
    try:
        with open(open_file(folder / PIXELS, below=folder), "rb") as file:
            pixels: np.ndarray = np.memmap(file, np.uint8, "r", shape=shape) if files else np.zeros(shape, np.uint8)
    except (FileNotFoundError, UnsafeFile, ValueError) as e:
        raise DamagedArtifact(folder, f"{PIXELS}: {e}") from e
    return ImageStore(files, folder, geometry, pixels, digests, problems)


def _channels(files: Sequence[Picture]) -> int:
    """1 if all pictures are grey, otherwise 3."""
    for picture in files:
        with suppress(BadPicture, OSError), picture.open() as file, open_picture(file) as opened:
            if not is_grey(opened):
                return 3
    return 1


def _state(picture: Picture) -> tuple[str | int, ...]:
    """The name, size and time of a file, which change when its content does, and the row of a picture in it."""
    row = () if picture.row is None else (picture.row,)
    try:
        found = picture.path.stat()
    except OSError:
        return str(picture.path), -1, -1, *row
    return str(picture.path), found.st_size, found.st_mtime_ns, *row
