"""Pictures of every format as arrays, and what is said about those that cannot be used."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aifx.data.readers.pictures import BadPicture, Geometry, decode

GREY = np.add.outer(np.arange(40), 2 * np.arange(60)).astype(np.uint8)  # brighter to the right and to the bottom
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def saved(image: Image.Image, format: str, **options: Any) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    stream.seek(0)
    return stream


def as_is(channels: int, shape: tuple[int, int] = (40, 60)) -> Geometry:
    return Geometry(*shape, channels, "stretch")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_every_format_in_grey_and_colour(format: str) -> None:
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(format, {})
    tolerance = 4 if format == "JPEG" else 0
    for pixels, channels in ((GREY, 1), (COLOUR, 3)):
        found = decode(saved(Image.fromarray(pixels), format, **options), as_is(channels))
        assert found.shape == (40, 60, channels)
        assert found.dtype == np.uint8
        assert np.abs(found.astype(int) - pixels.reshape(found.shape)).max() <= tolerance
    luminance = decode(saved(Image.fromarray(COLOUR), "PNG"), as_is(1))
    assert np.array_equal(luminance[..., 0], np.asarray(Image.fromarray(COLOUR).convert("L")))
    assert np.array_equal(decode(saved(Image.fromarray(GREY), "PNG"), as_is(3)), GREY[..., None].repeat(3, -1))


def test_opacity() -> None:
    opacity = np.zeros((40, 60), np.uint8)
    opacity[:, 30:] = 255
    picture = Image.fromarray(np.dstack([COLOUR, opacity]))
    whole = decode(saved(picture, "PNG"), as_is(4))
    assert np.array_equal(whole, np.dstack([COLOUR, opacity]))
    before_white = decode(saved(picture, "PNG"), as_is(3))
    assert np.array_equal(before_white[:, 30:], COLOUR[:, 30:])
    assert (before_white[:, :30] == 255).all()


def test_modes_that_are_no_plain_bytes() -> None:
    deep = GREY.astype(np.uint16) << 8 | 0x7F
    for format in ("PNG", "TIFF"):
        assert np.array_equal(decode(saved(Image.fromarray(deep), format), as_is(1))[..., 0], GREY)
    bits = decode(saved(Image.fromarray(GREY > 60), "PNG"), as_is(1))
    assert np.array_equal(bits[..., 0], np.where(GREY > 60, 255, 0))
    palette = Image.fromarray(COLOUR).quantize(8)
    assert np.array_equal(decode(saved(palette, "PNG"), as_is(3)), np.asarray(palette.convert("RGB")))
    inks = decode(saved(Image.fromarray(COLOUR).convert("CMYK"), "TIFF"), as_is(3))
    assert np.abs(inks.astype(int) - COLOUR).max() <= 2
    with pytest.raises(BadPicture, match="floating-point"):
        decode(saved(Image.fromarray(GREY.astype(np.float32)), "TIFF"), as_is(1))
    with pytest.raises(BadPicture, match="32 bits"):
        decode(saved(Image.fromarray(GREY.astype(np.int32) * 10_000), "TIFF"), as_is(1))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(format: str, orientation: int) -> None:
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that a camera's turn needs undone
    stored = Image.fromarray(GREY)
    if orientation > 1:  # what the camera stored of the upright picture
        stored = stored.transpose(Image.Transpose(turned[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if format == "JPEG" else {"lossless": True} if format == "WEBP" else {}
    found = decode(saved(stored, format, exif=exif, **options), as_is(1))
    assert np.abs(found[..., 0].astype(int) - GREY).max() <= 4
    small = decode(saved(stored.resize((stored.width * 9, stored.height * 9)), format, exif=exif, **options), as_is(1))
    assert np.abs(small[..., 0].astype(int) - GREY)[2:-2, 2:-2].max() <= 8  # a JPEG is decoded at half its size


def test_stretch_and_crop() -> None:
    stripes = np.zeros((40, 120), np.uint8)
    stripes[:, 40:80] = 255  # the middle third
    picture = saved(Image.fromarray(stripes), "PNG")
    cropped = decode(picture, Geometry(20, 20, 1, "crop"))
    assert (cropped[:, 1:-1] == 255).all()
    stretched = decode(picture, Geometry(20, 30, 1, "stretch"))[..., 0]
    assert (stretched[:, 11:19] == 255).all()
    assert (stretched[:, :9] == 0).all()
    tall = decode(saved(Image.fromarray(stripes.T), "PNG"), Geometry(20, 20, 1, "crop"))
    assert (tall[1:-1] == 255).all()


def huge_png() -> bytes:
    """A PNG file of 20,000 x 20,000 black pixels in 49 kB: a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(2501) * 100) for _ in range(200)) + packer.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"", "no PNG, JPEG", id="empty"),
        pytest.param(b"<svg/>", "no PNG, JPEG", id="svg"),
        pytest.param(saved(Image.fromarray(GREY), "GIF").read(), "no PNG, JPEG", id="gif"),
        pytest.param(saved(Image.fromarray(COLOUR), "JPEG").read()[:400], "(?i)truncated|damaged", id="jpeg"),
        pytest.param(saved(Image.fromarray(COLOUR), "PNG").read()[:100], "truncated|damaged", id="png"),
        pytest.param(saved(Image.fromarray(COLOUR), "TIFF").read()[:300], "truncated|damaged|no PNG", id="tiff"),
        pytest.param(saved(Image.fromarray(COLOUR), "BMP").read()[:300], "truncated|damaged", id="bmp"),
        pytest.param(saved(Image.new("L", (1, 1)), "PNG").read(), "1 x 1 pixels", id="one pixel"),
        pytest.param(huge_png(), "400000000 pixels", id="bomb"),
    ],
)
def test_pictures_that_cannot_be_used(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(BadPicture, match=why):
        decode(path, as_is(3))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP", "WEBP"])
def test_damage_is_an_error_or_a_picture(format: str) -> None:
    whole = bytearray(saved(Image.fromarray(COLOUR), format).read())
    draw = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in draw.integers(0, len(whole), 8).tolist():
            damaged[place] = draw.integers(256)
        with suppress(BadPicture):  # and nothing else
            assert decode(io.BytesIO(damaged), as_is(3)).shape == (40, 60, 3)


def test_a_damaged_orientation_is_ignored() -> None:
    picture = saved(Image.fromarray(GREY), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40, quality=100)
    assert decode(picture, as_is(1)).shape == (40, 60, 1)
