"""Labelled images in a NumPy archive, as batches."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.errors import ConfigError, DataError
from aifx.core.project import Project
from aifx.data.arrays import WEIGHTS, ArrayDataset, Arrays, array_dataset, hash_fraction
from aifx.data.base import Batch, DataFormat, Split
from aifx.data.files import check_regular
from aifx.data.image_rows import IMAGE_FIELD, image_arrays, read_images
from aifx.data.order import derived_seed
from aifx.data.rows import InputFile, Row, field
from aifx.data.sections import TRAINING_ARRAYS, ImagesSection
from aifx.data.spec import DataSpec, Field

AXES = {"inputs": ("height", "width", "channels")}
HINT = "the file holds train_images, train_labels, test_images and test_labels, written by numpy.savez"


@dataclass(frozen=True)
class ImageFormat(DataFormat):
    """Labelled images: "inputs" uint8 `[rows, height, width, channels]` and "targets" int32 `[rows]`."""

    section: ImagesSection
    spec: DataSpec

    @classmethod
    def describe(cls, section: ImagesSection, project: Project) -> DataSpec:
        for key, value in (("channels", section.channels), ("classes", section.classes)):
            if not value:
                why = f"without the images, aifx knows the {key} from it alone"
                raise ConfigError(f"data.{key} is not set", why, f"aifx config keys data    ({key} = ... below [data])")
        assert section.channels is not None
        shape = (*section.image_size, section.channels)
        fields = {"inputs": Field(shape, "uint8", AXES["inputs"]), "targets": Field((), "int32")}
        return DataSpec({**fields, WEIGHTS: Field((), "float32")}, classes=section.classes)

    @classmethod
    def open(cls, section: ImagesSection, project: Project, assets: Path) -> tuple[ImageFormat, ArrayDataset]:
        """Reads and checks the archive. Copies of a training image are all trained on or all held out."""
        path, name, fraction = project.root / section.path, section.path, section.validation_fraction
        arrays = _read(path, name, TRAINING_ARRAYS)
        limit = len(section.classes) or 2**15
        train, test = (_examples(arrays, f"{split}_", name, limit, section) for split in ("train", "test"))
        if train["inputs"].shape[1:] != test["inputs"].shape[1:]:
            shapes = f"{arrays['train_images'].shape[1:]} and {arrays['test_images'].shape[1:]}"
            raise DataError(f"{name}: train_images and test_images differ in shape", shapes, HINT)
        held_out = np.array([hash_fraction(image) < fraction for image in train["inputs"]])
        count = len(held_out)
        if held_out.all():
            hint = "aifx train --set data.validation_fraction=0.1"
            raise DataError(f"{name}: validation takes every training image", f"there are {count}", hint)
        if fraction > 0 and not held_out.any():
            why, hint = f"{fraction:g} of {count} images is none", "aifx train --set data.validation_fraction=0.5"
            raise DataError(f"{name}: no training image is held out for validation", why, hint)
        largest = int(np.concatenate([train["targets"], test["targets"]]).max())
        splits: dict[Split, Arrays] = {
            "train": {key: values[~held_out] for key, values in train.items()},
            "validation": {key: values[held_out] for key, values in train.items()},
            "test": test,
        }
        classes = section.classes or tuple(str(label) for label in range(largest + 1))
        augment = partial(_augment, section) if section.flip or section.shift else None
        how = ("images", section.flip, section.shift)
        hints: dict[Split, str] = {"validation": "aifx train --set data.validation_fraction=0.1"}
        data = array_dataset(splits, classes=classes, axes=AXES, augment=augment, how=how, name=name, hints=hints)
        return cls(section, data.spec), data

    @classmethod
    def load(cls, section: ImagesSection, spec: DataSpec, assets: Path) -> ImageFormat:
        return cls(section, spec)

    def open_file(self, path: Path) -> ArrayDataset:
        """An archive with the arrays images and labels, or else test_images and test_labels."""
        name, shape = str(path), self.spec.fields["inputs"].shape
        arrays = _read(path, name)
        prefix = next(iter(arrays)).removesuffix("images")
        examples = _examples(arrays, prefix, name, len(self.spec.classes), self.section)
        if (found := examples["inputs"].shape[1:]) != shape:
            why = f"the model takes images of shape {list(shape)}"
            raise DataError(f"{name}: {prefix}images has images of shape {list(found)}", why, HINT)
        return array_dataset({"test": examples}, classes=self.spec.classes, axes=AXES, name=name)

    def read_rows(self, file: InputFile) -> Iterator[Row]:
        """Images of .npz, .npy and picture files, and rows with a field "image"."""
        return read_images(file, self.image_shape)

    def encode(self, row: Mapping[str, Any]) -> Batch:
        image, shape = np.asarray(field(row, IMAGE_FIELD)), self.image_shape
        if image.dtype.kind not in "iu" or image.size == 0 or image.min() < 0 or image.max() > 255:
            raise ValueError("an image is whole numbers from 0 to 255")
        if image.shape != shape and (image.shape, shape[2]) != (shape[:2], 1):
            raise ValueError(f"the image has shape {list(image.shape)} and the model takes {list(shape)}")
        return {"inputs": image.astype(np.uint8).reshape(1, *shape)}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        height, width, channels = self.spec.fields["inputs"].shape
        return height, width, channels


def _read(path: Path, name: str, wanted: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of the archive that are `wanted`, by default those of `image_arrays`."""
    check_regular(path, name, "images are in one .npz file", HINT)
    try:
        with open(path, "rb") as stream:
            if not zipfile.is_zipfile(stream):
                why = f"{path.stat().st_size:,} bytes that are no zip file"
                raise DataError(f"{name}: not an .npz archive", why, HINT)
            stream.seek(0)
            archive = np.load(stream, allow_pickle=False)
            wanted = wanted or image_arrays(archive.files)
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
    try:
        values = archive[key]
    except (ValueError, EOFError, zipfile.BadZipFile, RuntimeError, zlib.error) as error:
        why = "it holds Python objects" if "pickle" in str(error) else str(error)
        raise DataError(f"{name}: array {key!r} cannot be read", why, HINT) from None
    if not isinstance(values, np.ndarray):
        raise DataError(f"{name}: {key!r} is not a NumPy array", "", HINT)
    return values


def _examples(
    arrays: Mapping[str, np.ndarray], prefix: str, name: str, limit: int, section: ImagesSection
) -> dict[str, np.ndarray]:
    """The images and labels whose names begin with `prefix`, as "inputs" and "targets".

    Raises DataError, also for a label of `limit` or more.
    """
    images, where = arrays[f"{prefix}images"], f"{name}: {prefix}images"
    if images.dtype != np.uint8:
        raise DataError(f"{where} is {images.dtype}", "images are uint8, 0 to 255", "images.astype('uint8')")
    if images.ndim not in (3, 4):
        why = "images are [n, height, width] or [n, height, width, channels]"
        raise DataError(f"{where} has shape {list(images.shape)}", why, HINT)
    (height, width), wanted = images.shape[1:3], section.image_size
    if (height, width) != wanted:
        why = f"each image is {height} x {width} and data.image_size is {wanted[0]} x {wanted[1]}"
        hint = f"aifx train --set data.image_size=[{height},{width}]"
        raise DataError(f"{where} has shape {list(images.shape)}", why, hint)
    if 0 in images.shape:
        raise DataError(f"{where} has no images", f"its shape is {list(images.shape)}", HINT)
    labels, where = arrays[f"{prefix}labels"], f"{name}: {prefix}labels"
    if labels.dtype.kind not in "iu":  # np.integer would also admit timedelta64
        raise DataError(f"{where} is {labels.dtype}", "labels are integers from 0", "labels.astype('int32')")
    if labels.shape != (len(images),):
        why = f"there are {len(images)} images; one label an image is needed"
        raise DataError(f"{where} has shape {list(labels.shape)}", why, HINT)
    if outside := np.flatnonzero((labels < 0) | (labels >= limit)).tolist():
        why = f"image {outside[0]} has it; labels go from 0 to {limit - 1}"
        hint = "data.classes names each label, in order" if section.classes else "number the labels from 0"
        raise DataError(f"{where} holds {int(labels[outside[0]])}", why, hint)
    images = np.ascontiguousarray(images if images.ndim == 4 else images[..., None])
    return {"inputs": images, "targets": labels.astype(np.int32)}


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


def _augment(section: ImagesSection, batch: Batch, seed: int, places: range) -> Batch:
    """Mirrors and shifts each image as its place in the order of training says; what a shift uncovers is black."""
    images, noise = batch["inputs"], _noise(seed, places)
    count, height, width, _ = images.shape
    if section.flip:
        images = np.where((noise[:, 0] < 0.5)[:, None, None, None], images[:, :, ::-1], images)
    if shift := section.shift:
        padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
        down, right = (noise[:, 1:] * (2 * shift + 1)).astype(np.int64).T
        ys = down[:, None] + np.arange(height)
        xs = right[:, None] + np.arange(width)
        images = padded[np.arange(count)[:, None, None], ys[:, :, None], xs[:, None, :]]
    return {**batch, "inputs": images}
