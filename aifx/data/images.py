"""Labelled images in a NumPy archive, as batches."""

from __future__ import annotations

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aifx.config.sections import VisionDataSection
from aifx.core.errors import DataError
from aifx.core.project import Project
from aifx.data.base import Batch, Split
from aifx.data.files import check_regular
from aifx.data.order import Shuffle, derived_seed

logger = logging.getLogger(__name__)

ENCRYPTED = 0x1  # of a zip entry's flags (PKWARE APPNOTE 4.4.4)
LARGE_BYTES = 1 << 26  # takes long enough to read to be worth a word
HINT = "the file holds train_images, train_labels, test_images and test_labels, written by numpy.savez"


@dataclass(frozen=True)
class ImageSource:
    """Batches {"images": uint8 [rows, height, width, channels], "labels": int32 [rows], "weights": float32 [rows]}.

    A weight is 0 on the rows that fill the last batch.
    """

    images: np.ndarray
    labels: np.ndarray
    shuffle: Shuffle | None
    batch_size: int
    flip: bool
    shift: int

    @property
    def num_batches(self) -> int | None:
        return None if self.shuffle else -(-len(self.labels) // self.batch_size)

    def read(self, step: int, rows: slice) -> Batch:
        """Rows `rows` of the global batch of `step`; what augmentation does to a row depends on the row alone."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)[rows]
        if self.shuffle:
            which = np.array([self.shuffle.at(place)[1] for place in places], np.int64)
        else:
            which = np.array(places, np.int64)
        real = which < len(self.labels)
        chosen = np.where(real, which, 0)
        images = self.images[chosen]
        if self.shuffle and (self.flip or self.shift):
            images = _augment(images, _noise(self.shuffle.seed, places), self.flip, self.shift)
        images[~real] = 0
        labels = np.where(real, self.labels[chosen], 0).astype(np.int32)
        return {"images": images, "labels": labels, "weights": real.astype(np.float32)}


@dataclass(frozen=True)
class ImageSpec:
    """What a model of images is made for: their height, width and channels, and the names of the classes."""

    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class ImageData:
    """A project's images by split: uint8 [n, height, width, channels] and int32 [n]."""

    images: dict[Split, np.ndarray]
    labels: dict[Split, np.ndarray]
    classes: tuple[str, ...]
    digest: str
    section: VisionDataSection

    @property
    def spec(self) -> ImageSpec:
        height, width, channels = next(iter(self.images.values())).shape[1:]
        return ImageSpec((height, width, channels), self.classes)

    def source(self, split: Split, *, batch_size: int, seed: int | None) -> ImageSource:
        """Batches of `split`: shuffled and augmented by `seed` without end for "train", each image once for the others.

        Without a seed "train" is as the others are. Raises DataError where the split holds no images.
        """
        labels = self.labels[split]
        if not len(labels):
            hint = "aifx train --set data.validation_fraction=0.1"
            raise DataError(f"{self.section.path}: no images in the {split} split", "", hint)
        shuffle = Shuffle(len(labels), seed) if split == "train" and seed is not None else None
        return ImageSource(self.images[split], labels, shuffle, batch_size, self.section.flip, self.section.shift)


def open_images(section: VisionDataSection, project: Project) -> ImageData:
    """Reads and checks the archive. Copies of a training image are all trained on or all held out.

    Raises DataError naming the file and the array.
    """
    path = project.root / section.path
    if path.is_file() and path.stat().st_size > LARGE_BYTES:
        logger.info(f"reading {section.path}")
    arrays = _read(path, section.path, training_arrays)
    for split in ("train", "test"):
        _check_images(arrays[f"{split}_images"], f"{section.path}: {split}_images", section)
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        _check_labels(labels, f"{section.path}: {split}_labels", len(images), len(section.classes) or 2**15, section)
    if arrays["train_images"].shape[1:] != arrays["test_images"].shape[1:]:
        shapes = f"{arrays['train_images'].shape[1:]} and {arrays['test_images'].shape[1:]}"
        raise DataError(f"{section.path}: train_images and test_images differ in shape", shapes, HINT)
    train, test = (_with_channels(arrays[f"{split}_images"]) for split in ("train", "test"))
    train_labels, test_labels = (arrays[f"{split}_labels"].astype(np.int32) for split in ("train", "test"))
    held_out = _held_out(train, section.validation_fraction)
    if held_out.all():
        hint = "aifx train --set data.validation_fraction=0.1"
        raise DataError(f"{section.path}: validation takes every training image", f"there are {len(train)}", hint)
    if section.validation_fraction > 0 and not held_out.any():
        why = f"{section.validation_fraction:g} of {len(train)} images is none"
        hint = "aifx train --set data.validation_fraction=0.5"
        raise DataError(f"{section.path}: no training image is held out for validation", why, hint)
    largest = int(np.concatenate([train_labels, test_labels]).max())
    return ImageData(
        images={"train": train[~held_out], "validation": train[held_out], "test": test},
        labels={"train": train_labels[~held_out], "validation": train_labels[held_out], "test": test_labels},
        classes=section.classes or tuple(str(label) for label in range(largest + 1)),
        digest=_digest((train, train_labels, test, test_labels), section),
        section=section,
    )


def open_image_file(path: Path, section: VisionDataSection, spec: ImageSpec) -> ImageData:
    """Opens an archive as a test split: its arrays images and labels, or else test_images and test_labels.

    Raises DataError naming the file and the array.
    """
    name = str(path)
    pair = _read(path, name, image_arrays)
    images, labels = pair.values()
    where = dict(zip(("images", "labels"), (f"{name}: {key}" for key in pair), strict=True))
    _check_images(images, where["images"], section)
    _check_labels(labels, where["labels"], len(images), len(spec.classes), section)
    images = _with_channels(images)
    if images.shape[1:] != spec.image_shape:
        why = f"the model takes images of shape {list(spec.image_shape)}"
        raise DataError(f"{where['images']} has images of shape {list(images.shape[1:])}", why, HINT)
    labels = labels.astype(np.int32)
    return ImageData({"test": images}, {"test": labels}, spec.classes, _digest((images, labels), section), section)


def image_arrays(names: Collection[str]) -> list[str]:
    """The arrays with a data set's images and labels, of those that an archive holds."""
    return ["test_images", "test_labels"] if "images" not in names and "test_images" in names else ["images", "labels"]


def training_arrays(names: Collection[str]) -> list[str]:
    return [f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")]


def _read(path: Path, name: str, choose: Callable[[Collection[str]], list[str]]) -> dict[str, np.ndarray]:
    """The arrays of the archive that `choose` takes of their names."""
    check_regular(path, name, "images are in one .npz file", HINT)
    try:
        with open(path, "rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise DataError(
                    f"{name}: not an .npz archive", f"{path.stat().st_size:,} bytes that are no zip file", HINT
                )
            stream.seek(0)
            archive = np.load(stream, allow_pickle=False)
            wanted = choose(archive.files)
            for key in wanted:
                if key not in archive.files:
                    has = ", ".join(archive.files) or "nothing"
                    raise DataError(f"{name}: no array {key!r}", f"it holds {has}", HINT)
            return {key: _array(archive, key, name) for key in wanted}
    except OSError as error:
        raise DataError(f"{name} cannot be read", error.strerror or str(error), f"ls -l {name}") from error
    except zipfile.BadZipFile as error:
        raise DataError(f"{name}: a damaged archive", str(error), "copy it again") from None


def _array(archive: Any, key: str, name: str) -> np.ndarray:
    if archive.zip.getinfo(f"{key}.npy" if f"{key}.npy" in archive.zip.namelist() else key).flag_bits & ENCRYPTED:
        raise DataError(f"{name}: array {key!r} is encrypted", "aifx reads archives without a password", HINT)
    try:
        values = archive[key]
    except (ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, zlib.error) as error:
        why = "it holds Python objects" if "pickle" in str(error) else str(error)
        raise DataError(f"{name}: array {key!r} cannot be read", why, HINT) from None
    if not isinstance(values, np.ndarray):
        raise DataError(f"{name}: {key!r} is not a NumPy array", "", HINT)
    return values


def _check_images(images: np.ndarray, where: str, section: VisionDataSection) -> None:
    if images.dtype != np.uint8:
        raise DataError(f"{where} is {images.dtype}", "images are uint8, 0 to 255", "images.astype('uint8')")
    if images.ndim not in (3, 4):
        why = "images are [n, height, width] or [n, height, width, channels]"
        raise DataError(f"{where} has shape {list(images.shape)}", why, HINT)
    if images.shape[1:3] != section.image_size:
        height, width = images.shape[1:3]
        why = (
            f"each image is {height} x {width} and data.image_size is {section.image_size[0]} x {section.image_size[1]}"
        )
        hint = f"aifx train --set data.image_size=[{height},{width}]"
        raise DataError(f"{where} has shape {list(images.shape)}", why, hint)
    if 0 in images.shape:
        raise DataError(f"{where} has no images", f"its shape is {list(images.shape)}", HINT)


def _check_labels(labels: np.ndarray, where: str, num_images: int, limit: int, section: VisionDataSection) -> None:
    if labels.dtype.kind not in "iu":  # np.integer would also admit timedelta64
        raise DataError(f"{where} is {labels.dtype}", "labels are integers from 0", "labels.astype('int32')")
    if labels.shape != (num_images,):
        why = f"there are {num_images} images; one label an image is needed"
        raise DataError(f"{where} has shape {list(labels.shape)}", why, HINT)
    if outside := np.flatnonzero((labels < 0) | (labels >= limit)).tolist():
        why = f"image {outside[0]} has it; labels go from 0 to {limit - 1}"
        hint = "data.classes names each label, in order" if section.classes else "number the labels from 0"
        raise DataError(f"{where} holds {int(labels[outside[0]])}", why, hint)


def _with_channels(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images if images.ndim == 4 else images[..., None])


def _held_out(images: np.ndarray, fraction: float) -> np.ndarray:
    """Which images are for validation, by a hash of their pixels: bool [n]."""
    hashes = (hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images)
    return np.array([int.from_bytes(value, "big") < fraction * 2**64 for value in hashes])


def _noise(seed: int, places: range) -> np.ndarray:
    """Three random numbers in [0, 1) for each place of the training: float64 [places, 3]."""
    x: np.ndarray = np.array(places, np.uint64)[:, None] * np.uint64(3) + np.arange(3, dtype=np.uint64)
    # splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014): any place at once.
    x += np.uint64(derived_seed("augment", seed) << 32)
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    noise: np.ndarray = (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return noise


def _augment(images: np.ndarray, noise: np.ndarray, flip: bool, shift: int) -> np.ndarray:
    """Mirrors and shifts each of images [n, height, width, channels] by its noise; what a shift uncovers is black."""
    count, height, width, _ = images.shape
    if flip:
        images = np.where((noise[:, 0] < 0.5)[:, None, None, None], images[:, :, ::-1], images)
    if shift:
        padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
        down, right = (noise[:, 1:] * (2 * shift + 1)).astype(np.int64).T
        ys = down[:, None] + np.arange(height)
        xs = right[:, None] + np.arange(width)
        images = padded[np.arange(count)[:, None, None], ys[:, :, None], xs[:, None, :]]
    return images


def _digest(arrays: tuple[np.ndarray, ...], section: VisionDataSection) -> str:
    how = (section.validation_fraction, section.flip, section.shift)
    digest = hashlib.sha256(repr(("images", 1, *how)).encode())
    for values in arrays:
        digest.update(f"{values.shape} {values.dtype.str}".encode())
        digest.update(np.ascontiguousarray(values))
    return digest.hexdigest()
