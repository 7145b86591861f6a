"""Random changes of training images: a function of (seed, step, row)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from aifx.config.sections import AugmentSection
from aifx.core.errors import ConfigError
from aifx.data.base import Batch, BatchSource
from aifx.data.order import derived_seed
from aifx.data.spec import DataSpec

STRETCH = 4 / 3
"""The most by which a crop's proportions differ from those of the image."""


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


@dataclass(frozen=True)
class AugmentedSource:
    """Batches whose "inputs" uint8 `[rows, height, width, channels]` are changed, each row by a key of its own."""

    source: BatchSource
    section: AugmentSection
    seed: int

    @property
    def batch_size(self) -> int:
        return self.source.batch_size

    @property
    def num_batches(self) -> int | None:
        return self.source.num_batches

    def read(self, step: int, rows: slice) -> Batch:
        batch = self._changed(step, rows)
        if self.section.mixup:
            places = range(step * self.batch_size, (step + 1) * self.batch_size)[rows]
            return mixed(batch, self._changed(step + 1, rows), self.section.mixup, self.seed, places)
        return batch

    def _changed(self, step: int, rows: slice) -> Batch:
        batch = self.source.read(step, rows)
        places = range(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        images = [
            change(image, self.section, generator("augment", self.seed, place))
            for image, place in zip(batch["inputs"], places, strict=True)
        ]
        return {**batch, "inputs": np.stack(images) if images else batch["inputs"]}


def generator(name: str, seed: int, place: int) -> np.random.Generator:
    """Random numbers of one place in the order of training, whatever was drawn for others."""
    return np.random.Generator(np.random.Philox(key=derived_seed(name, seed), counter=[0, place, 0, 0]))


def change(image: np.ndarray, section: AugmentSection, draw: np.random.Generator) -> np.ndarray:
    """An image uint8 `[height, width, channels]`, changed at random. What lies outside of it is mirrored."""
    chance = draw.random(9)
    if section.flip in ("horizontal", "both") and chance[0] < 0.5:
        image = image[:, ::-1]
    if section.flip in ("vertical", "both") and chance[1] < 0.5:
        image = image[::-1]
    moved = np.floor(chance[2:4] * (2 * section.shift + 1)) - section.shift
    if section.rotate or section.crop < 1:
        linear, centre = _view(image, section, chance[4:])
        image = _taken(image, linear, centre + moved)
    elif section.shift:
        (right, down), (height, width, _) = moved, image.shape
        image = image[_mirrored(down + np.arange(height), height)[:, None], _mirrored(right + np.arange(width), width)]
    if section.brightness or section.contrast:
        contrast, brightness = 2 * draw.random(2) - 1
        mean = image.mean()
        levels = (np.arange(256) - mean) * (1 + contrast * section.contrast) + mean
        levels += brightness * section.brightness * 255
        image = levels.round().clip(0, 255).astype(np.uint8).take(image)
    return image


def _mirrored(places: np.ndarray, length: int) -> np.ndarray:
    """Indices below `length` of places of which those outside are mirrored at the edges."""
    within = places.astype(np.int64) % (2 * length)
    return np.where(within < length, within, 2 * length - 1 - within)


def _view(image: np.ndarray, section: AugmentSection, chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A random part of the image and its turn: the matrix `[2, 2]` from (x, y) to the image's, and the centre of it."""
    sides = np.array([image.shape[1], image.shape[0]])
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
    offset = centre + before - linear @ half
    matrix = (*linear[0], offset[0], *linear[1], offset[1])
    planes = [image] if channels == 3 else np.moveaxis(image, -1, 0)  # with opacity, Pillow would not mix each alone
    taken = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(plane)).transform(
                (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
            )
        )
        for plane in planes
    ]
    return taken[0] if channels == 3 else np.stack(taken, axis=-1)


def mixed(batch: Batch, other: Batch, alpha: float, seed: int, places: range) -> Batch:
    """The batch with a share of another mixed into each row.

    Numbers are mixed as images are. A class is one of the two, drawn by their shares: on average this is the loss of
    mixup (Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018), which adds up both labels' losses.
    """
    draws = [generator("mixup", seed, place) for place in places]
    share = np.array([draw.beta(alpha, alpha) for draw in draws], np.float32)
    ours = np.array([draw.random() for draw in draws]) < share

    def blend(name: str) -> np.ndarray:
        part = share.reshape(-1, *[1] * (batch[name].ndim - 1))
        blended: np.ndarray = part * batch[name] + (1 - part) * other[name]
        return blended

    images = blend("inputs").round().astype(np.uint8)
    if batch["targets"].dtype.kind == "f":
        return {**batch, "inputs": images, "targets": blend("targets")}
    chosen = {name: np.where(ours, batch[name], other[name]) for name in ("targets", "weights")}
    return {**batch, **chosen, "inputs": images}
