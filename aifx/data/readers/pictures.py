"""Pictures: PNG, JPEG, TIFF, BMP and WebP files as arrays of the size and channels that a model takes."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/tiff", "image/bmp", "image/webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name of the pixels by number of channels."""

# Pillow keeps the memory of so many pictures for those that follow, which costs less than fresh pages.
Image.core.set_blocks_max(16)  # type: ignore[attr-defined]  # documented in "Block allocator"

Fit: TypeAlias = Literal["stretch", "crop"]


@dataclass(frozen=True)
class Geometry:
    """What a picture is made to be. A `crop` keeps the proportions and cuts off what is too long, at both ends."""

    height: int
    width: int
    channels: int
    fit: Fit

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


DAMAGE = (SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error, zlib.error)
"""What Pillow raises for a file that is not as its format says."""


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
