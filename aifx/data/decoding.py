"""Decoding many pictures into one file, in worker processes. As a program, it is such a worker.

python -m aifx.data.decoding FOLDER START STRIDE
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from aifx.core.errors import EnvironmentFault
from aifx.core.files import replace_file
from aifx.core.processes import Child, connect, pump
from aifx.data.pictures import BadPicture, Geometry, check_file, decode

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
    file: str = ""  # of the file's bytes
    pixels: str = ""  # of the row that was written
    why: str = ""


def decode_all(
    folder: Path, paths: Sequence[Path], geometry: Geometry, workers: int, done: Callable[[Decoded], None]
) -> None:
    """Write picture i of `paths` as row i of `folder`/PIXELS, in whatever order, and call `done` for each.

    Args:
        workers: processes that share the work; with 0, or few pictures, this process does it.

    Raises OSError if a row cannot be written, EnvironmentFault if no worker starts.
    """
    with open(folder / PIXELS, "wb") as file:
        file.truncate(len(paths) * math.prod(geometry.shape))
    if not workers or len(paths) <= FEW:
        with _rows(folder, geometry) as decode_row:
            for index, path in enumerate(paths):
                done(decode_row(index, path))
        return
    request = {"paths": [str(path) for path in paths], "geometry": asdict(geometry)}
    replace_file(folder / REQUEST, json.dumps(request).encode())
    with ExitStack() as stack:
        shares = [_Share(folder, start, workers, stack) for start in range(workers)]
        while running := [share for share in shares if share.advance(len(paths), done)]:
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
            Child.of_module("aifx.data.decoding", *arguments, silence_s=SILENCE_S, name=str(self._next))
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


def decode_one(path: Path, geometry: Geometry, index: int = 0) -> tuple[Decoded, bytes]:
    """A picture with its pixels, empty if it cannot be used."""
    try:
        check_file(path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            pixels = decode(file, geometry).tobytes()
    except (BadPicture, OSError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return Decoded(index, why=why), b""
    return Decoded(index, digest, hashlib.sha256(pixels).hexdigest()), pixels


def write_row(file: int, index: int, pixels: bytes) -> None:
    """Write a row of the file of pixels. Raises OSError."""
    done = 0
    while done < len(pixels):  # not through a memory map, where a full disk is a signal
        done += os.pwrite(file, pixels[done:], index * len(pixels) + done)


@contextmanager
def _rows(folder: Path, geometry: Geometry) -> Iterator[Callable[[int, Path], Decoded]]:
    """A function that decodes a picture into the row of its index."""
    with open(folder / PIXELS, "r+b") as file:

        def decode_row(index: int, path: Path) -> Decoded:
            decoded, pixels = decode_one(path, geometry, index)
            write_row(file.fileno(), index, pixels)
            return decoded

        yield decode_row
        os.fsync(file.fileno())


def main() -> None:
    emit = connect()
    folder, start, stride = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    request = json.loads((folder / REQUEST).read_bytes())
    paths = [Path(path) for path in request["paths"]]
    emit({"started": True})
    try:
        with _rows(folder, Geometry(**request["geometry"])) as decode_row:
            for index in range(start, len(paths), stride):
                emit(asdict(decode_row(index, paths[index])))
    except OSError as error:
        emit({"errno": error.errno or errno.EIO})


if __name__ == "__main__":
    main()
