"""The image store: pictures that were decoded once, in one memory-mapped array.

A store is a folder of the cache, named by a digest of the names, sizes and times of its pictures and of what they were
made to be. It holds

    pixels        uint8 [pictures, height, width, channels]
    digests.npy   uint8 [pictures, 2, 32]: SHA-256 of each picture's file, and of its row of pixels
    meta.json     the geometry, and for each picture that cannot be used the reason

The last two end with a SHA-256 of their own, which is verified when the store is opened. A row of pixels is verified
when it is first read. A damaged row is decoded again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL

from aifx.core.artifact import unfinished
from aifx.core.digests import sha256_of, sha256_of_values
from aifx.core.errors import DataError, EnvironmentFault
from aifx.core.progress import report_progress
from aifx.core.project import cache_path
from aifx.data.blocks import read_array, read_cached, read_checked, write_array, write_checked
from aifx.data.decoding import PIXELS, Decoded, Picture, decode_all, decode_one, write_row
from aifx.data.pictures import BadPicture, Fit, Geometry, is_grey, open_picture
from aifx.machine.cpu import usable_cpus

logger = logging.getLogger(__name__)

FORMAT = 1


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
    path = cache_path("images") / sha256_of_values(FORMAT, PIL.__version__, size, channels, fit, state)
    if (store := read_cached(partial(_open, files=files), path / "meta.json", "image store")) is not None:
        return store
    with unfinished(path) as folder:
        geometry = Geometry(*size, channels or _channels(files), fit)
        _build(folder, files, geometry, len(usable_cpus()) if workers is None else workers, what)
        for _ in range(2):
            with suppress(OSError):  # something is there: another process was first, or it is damaged
                os.rename(folder, path)
            if (store := read_cached(partial(_open, files=files), path / "meta.json", "image store")) is not None:
                return store
            shutil.rmtree(path, ignore_errors=True)
        raise EnvironmentFault(f"{path} cannot be put in place", "something else writes there", f"rm -r {path}")


def _build(folder: Path, files: Sequence[Picture], geometry: Geometry, workers: int, what: str) -> None:
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
    write_array(folder / "digests.npy", digests)
    meta = {"geometry": asdict(geometry), "problems": dict(sorted(problems.items()))}
    write_checked(folder / "meta.json", json.dumps(meta).encode())


def _open(meta_path: Path, files: Sequence[Picture]) -> ImageStore:
    """Raises OSError, and ValueError if the store is damaged."""
    meta = json.loads(bytes(read_checked(meta_path)))
    geometry, path = Geometry(**meta["geometry"]), meta_path.parent
    shape = (len(files), *geometry.shape)
    pixels: np.ndarray = np.memmap(path / PIXELS, np.uint8, "r", shape=shape) if files else np.zeros(shape, np.uint8)
    problems = {int(index): why for index, why in meta["problems"].items()}
    return ImageStore(files, path, geometry, pixels, read_array(path / "digests.npy"), problems)


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
