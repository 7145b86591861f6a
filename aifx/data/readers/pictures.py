"""Pictures: PNG, JPEG, TIFF, BMP and WebP files as arrays of the size and channels that a model takes.

Worker processes decode many of them into one file.
"""

from __future__ import annotations

import math
import os
import struct
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import IO, Literal, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from aifx.core.calls import CallProcess
from aifx.core.digests import sha256_of, sha256_of_file
from aifx.core.errors import DataError, EnvironmentFault
from aifx.core.os_errors import naming
from aifx.core.processes import pump
from aifx.data.readers.formats import IMAGE
from aifx.data.readers.parquet import read_column

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/tiff", "image/bmp", "image/webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name of the pixels by number of channels."""

# Pillow keeps the memory of so many pictures for those that follow, which costs less than fresh pages.
Image.core.set_blocks_max(16)  # type: ignore[attr-defined]  # documented in "Block allocator"

Fit: TypeAlias = Literal["stretch", "crop"]

PIXELS = "pixels"

FEW = 256
"""Pictures that this process decodes before a worker would have started."""

SILENCE_S = 120.0
"""A worker that needs longer for one picture hangs in it."""


@dataclass(frozen=True)
class Geometry:
    """The shape of decoded pictures. A `crop` keeps the proportions and cuts off what is too long, at both ends."""

    height: int
    width: int
    channels: int
    fit: Fit

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


DAMAGE = (SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error, zlib.error)
"""The exceptions of Pillow for a file that is not as its format says."""


class BadPicture(ValueError):
    """A picture cannot be used; the message says why."""


@contextmanager
def open_picture(source: Path | IO[bytes]) -> Iterator[Image.Image]:
    """A picture of which the header is read. Raises BadPicture, also for what is read of it in the block."""
    try:
        if isinstance(source, Path):
            check_file(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF data, and of half the pixels that Pillow refuses
            with Image.open(source, formats=FORMATS) as picture:
                if min(picture.size) < 2:
                    raise BadPicture(f"it has {picture.width} x {picture.height} pixels: there is nothing to see")
                yield picture
    except UnidentifiedImageError:
        raise BadPicture("it is no PNG, JPEG, TIFF, BMP or WebP picture") from None
    except Image.DecompressionBombError as error:
        raise BadPicture(str(error).partition(",")[0]) from None
    except MemoryError:
        raise BadPicture("decoding it takes more memory than there is") from None
    except OSError as error:
        raise BadPicture(error.strerror or str(error)) from None
    except BadPicture:
        raise
    except DAMAGE as error:
        raise BadPicture(f"it is damaged ({error})") from None


def check_file(path: Path) -> None:
    """Raise BadPicture for a pipe, a device or a folder, whose reading may never end."""
    if path.exists() and not path.is_file():
        raise BadPicture("it is not a regular file")


def decode(source: Path | IO[bytes], geometry: Geometry) -> np.ndarray:
    """The picture, upright as its EXIF orientation says, as uint8 `[height, width, channels]`. Raises BadPicture."""
    width, height = geometry.width, geometry.height
    with open_picture(source) as picture:
        if picture.format == "JPEG":  # decodes an eighth to a half of the pixels, if that leaves twice what is needed
            size = (2 * height, 2 * width) if _lies_on_its_side(picture) else (2 * width, 2 * height)
            picture.draft(MODES[geometry.channels], size)
        picture.load()
        with suppress(*DAMAGE):  # in its EXIF data: the pixels are there all the same
            ImageOps.exif_transpose(picture, in_place=True)
        pixels = _with_channels(picture, geometry.channels)
        box = _centre(pixels.size, width / height) if geometry.fit == "crop" else None
        if pixels.size != (width, height):
            pixels = pixels.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        return np.asarray(pixels).reshape(geometry.shape)


def is_grey(picture: Image.Image) -> bool:
    return picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I")


def _lies_on_its_side(picture: Image.Image) -> bool:
    with suppress(*DAMAGE):
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1)) >= 5
    return False


def _with_channels(picture: Image.Image, channels: int) -> Image.Image:
    """The picture in so many channels: of 16 bits the upper 8, and without opacity before white."""
    if picture.mode == "F":
        raise BadPicture("its pixels are floating-point numbers; aifx reads those of 8 and 16 bits")
    if picture.mode.startswith("I"):  # 16 bits, which some formats hold in 32
        values = np.asarray(picture)
        if values.min() < 0 or values.max() >= 2**16:
            raise BadPicture("its pixels have 32 bits; aifx reads those of 8 and 16")
        picture = Image.fromarray((values >> 8).astype(np.uint8))
    if channels != 4 and picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture if picture.mode == MODES[channels] else picture.convert(MODES[channels])


def _centre(size: tuple[int, int], aspect: float) -> tuple[float, float, float, float]:
    """The largest part of this aspect ratio (width / height) around the centre: left, upper, right, lower."""
    width, height = min(size[0], size[1] * aspect), min(size[1], size[0] / aspect)
    left, upper = (size[0] - width) / 2, (size[1] - height) / 2
    return left, upper, left + width, upper + height


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
            data = read_column(self.path, IMAGE)[self.row].as_py()
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
    decode = partial(_decode_share, folder, geometry)
    numbered = list(enumerate(pictures))
    if not workers or len(pictures) <= FEW:
        for decoded in filter(None, decode(numbered)):
            done(decoded)
        return
    with ExitStack() as stack:
        running = [_Share(decode, numbered[start::workers], stack) for start in range(workers)]
        while running := [share for share in running if share.advance(done)]:
            pump([share.process.child for share in running])


def _decode_share(
    folder: Path, geometry: Geometry, pictures: Sequence[tuple[int, Picture]]
) -> Iterator[Decoded | None]:
    """Decode pictures into the rows of their indices. The first value is None: the process has started."""
    with open(folder / PIXELS, "r+b") as file, naming(folder / PIXELS):
        yield None
        for index, picture in pictures:
            decoded, pixels = decode_one(picture, geometry, index)
            write_row(file.fileno(), index, pixels)
            yield decoded
        os.fsync(file.fileno())


class _Share:
    """A worker, and what is left of its share of the pictures. Another one goes on after a picture that ends it."""

    def __init__(
        self, decode: Callable[..., Iterator[Decoded | None]], pictures: list[tuple[int, Picture]], stack: ExitStack
    ) -> None:
        self._decode, self._left, self._stack = decode, deque(pictures), stack
        self._start()

    def _start(self) -> None:
        self.process = self._stack.enter_context(CallProcess(self._decode))
        self.process.child.silence_s = SILENCE_S
        self.process.start(list(self._left))
        self._has_started = False

    def advance(self, done: Callable[[Decoded], None]) -> bool:
        """Take what the worker has done. Returns whether it goes on."""
        try:
            for kind, value in self.process.answers():
                self._has_started = True
                if kind == "error":
                    raise value
                if kind == "end":
                    return False
                if value is not None:
                    self._left.popleft()
                    done(value)
        except EnvironmentFault:
            ended = self.process.child.ended
            if not self._has_started or ended is None:
                raise
            why = f"it took longer than {SILENCE_S:.0f} s" if ended.cut else f"the decoder crashed ({ended.how})"
            done(Decoded(self._left.popleft()[0], why=why))
            if not self._left:
                return False
            self._start()
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
