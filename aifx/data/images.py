"""Images with labels or numbers, from folders, .csv lists and .npz archives, as batches."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.digests import sha256_of_values
from aifx.core.errors import ConfigError, DataError
from aifx.core.project import Project
from aifx.data.arrays import ArrayDataset, ArrayFormat, Arrays, array_dataset, hash_fraction, take, target_units
from aifx.data.base import Batch
from aifx.data.file_index import scans_of, version_of, version_of_path
from aifx.data.image_splits import AXES, DEFAULT_SIZE, open_pictures, pictures_spec
from aifx.data.order import BalancedOrder
from aifx.data.picture_lists import Listing, list_pictures, list_version, picture_files
from aifx.data.readers import archives
from aifx.data.readers.archives import HINT, TRAINING_ARRAYS, read_arrays
from aifx.data.readers.documents import files_below
from aifx.data.readers.encodings import FileScan
from aifx.data.readers.images import IMAGE, SUFFIXES
from aifx.data.readers.pictures import MEDIA_TYPES, MODES, BadPicture, Geometry, decode
from aifx.data.readers.rows import FORMATS, Row, field, input_file, read_rows, unknown_format
from aifx.data.readers.sources import SourceFile, local_file
from aifx.data.sections import ImagesSection
from aifx.data.spec import DataSpec
from aifx.data.splits import Split
from aifx.data.versions.parts import DatasetPart

logger = logging.getLogger(__name__)

FILE_FIELD = "file"
PICTURES = tuple(suffix.removeprefix(".") for suffix in SUFFIXES)
DAMAGED = "write it again, or leave it out"


@dataclass(frozen=True)
class ImageFormat(ArrayFormat):
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
        else:
            listing = _list(section, project, section.open_part(project))
        for key in ("image_size", "channels", "classes") if section.is_archive else ("channels",):
            if not getattr(section, key):
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
            hints: dict[Split, str] = {"validation": "aifx train --set data.validation_fraction=0.1"}
            data = array_dataset(splits, classes=classes, axes={"inputs": AXES}, name=section.path, hints=hints)
            data = replace(data, file_versions=versions)
        else:
            data = _open_listed(section, project)
        return cls(section, data.spec), _balanced(data, section)

    def open_file(self, path: Path) -> ArrayDataset:
        """A folder or a .csv list of pictures, or an archive with the arrays images and labels, or test_images and
        test_labels. Of a folder with splits, it is the test split."""
        if path.suffix != ".npz":
            return self._open_pictures(path)
        name, shape = str(path), self.geometry.shape
        arrays = read_arrays(SourceFile(name, str(path), "npz"))
        prefix = next(iter(arrays)).removesuffix("images")
        examples = labelled(arrays, prefix, name, len(self.spec.classes), self.section)
        if (found := examples["inputs"].shape[1:]) != shape:
            why = f"the model takes images of shape {list(shape)}"
            raise DataError(f"{name}: {prefix}images has images of shape {list(found)}", why, HINT)
        return array_dataset({"test": examples}, classes=self.spec.classes, axes={"inputs": AXES}, name=name)

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
        """The shape of the model's pictures, and how others get it."""
        height, width, channels = self.spec.fields["inputs"].shape
        return Geometry(height, width, channels, self.section.fit)

    def _open_pictures(self, path: Path) -> ArrayDataset:
        geometry = self.geometry
        if geometry.channels not in MODES:
            why = f"the model takes {geometry.channels} channels"
            raise DataError(f"{path}: pictures cannot be used", why, HINT)
        size = {"image_size": geometry.shape[:2], "channels": geometry.channels}
        listing = list_pictures(path, str(path), self.spec.classes, has_all=False)
        contents = _contents(scans_of(picture_files(listing, path), None))
        tests = [example for example in listing.examples if example.split == "test"]
        targets = self.spec.fields["targets"]
        if pictures_spec(listing, geometry.shape).fields["targets"] != targets:
            why = f"its pictures have a {listing.target}, and the model predicts {targets.dtype} {list(targets.shape)}"
            raise DataError(f"{path} does not fit the model", why, "docs/tasks.md")
        listing = replace(listing, examples=tests or listing.examples)
        return open_pictures(listing, contents, self.section.model_copy(update=size), test_for=self.spec)


def _open_listed(section: ImagesSection, project: Project) -> ArrayDataset:
    """The data set of the pictures that `[data]` names. Raises UsageError, DataError."""
    if (part := section.open_part(project)) is not None:
        shards = zip(part.version.shards, part.manifest.shards, strict=True)
        return open_pictures(_list(section, project, part), {str(path): one.sha256 for path, one in shards}, section)
    lists = version_of_path(local_file(project.root / section.path, section.path), project)  # none for a folder
    listing = _list(section, project, None)
    files = [*(file for version in lists.values() for file in version.files), *picture_files(listing, project.root)]
    version = version_of("data.path", files, None, project)
    for before in lists.values():
        before.check_unchanged()
    data = open_pictures(listing, _contents(version.files), section)
    return replace(data, file_versions={version.key: version})


def _contents(scans: Mapping[SourceFile, FileScan]) -> dict[str, str]:
    """SHA-256 of the bytes of each file that could be read, by its path."""
    return {file.location: scan.digest for file, scan in scans.items() if scan.digest}


def _list(section: ImagesSection, project: Project, part: DatasetPart | None) -> Listing:
    """The pictures that `[data]` names: those of a version, or of files. Raises UsageError, DataError."""
    if part is not None:
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
    hint = "aifx train --set data.validation_fraction="
    if held_out.all():
        raise DataError(f"{name}: validation takes every training image", f"there are {count}", f"{hint}0.1")
    if fraction > 0 and not held_out.any():
        what, why = f"{name}: no training image is held out for validation", f"{fraction:g} of {count} images is none"
        raise DataError(what, why, f"{hint}0.5")
    largest = int(np.concatenate([train["targets"], test["targets"]]).max())
    splits: dict[Split, Arrays] = {"train": take(train, ~held_out), "validation": take(train, held_out), "test": test}
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


def read_images(file: SourceFile, geometry: Geometry, *, skips: bool = False) -> Iterator[Row]:
    """The images of a file, in order: of .npz its array images (or else test_images), of .npy the one array, of a
    picture the picture, made to be as `geometry` says; the other formats hold them as nested lists in "image", .parquet
    also as the bytes of a picture file, or name pictures in "file", relative to their own file. Of a folder, the
    pictures in it and in its folders, by name.

    Args:
        skips: leave out pictures of a folder that cannot be used, with a warning of each.

    Raises DataError naming the file.
    """
    if file.path.is_dir():
        pictures = [path for path in files_below(file.path) if path.suffix.lower() in SUFFIXES]
        if not pictures:
            raise DataError(f"{file.path} has no pictures", f"they are {', '.join(SUFFIXES)}", f"ls {file.path}")
        for picture in pictures:
            try:
                yield from list(read_images(input_file(str(picture)), geometry))
            except DataError as error:
                if not skips:
                    raise
                logger.warning(f"{error.what} ({error.why}): left out")
    elif file.format in ("npz", "npy"):
        for number, image in enumerate(archives.read_images(file), 1):
            yield Row(file.name, number, f"{file.name}: image {number}", {IMAGE: image})
    elif file.format == "image":
        yield Row(file.name, 1, file.name, {IMAGE: _picture(file, geometry)})
    elif file.format in FORMATS:
        for row in read_rows(file):
            if isinstance(data := row.values.get(IMAGE), bytes):  # of a version of a data set
                yield replace(row, values={**row.values, IMAGE: _decoded(data, row.place, geometry, DAMAGED)})
            elif FILE_FIELD in row.values and IMAGE not in row.values:
                path = file.path.parent / str(row.values[FILE_FIELD])
                yield replace(row, values={**row.values, IMAGE: _picture(input_file(str(path)), geometry)})
            else:
                yield row
    else:
        raise unknown_format(file, (*PICTURES, "npz", "npy", "csv", "jsonl", "parquet"))


def _picture(file: SourceFile, geometry: Geometry) -> np.ndarray:
    """A picture file as the model takes it."""
    with file.open() as stream:
        return _decoded(stream.read(), file.name, geometry, f"file {file.name}")


def _decoded(data: bytes, place: str, geometry: Geometry, hint: str) -> np.ndarray:
    """The bytes of a picture file as the model takes it. Raises DataError naming the place."""
    if geometry.channels not in MODES:
        raise DataError(f"{place}: a picture cannot have {geometry.channels} channels", "the model takes so many", HINT)
    try:
        return decode(io.BytesIO(data), geometry)
    except BadPicture as error:
        raise DataError(f"{place} cannot be used", str(error), hint) from None
