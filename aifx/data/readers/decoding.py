"""Decoding many pictures into one file, in worker processes. As a program, it is such a worker.

python -m aifx.data.readers.decoding FOLDER START STRIDE
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from io import BufferedReader, BytesIO
from pathlib import Path

from aifx.core.digests import sha256_of, sha256_of_file
from aifx.core.errors import DataError, EnvironmentFault
from aifx.core.files import replace_file
from aifx.core.processes import Child, connect, pump
from aifx.data.readers.images import IMAGE
from aifx.data.readers.parquet import read_cell
from aifx.data.readers.pictures import BadPicture, Geometry, check_file, decode

PIXELS = "pixels"
REQUEST = "request.json"

FEW = 256
"""Pictures that this process decodes before a worker would have started."""

SILENCE_S = 120.0
"""A worker that needs longer for one picture hangs in it."""


@dataclass(frozen=True)
class Decoded:
    """A picture that was decoded, or `why` it could not be. Digests are SHA-256, in hexadecimal."""

    index: int
    file: str = ""  # of the file's bytes, if they could be read
    pixels: str = ""  # of the row that was written
    why: str = ""


@dataclass(frozen=True)
class Picture:
    """A file, and what messages call it.

    Attributes:
        row: of the column `image` of the Parquet file `path`; None if the file is the picture.
    """

    path: Path
    name: str
    row: int | None = field(default=None, kw_only=True)

    def open(self) -> BufferedReader | BytesIO:
        """Its encoded bytes. Raises OSError, BadPicture."""
        if self.row is None:
            check_file(self.path)
            return open(self.path, "rb")
        try:
            data = read_cell(self.path, IMAGE, self.row)
        except DataError as error:
            raise BadPicture(f"{error.what}: {error.why}") from None
        if not isinstance(data, bytes) or not data:
            raise BadPicture("its row holds no bytes")
        return BytesIO(data)


def decode_all(
    folder: Path, pictures: Sequence[Picture], geometry: Geometry, workers: int, done: Callable[[Decoded], None]
) -> None:
    """Write picture i of `pictures` as row i of `folder`/PIXELS, in whatever order, and call `done` for each.

    Args:
        workers: processes that share the work; with 0, or few pictures, this process does it.

    Raises OSError if a row cannot be written, EnvironmentFault if no worker starts.
    """
    with open(folder / PIXELS, "wb") as file:
        file.truncate(len(pictures) * math.prod(geometry.shape))
    if not workers or len(pictures) <= FEW:
        with _rows(folder, geometry) as decode_row:
            for index, picture in enumerate(pictures):
                done(decode_row(index, picture))
        return
    request = {"pictures": [(str(one.path), one.row) for one in pictures], "geometry": asdict(geometry)}
    replace_file(folder / REQUEST, json.dumps(request).encode())
    with ExitStack() as stack:
        shares = [_Share(folder, start, workers, stack) for start in range(workers)]
        while running := [share for share in shares if share.advance(len(pictures), done)]:
            pump([share.child for share in running])


class _Share:
    """A worker, and where in its share of the pictures it is. It starts again after a picture that ends it."""

    def __init__(self, folder: Path, start: int, stride: int, stack: ExitStack) -> None:
        self._folder, self._stride, self._stack = folder, stride, stack
        self._next = start
        self.child = self._start()

    def _start(self) -> Child:
        self._started = False
        arguments = (str(self._folder), str(self._next), str(self._stride))
        return self._stack.enter_context(
            Child.of_module("aifx.data.readers.decoding", *arguments, silence_s=SILENCE_S, name=str(self._next))
        )

    def advance(self, count: int, done: Callable[[Decoded], None]) -> bool:
        """Take what the worker has done. Returns whether it goes on."""
        ended = self.child.ended  # before the events, so that none is missed
        for event in self.child.take_events():
            self._started = True
            if "errno" in event:
                raise OSError(event["errno"], os.strerror(event["errno"]), str(self._folder / PIXELS))
            if "index" in event:
                done(Decoded(**event))
                self._next = event["index"] + self._stride
        if ended is None:
            return True
        if self._next >= count:
            return False
        if not self._started:
            raise EnvironmentFault("a process that decodes pictures does not start", ended.why, "aifx train --debug")
        why = f"it took longer than {SILENCE_S:.0f} s" if ended.cut else f"the decoder crashed ({ended.how})"
        done(Decoded(self._next, why=why))
        self._next += self._stride
        if self._next >= count:
            return False
        self.child = self._start()
        return True


def decode_one(picture: Picture, geometry: Geometry, index: int = 0) -> tuple[Decoded, bytes]:
    """A picture with its pixels, empty if it cannot be used."""
    digest = ""
    try:
        with picture.open() as file:
            digest = sha256_of_file(file)
            file.seek(0)
            pixels = decode(file, geometry).tobytes()
    except (BadPicture, OSError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return Decoded(index, digest, why=why), b""
    return Decoded(index, digest, sha256_of(pixels)), pixels


def write_row(file: int, index: int, pixels: bytes) -> None:
    """Write a row of the file of pixels. Raises OSError."""
    done = 0
    while done < len(pixels):  # not through a memory map, where a full disk is a signal
        done += os.pwrite(file, pixels[done:], index * len(pixels) + done)


@contextmanager
def _rows(folder: Path, geometry: Geometry) -> Iterator[Callable[[int, Picture], Decoded]]:
    """A function that decodes a picture into the row of its index."""
    with open(folder / PIXELS, "r+b") as file:

        def decode_row(index: int, picture: Picture) -> Decoded:
            decoded, pixels = decode_one(picture, geometry, index)
            write_row(file.fileno(), index, pixels)
            return decoded

        yield decode_row
        os.fsync(file.fileno())


def main() -> None:
    emit = connect()
    folder, start, stride = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    request = json.loads((folder / REQUEST).read_bytes())
    pictures = [Picture(Path(path), path, row=row) for path, row in request["pictures"]]
    emit({"started": True})
    try:
        with _rows(folder, Geometry(**request["geometry"])) as decode_row:
            for index in range(start, len(pictures), stride):
                emit(asdict(decode_row(index, pictures[index])))
    except OSError as error:
        emit({"errno": error.errno or errno.EIO})


if __name__ == "__main__":
    main()
