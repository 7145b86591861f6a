"""Labelled images in a NumPy archive (.npz)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from aifx.core.errors import DataError
from aifx.data.arrays import Arrays, hash_fraction
from aifx.data.readers.archives import HINT, TRAINING_ARRAYS, read_arrays
from aifx.data.readers.sources import SourceFile
from aifx.data.sections import ImagesSection
from aifx.data.splits import Split


def read_archive(path: Path, section: ImagesSection) -> tuple[dict[Split, Arrays], tuple[str, ...]]:
    """The splits of `data.path`, and the names of the labels. Raises DataError.

    Copies of a training image are all trained on or all held out.
    """
    name, fraction = section.path, section.validation_fraction
    arrays = read_arrays(SourceFile(name, str(path), "npz"), TRAINING_ARRAYS)
    limit = len(section.classes) or 2**15
    train, test = (labelled(arrays, f"{split}_", name, limit, section) for split in ("train", "test"))
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
    return splits, section.classes or tuple(str(label) for label in range(largest + 1))


def labelled(
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
    if wanted and (height, width) != wanted:
        why = f"each image is {height} x {width} and data.image_size is {wanted[0]} x {wanted[1]}"
        hint = f"aifx train --set data.image_size=[{height},{width}]"
        raise DataError(f"{where} has shape {list(images.shape)}", why, hint)
    if 0 in images.shape:
        raise DataError(f"{where} has no images", f"its shape is {list(images.shape)}", HINT)
    labels, where = arrays[f"{prefix}labels"], f"{name}: {prefix}labels"
    if labels.dtype.kind not in "iu":  # np.integer would also admit timedelta64
        raise DataError(f"{where} is {labels.dtype}", "labels are integers from 0", "labels.astype('int32')")
    if labels.shape != (len(images),):
        why = f"there are {len(images)} images; one label per image is needed"
        raise DataError(f"{where} has shape {list(labels.shape)}", why, HINT)
    if outside := np.flatnonzero((labels < 0) | (labels >= limit)).tolist():
        why = f"image {outside[0]} has it; labels go from 0 to {limit - 1}"
        hint = "data.classes names each label, in order" if section.classes else "number the labels from 0"
        raise DataError(f"{where} holds {int(labels[outside[0]])}", why, hint)
    images = np.ascontiguousarray(images if images.ndim == 4 else images[..., None])
    return {"inputs": images, "targets": labels.astype(np.int32)}
