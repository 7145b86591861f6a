"""The image store: pictures that were decoded once, as rows of one shape in the row cache (`aifx.data.row_cache`).

A store is an artefact (`aifx.core.artifact`) in the cache, in a folder that is named by a digest of the states of its
pictures' files and of what they were made to be. If states change, pictures whose bytes are the same are not decoded
again: their SHA-256 are compared, and the new store shares the file of pixels of the old one. Its manifest has the
geometry, and for each picture that cannot be used the reason. It holds

    pixels          uint8 [pictures, height, width, channels]
    digests.npy     uint8 [pictures, 2, 32]: SHA-256 of each picture's file, and of its row of pixels
    pictures.json   of each picture the path and the state of its file (`State`), and its row in a file of many

The digests of the rows stand for the pixels, which the manifest does not list, in place of a SHA-256 of the whole file
and of its blocks: a picture is what is read at once, and what is decoded again, into the same bytes. If anything else
is damaged, all pictures are decoded again.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL

from aifx.core.artifact import Artifact, Files, cached, read_artifact, read_sealed, seal_files
from aifx.core.digests import DIGEST_BYTES, sha256_of_file, sha256_of_values
from aifx.core.errors import AifxError, DataError
from aifx.core.file_states import SETTLED_NS, FileState
from aifx.core.os_errors import naming
from aifx.core.progress import report_progress
from aifx.core.project import cache_path
from aifx.data.readers.decoding import PIXELS, Decoded, Picture, decode_all, decode_one, write_row
from aifx.data.readers.pictures import BadPicture, Fit, Geometry, is_grey, open_picture
from aifx.data.row_cache import FixedRows, open_mapped
from aifx.machine.cpu import usable_cpus

logger = logging.getLogger(__name__)

KIND, VERSION = "image store", 4
"""The artefact's kind, and the version of its content: a part of the digest in the folder's name."""

DIGESTS, PICTURES = "digests.npy", "pictures.json"

State: TypeAlias = tuple[str, int | None, tuple[int, ...], int | None]
"""The path and the size in bytes of a file, and what else of it changes with its content: its inode, mtime and ctime
in ns, and the clock if it has just changed, so that a later change may have the same times. The last is the row of the
picture in the file, None if the file is the picture."""


@dataclass(frozen=True)
class ImageStore:
    """An opened store of the pictures `files`."""

    files: Sequence[Picture]
    geometry: Geometry
    pixels: FixedRows  # uint8 [pictures, height, width, channels]
    digests: np.ndarray  # uint8 [pictures, 2, 32]
    problems: dict[int, str]  # why a picture cannot be used

    def file_digest(self, index: int) -> bytes:
        return bytes(self.digests[index, 0])


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
    states = _states(files)
    made_to_be = (VERSION, PIL.__version__, size, channels, fit)
    path = cache_path("images") / sha256_of_values(*made_to_be, states)
    like = sha256_of_values(*made_to_be, [(num_bytes, row) for _, num_bytes, _, row in states])

    def build(folder: Path) -> tuple[Mapping[str, Any], Files]:
        _write(folder / PICTURES, json.dumps(states).encode())
        content = _share(files, like, path, folder)
        if content is None:
            geometry = Geometry(*size, channels or _channels(files), fit)
            decoded = _decode(files, geometry, len(usable_cpus()) if workers is None else workers, what, folder)
            content = {**decoded, "like": like}
        return content, seal_files(folder, [folder / DIGESTS, folder / PICTURES])

    return cached(path, KIND, VERSION, build, partial(_open, files), logger.warning)


def _share(files: Sequence[Picture], like: str, place: Path, folder: Path) -> Mapping[str, Any] | None:
    """Take the pixels and digests of a store other than that at `place`, if it has pictures of the same bytes, into the
    store in `folder`. Returns its content, None if there is none.

    Args:
        like: what stores have in common whose pictures may be the same: the sizes of the files, among others.
    """
    found: dict[int, bytes] = {}

    def is_same(row: int, digest: bytes) -> bool:
        if row not in found:
            found[row] = _file_digest(files[row])
        return found[row] == digest

    for other in sorted(place.parent.iterdir()):
        with suppress(OSError, AifxError):
            artifact = read_artifact(other, KIND, VERSION)
            if other == place or artifact.content["like"] != like:
                continue
            store = _open(files, other, artifact)
            if all(is_same(row, store.file_digest(row)) for row in range(len(files))):
                os.link(other / PIXELS, folder / PIXELS)
                _write(folder / DIGESTS, read_sealed(other, artifact, DIGESTS, limit=artifact.files[DIGESTS].bytes))
                return artifact.content
    return None


def _file_digest(picture: Picture) -> bytes:
    """SHA-256 of the encoded bytes of a picture; zeros if they cannot be read."""
    try:
        with picture.open() as file:
            return bytes.fromhex(sha256_of_file(file))
    except (BadPicture, OSError):
        return bytes(DIGEST_BYTES)


def _decode(files: Sequence[Picture], geometry: Geometry, workers: int, what: str, folder: Path) -> Mapping[str, Any]:
    digests = np.zeros((len(files), 2, 32), np.uint8)
    problems: dict[int, str] = {}
    activity = f"decoding {what}"
    logger.info(activity)
    with report_progress(activity, len(files), "pictures") as progress:

        def done(decoded: Decoded) -> None:
            if decoded.why:
                problems[decoded.index] = decoded.why
            for part, digest in enumerate((decoded.file, decoded.pixels)):
                if digest:
                    digests[decoded.index, part] = np.frombuffer(bytes.fromhex(digest), np.uint8)
            progress.advance(1)

        decode_all(folder, files, geometry, workers, done)
    stream = io.BytesIO()
    np.save(stream, digests)
    _write(folder / DIGESTS, stream.getvalue())
    return {"geometry": asdict(geometry), "problems": {str(row): why for row, why in sorted(problems.items())}}


def _write(path: Path, data: bytes) -> None:
    with naming(path):
        path.write_bytes(data)


def _read_digests(folder: Path, artifact: Artifact) -> np.ndarray:
    data = read_sealed(folder, artifact, DIGESTS, limit=artifact.files[DIGESTS].bytes)
    digests: np.ndarray = np.load(io.BytesIO(data))
    return digests


def _open(files: Sequence[Picture], folder: Path, artifact: Artifact) -> ImageStore:
    """The store in a folder, of these files. Raises DamagedArtifact, OSError."""
    geometry = Geometry(**artifact.content["geometry"])
    problems = {int(row): why for row, why in artifact.content["problems"].items()}
    digests = _read_digests(folder, artifact)
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


def _states(pictures: Sequence[Picture]) -> list[State]:
    found: dict[str, tuple[int | None, tuple[int, ...]]] = {}
    for path in {str(picture.path) for picture in pictures}:
        try:
            state = FileState.of(path)
        except OSError:
            found[path] = None, ()
            continue
        # Not `is_settled`: the times of an image such as squashfs stay, and its pictures would be read at each start.
        has_just_changed = state.ctime_ns + SETTLED_NS > state.seen_ns
        times = (state.inode, state.mtime_ns, state.ctime_ns, *[state.seen_ns][:has_just_changed])
        found[path] = state.bytes, times
    return [(path := str(picture.path), *found[path], picture.row) for picture in pictures]
