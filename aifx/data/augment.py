"""Random changes of training images: a function of (seed, step, row)."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from PIL import Image

from aifx.config.sections import AugmentSection
from aifx.core.digests import hash32
from aifx.core.errors import ConfigError
from aifx.data.base import Batch, BatchSource
from aifx.data.spec import DataSpec
from aifx.machine.cpu import usable_cpus

FLIPS = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM
STRETCH = 4 / 3  # the most by which a crop's proportions differ from those of the image
ERASED_STRETCH = 3  # the most by which those of the erased rectangle do


def augmented(source: BatchSource, section: AugmentSection, data: DataSpec, seed: int) -> BatchSource:
    """The source with its images changed as `[augment]` says. Raises ConfigError for data that has no images."""
    if not section.is_active:
        return source
    inputs = data.fields.get("inputs")
    if inputs is None or inputs.dtype != "uint8" or len(inputs.shape) != 3:
        found = f"{inputs.dtype} {list(inputs.shape)}" if inputs else "no inputs"
        why = f"it changes inputs uint8 [height, width, channels], and the data has {found}"
        raise ConfigError("[augment] needs images", why, "remove [augment]")
    return AugmentedSource(source, section, seed)


class AugmentedSource:
    """Batches whose "inputs" uint8 `[rows, height, width, channels]` are changed, each row by a key of its own.

    Args:
        threads: how many share the rows of a batch; by default one for each processor. NumPy and Pillow work in
            parallel, since they let other threads run meanwhile.
    """

    def __init__(self, source: BatchSource, section: AugmentSection, seed: int, threads: int | None = None) -> None:
        self._source, self._section, self._seed = source, section, seed
        self._threads = threads or len(usable_cpus())
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="aifx-augment")
        self._ahead: dict[range, Batch] = {}  # changed rows of the step that follows the last one read, for mixup

    @property
    def batch_size(self) -> int:
        return self._source.batch_size

    @property
    def num_batches(self) -> int | None:
        return self._source.num_batches

    def read(self, number: int, rows: slice) -> Batch:
        places = range(self.batch_size)[rows]
        bounds = [len(places) * part // self._threads for part in range(self._threads + 1)]
        parts = [places[start:stop] for start, stop in pairwise(bounds) if start < stop] or [places]
        before, self._ahead = self._ahead, {}
        batches = list(self._pool.map(lambda part: self._read(number, part, before), parts))
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    def _read(self, step: int, rows: range, before: dict[range, Batch]) -> Batch:
        places = self._places(step, rows)
        batch = before.get(places) or self._changed(step, rows)
        if not self._section.mixup:
            return batch
        other = self._ahead[self._places(step + 1, rows)] = self._changed(step + 1, rows)
        return mixed(batch, other, self._section.mixup, self._seed, places)

    def _changed(self, step: int, rows: range) -> Batch:
        batch = self._source.read(step, slice(rows.start, rows.stop))
        images = np.empty_like(batch["inputs"])
        for row, place in enumerate(self._places(step, rows)):
            images[row] = change(batch["inputs"][row], self._section, generator("augment", self._seed, place))
        return {**batch, "inputs": images}

    def _places(self, step: int, rows: range) -> range:
        """The places of these rows of a batch in the order of training."""
        first = step * self.batch_size
        return range(first + rows.start, first + rows.stop)


def generator(name: str, seed: int, place: int) -> np.random.Generator:
    """Random numbers of one place in the order of training, whatever was drawn for others."""
    return np.random.Generator(np.random.Philox(key=hash32(name, seed), counter=[0, place, 0, 0]))


def change(image: np.ndarray, section: AugmentSection, draw: np.random.Generator) -> np.ndarray:
    """An image uint8 `[height, width, channels]`, changed at random. What lies outside of it is mirrored."""
    chance = draw.random(9)
    sides = np.array([image.shape[1], image.shape[0]])
    is_flipped = np.array([section.flip in (way, "both") for way in ("horizontal", "vertical")]) & (chance[:2] < 0.5)
    moved = np.floor(chance[2:4] * (2 * section.shift + 1)) - section.shift
    if section.rotate or section.crop < 1:
        linear, centre = _view(sides, section, chance[4:])
        centre += moved
        linear[is_flipped] *= -1
        image = _taken(image, linear, np.where(is_flipped, sides - centre, centre))
    elif section.shift or is_flipped.any():
        across, down = [_mirrored(*each) for each in zip(sides, moved, is_flipped, strict=True)]
        image = image.take(down, axis=0).take(across, axis=1)
    if section.brightness or section.contrast:
        image = _lit(image, section, draw)
    if section.erase:
        image = _erased(image, section.erase, draw)
    return image


def _lit(image: np.ndarray, section: AugmentSection, draw: np.random.Generator) -> np.ndarray:
    """The image with another brightness and contrast of its colours. A fourth channel is opacity."""
    contrast, brightness = 2 * draw.random(2) - 1
    colours, opacity = image[..., :3], image[..., 3:]
    mean = colours.mean()
    levels = (np.arange(256) - mean) * (1 + contrast * section.contrast) + mean
    levels += brightness * section.brightness * 255
    changed = levels.round().clip(0, 255).astype(np.uint8).take(colours)
    return np.concatenate([changed, opacity], axis=-1) if opacity.size else changed


def _erased(image: np.ndarray, largest: float, draw: np.random.Generator) -> np.ndarray:
    """The image with noise in a rectangle of up to a share `largest` of its area.

    Zhong et al., "Random Erasing Data Augmentation" (arXiv 1708.04896).
    """
    share, stretch, *corner = draw.random(4)
    area, ratio = share * largest, ERASED_STRETCH ** (2 * stretch - 1)
    sides = np.round(np.minimum(np.sqrt([area * ratio, area / ratio]), 1) * image.shape[:2]).astype(int)
    top, left = np.floor(corner * (np.array(image.shape[:2]) - sides + 1)).astype(int)
    place = slice(top, top + sides[0]), slice(left, left + sides[1])
    image = image.copy()
    image[place] = draw.integers(0, 256, image[place].shape, np.uint8)
    return image


def _mirrored(length: int, moved: int, is_flipped: bool) -> np.ndarray:
    """The place that each of `length` places shows if it looks `moved` further. The edges mirror those outside."""
    places = (np.arange(length) + int(moved)) % (2 * length)
    within = np.minimum(places, 2 * length - 1 - places)
    return length - 1 - within if is_flipped else within


def _view(sides: np.ndarray, section: AugmentSection, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A random part of an image of these sides and its turn: the matrix `[2, 2]` to its (x, y), and the centre."""
    area = 1 - chance[0] * (1 - section.crop)
    stretch = max(min(STRETCH ** (2 * chance[1] - 1), 1 / area), area) if section.crop < 1 else 1.0
    scale = np.array([math.sqrt(area * stretch), math.sqrt(area / stretch)])  # of the width and of the height
    angle = math.radians(section.rotate) * (2 * chance[2] - 1)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn * scale, sides / 2 + (2 * chance[3:5] - 1) * (1 - scale) * sides / 2


def _taken(image: np.ndarray, linear: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The image whose pixel at (x, y) from its centre shows `image` at `centre` + `linear` @ (x, y), interpolated.

    What lies outside of `image` is mirrored.
    """
    height, width, channels = image.shape
    half = np.array([width, height]) / 2
    reach = np.abs(linear) @ half  # from the centre, along x and y
    before = np.ceil(np.maximum(reach - centre, 0)).astype(int)
    after = np.ceil(np.maximum(centre + reach - 2 * half, 0)).astype(int)
    if before.any() or after.any():
        image = np.pad(image, [(before[1], after[1]), (before[0], after[0]), (0, 0)], mode="symmetric")
    planes = [image] if channels == 3 else np.moveaxis(image, -1, 0)  # with opacity, Pillow would not mix each alone
    pictures = [Image.fromarray(np.ascontiguousarray(plane)) for plane in planes]
    taken = [np.asarray(_sampled(picture, (width, height), linear, centre + before)) for picture in pictures]
    return taken[0] if channels == 3 else np.stack(taken, axis=-1)


def _sampled(picture: Image.Image, size: tuple[int, int], linear: np.ndarray, centre: np.ndarray) -> Image.Image:
    """The picture as `_taken` returns it; nothing lies outside of it."""
    half = np.array(size) / 2
    if linear[0, 1]:
        corner = centre - linear @ half
        matrix = (*linear[0], corner[0], *linear[1], corner[1])
        return picture.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    reach = np.abs(linear.diagonal()) * half
    box = np.concatenate([centre - reach, centre + reach]).clip(0, picture.size * 2)  # of what is rounded
    picture = picture.resize(size, Image.Resampling.BILINEAR, tuple(box.tolist()))  # in half the time
    for is_flipped, way in zip(linear.diagonal() < 0, FLIPS, strict=True):
        picture = picture.transpose(way) if is_flipped else picture
    return picture


def mixed(batch: Batch, other: Batch, alpha: float, seed: int, places: range) -> Batch:
    """The batch with a share of another mixed into each row.

    Numbers are mixed as images are. A class is one of the two, drawn by their shares: on average this is the loss of
    mixup (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018), which adds up both labels' losses.
    """
    draws = [generator("mixup", seed, place) for place in places]
    parts = np.array([round(draw.beta(alpha, alpha) * 256) for draw in draws], np.uint16)
    ours = np.array([draw.random() for draw in draws]) < parts / 256
    images = np.empty_like(batch["inputs"])
    for row, part in enumerate(parts):  # in whole numbers, and rounded
        images[row] = batch["inputs"][row] * part + other["inputs"][row] * (256 - part) + np.uint16(128) >> 8
    if batch["targets"].dtype.kind == "f":
        share = (parts / np.float32(256)).reshape(-1, *[1] * (batch["targets"].ndim - 1))
        return {**batch, "inputs": images, "targets": share * batch["targets"] + (1 - share) * other["targets"]}
    chosen = {name: np.where(ours, batch[name], other[name]) for name in ("targets", "weights")}
    return {**batch, **chosen, "inputs": images}
