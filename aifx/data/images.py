"""Images with labels or numbers, from folders, .csv lists and .npz archives, as batches."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.digests import sha256_of_values
from aifx.core.errors import ConfigError, DataError
from aifx.core.project import Project
from aifx.data.arrays import ArrayDataset, array_dataset, target_units
from aifx.data.base import Batch, DataFormat
from aifx.data.image_archive import labelled, read_archive
from aifx.data.image_rows import read_images
from aifx.data.image_splits import AXES, DEFAULT_SIZE, open_pictures, pictures_spec
from aifx.data.implicit import version_of_path
from aifx.data.order import BalancedOrder
from aifx.data.picture_lists import Listing, list_pictures, list_version
from aifx.data.readers.archives import HINT, read_arrays
from aifx.data.readers.images import IMAGE
from aifx.data.readers.pictures import MEDIA_TYPES, MODES, Geometry, decode
from aifx.data.readers.rows import Row, field
from aifx.data.readers.sources import SourceFile, local_file
from aifx.data.sections import ImagesSection
from aifx.data.spec import DataSpec
from aifx.data.splits import Split


@dataclass(frozen=True)
class ImageFormat(DataFormat):
    """Images: "inputs" uint8 `[rows, height, width, channels]`, and "targets".

    These are int32 `[rows]` for classes, float32 `[rows, classes]` for several classes per image, and float32 `[rows]`
    for numbers: of mean 0 and variance 1 over the training split, with their "location" and "scale".
    """

    section: ImagesSection
    spec: DataSpec

    @classmethod
    def describe(cls, section: ImagesSection, project: Project) -> DataSpec:
        if section.is_archive:
            listing = Listing(section.path, [], "label", section.classes)
            needed = {"image_size": section.image_size, "channels": section.channels, "classes": section.classes}
        else:
            listing = _list(section, project)
            needed = {"channels": section.channels}
        for key, value in needed.items():
            if not value:
                why = f"without the images, aifx knows the {key} from it alone"
                raise ConfigError(f"data.{key} is not set", why, f"aifx config keys data    ({key} = ... below [data])")
        return pictures_spec(listing, (*(section.image_size or DEFAULT_SIZE), section.channels or 1))

    @classmethod
    def open(cls, section: ImagesSection, project: Project, assets: Path) -> tuple[ImageFormat, ArrayDataset]:
        """Decodes pictures that were not decoded before. Copies of an image are in one split."""
        if section.is_archive:
            versions = version_of_path(local_file(project.root / section.path, section.path), project)
            splits, classes = read_archive(project.root / section.path, section)
            for version in versions.values():
                version.check_unchanged()
            hint = "aifx train --set data.validation_fraction=0.1"
            data = array_dataset(
                splits, classes=classes, axes={"inputs": AXES}, name=section.path, hints={"validation": hint}
            )
            data = replace(data, file_versions=versions)
        else:
            data = open_pictures(_list(section, project), section)
        return cls(section, data.spec), _balanced(data, section)

    @classmethod
    def load(cls, section: ImagesSection, spec: DataSpec, assets: Path) -> ImageFormat:
        return cls(section, spec)

    def open_file(self, path: Path) -> ArrayDataset:
        """A folder or a .csv list of pictures, or an archive with the arrays images and labels, or test_images and
        test_labels. Of a folder with splits, it is the test split."""
        name, shape = str(path), self.spec.fields["inputs"].shape
        if path.suffix != ".npz":
            return self._open_pictures(path)
        arrays = read_arrays(SourceFile(name, str(path), "npz"))
        prefix = next(iter(arrays)).removesuffix("images")
        examples = labelled(arrays, prefix, name, len(self.spec.classes), self.section)
        if (found := examples["inputs"].shape[1:]) != shape:
            why = f"the model takes images of shape {list(shape)}"
            raise DataError(f"{name}: {prefix}images has images of shape {list(found)}", why, HINT)
        return array_dataset({"test": examples}, classes=self.spec.classes, axes={"inputs": AXES}, name=name)

    def places(self, dataset: ArrayDataset, split: Split, rows: Sequence[int]) -> list[str]:
        return dataset.places(split, rows) if dataset.places else []

    def read_rows(self, file: SourceFile) -> Iterator[Row]:
        """Images of .npz, .npy and picture files, and rows with a field "image"."""
        return read_images(file, self.geometry, skips=self.section.errors == "skip")

    @property
    def media_types(self) -> tuple[str, ...]:
        return MEDIA_TYPES if self.geometry.channels in MODES else ()

    def decode(self, data: bytes) -> Mapping[str, Any]:
        return {IMAGE: decode(io.BytesIO(data), self.geometry)}

    def encode(self, row: Mapping[str, Any]) -> Batch:
        image, shape = np.asarray(field(row, IMAGE)), self.geometry.shape
        if image.dtype.kind not in "iu" or image.size == 0 or image.min() < 0 or image.max() > 255:
            raise ValueError("an image is whole numbers from 0 to 255")
        if image.shape != shape and (image.shape, shape[2]) != (shape[:2], 1):
            raise ValueError(f"the image has shape {list(image.shape)} and the model takes {list(shape)}")
        return {"inputs": image.astype(np.uint8).reshape(1, *shape), **target_units(self.spec, 1)}

    @property
    def geometry(self) -> Geometry:
        """What pictures become for the model."""
        height, width, channels = self.spec.fields["inputs"].shape
        return Geometry(height, width, channels, self.section.fit)

    def _open_pictures(self, path: Path) -> ArrayDataset:
        geometry = self.geometry
        if geometry.channels not in MODES:
            why = f"the model takes {geometry.channels} channels"
            raise DataError(f"{path}: pictures cannot be used", why, HINT)
        section = self.section.model_copy(
            update={"image_size": (geometry.height, geometry.width), "channels": geometry.channels}
        )
        listing = list_pictures(path, str(path), self.spec.classes, has_all=False)
        tests = [example for example in listing.examples if example.split == "test"]
        targets = self.spec.fields["targets"]
        if pictures_spec(listing, geometry.shape).fields["targets"] != targets:
            why = f"its pictures have a {listing.target}, and the model predicts {targets.dtype} {list(targets.shape)}"
            raise DataError(f"{path} does not fit the model", why, "docs/tasks.md")
        return open_pictures(replace(listing, examples=tests or listing.examples), section, test_for=self.spec)


def _list(section: ImagesSection, project: Project) -> Listing:
    """The pictures that `[data]` names: those of a version, or of files. Raises UsageError, DataError."""
    if (part := section.open_part(project)) is not None:
        return list_version(part, section.classes)
    return list_pictures(project.root / section.path, section.path, section.classes)


def _balanced(data: ArrayDataset, section: ImagesSection) -> ArrayDataset:
    """The data set as `data.sampling` and `data.class_weights` say. Raises ConfigError if images have no one class."""
    how = section.sampling, section.class_weights
    if how == ("shuffled", "none"):
        return data
    targets = data.splits["train"]["targets"]
    if not data.spec.classes or targets.ndim > 1:
        key = "sampling" if section.sampling == "balanced" else "class_weights"
        why = "each image must have one class for that"
        raise ConfigError(f'data.{key} = "balanced" cannot be used', why, f"aifx config show    (data.{key})")
    counts = np.bincount(targets)
    members = tuple(np.flatnonzero(targets == label) for label in np.flatnonzero(counts))
    shares = len(targets) / (len(members) * np.maximum(counts, 1))
    return replace(
        data,
        digest=sha256_of_values(data.digest, how),
        order=BalancedOrder(members) if section.sampling == "balanced" else None,
        emphasis=shares[targets].astype(np.float32) if section.class_weights == "balanced" else None,
    )
