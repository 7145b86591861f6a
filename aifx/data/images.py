"""Images with labels or numbers, from folders, .csv lists and .npz archives, as batches.

Decoded pictures are rows of one shape in the row cache (`aifx.data.row_cache`). The store is named by the SHA-256 of
the pictures' files, and by what they were made to be. Its manifest has the geometry, and for each picture that cannot
be used the reason. It holds

    pixels          uint8 [pictures, height, width, channels]
    digests.npy     uint8 [pictures, 2, 32]: SHA-256 of each picture's bytes, and of its row of pixels

The digests of the rows stand for the pixels, which the manifest does not list, in place of a SHA-256 of the whole file
and of its blocks: a picture is what is read at once, and what is decoded again, into the same bytes. If anything else
is damaged, all pictures are decoded again.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aifx.core.artifact import Artifact, Files, cached, read_sealed, seal_files
from aifx.core.digests import Sha256, sha256_of_values
from aifx.core.errors import ConfigError, DataError
from aifx.core.os_errors import naming
from aifx.core.plurals import some_names
from aifx.core.progress import report_progress
from aifx.core.project import Project, cache_path
from aifx.data.arrays import (
    WEIGHTS,
    ArrayDataset,
    ArrayFormat,
    Arrays,
    array_dataset,
    hash_fraction,
    take,
    target_units,
)
from aifx.data.base import Batch, Labels, no_column
from aifx.data.columns import Source, scale_of
from aifx.data.file_index import scans_of, version_of, version_of_path
from aifx.data.order import BalancedOrder
from aifx.data.picture_lists import Listing, list_pictures, list_version, picture_files
from aifx.data.readers import archives
from aifx.data.readers.archives import HINT, TRAINING_ARRAYS, read_arrays
from aifx.data.readers.documents import files_below
from aifx.data.readers.encodings import FileScan
from aifx.data.readers.formats import IMAGE, PICTURE_SUFFIXES
from aifx.data.readers.pictures import (
    MEDIA_TYPES,
    MODES,
    PIXELS,
    BadPicture,
    Decoded,
    Geometry,
    Picture,
    decode,
    decode_all,
    decode_one,
    is_grey,
    open_picture,
    write_row,
)
from aifx.data.readers.rows import FORMATS, Row, field, input_file, read_rows, unknown_format
from aifx.data.readers.sources import SourceFile, local_file
from aifx.data.row_cache import VERSION, FixedRows, open_mapped, rows_key
from aifx.data.sections import ImagesSection
from aifx.data.spec import DataSpec, Field
from aifx.data.splits import Split
from aifx.machine.cpu import usable_cpus

logger = logging.getLogger(__name__)

AXES = ("height", "width", "channels")
DEFAULT_SIZE = (224, 224)  # height and width of pictures if `data.image_size` is not set
DIGESTS = "digests.npy"

MOST_NAMED = 100  # pictures that a message lists one by one
SKIP = "correct or remove it, or leave it out: aifx train --set data.errors=skip"
ORDER: tuple[Split, ...] = ("test", "validation", "train")  # which split keeps a picture that is in several
FILE_FIELD = "file"
PICTURES = tuple(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)
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
        elif (part := section.open_part(project)) is not None:
            listing = list_version(part, section.classes)
        else:
            listing = list_pictures(project.root / section.path, section.path, section.classes)
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

    @property
    def outcome_column(self) -> str:
        if self.spec.target_size > 1:
            return ""  # several classes of a picture
        return "label" if self.spec.classes else "value"

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
            raise DataError(f"{path}: pictures cannot be used", f"the model takes {geometry.channels} channels", HINT)
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
        contents = {str(path): one.sha256 for path, one in shards}
        return open_pictures(list_version(part, section.classes), contents, section)
    lists = version_of_path(local_file(project.root / section.path, section.path), project)  # none for a folder
    listing = list_pictures(project.root / section.path, section.path, section.classes)
    files = [*(file for version in lists.values() for file in version.files), *picture_files(listing, project.root)]
    version = version_of("data.path", files, None, project)
    for before in lists.values():
        before.check_unchanged()
    data = open_pictures(listing, _contents(version.files), section)
    return replace(data, file_versions={version.key: version})


def _contents(scans: Mapping[SourceFile, FileScan]) -> dict[str, str]:
    """SHA-256 of the bytes of each file that could be read, by its path."""
    return {file.location: scan.digest for file, scan in scans.items() if scan.digest}


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
        pictures = [path for path in files_below(file.path) if path.suffix.lower() in PICTURE_SUFFIXES]
        if not pictures:
            raise DataError(
                f"{file.path} has no pictures", f"they are {', '.join(PICTURE_SUFFIXES)}", f"ls {file.path}"
            )
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


@dataclass(frozen=True)
class ImageStore:
    """An opened store of pictures."""

    geometry: Geometry
    pixels: FixedRows  # uint8 [pictures, height, width, channels]
    digests: np.ndarray  # uint8 [pictures, 2, 32]
    problems: dict[int, str]  # why a picture cannot be used


class StoredImages:
    """Some pictures of a store, `[images, height, width, channels]`, indexed by arrays of whole numbers."""

    dtype = np.dtype(np.uint8)

    def __init__(self, store: ImageStore, rows: np.ndarray) -> None:
        self._pixels, self._rows = store.pixels, rows
        self.shape = (len(rows), *store.geometry.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, which: np.ndarray) -> np.ndarray:
        return self._pixels[self._rows[which]]


def open_images(
    files: Sequence[Picture], contents: Mapping[str, str], section: ImagesSection, what: str = "pictures"
) -> ImageStore:
    """The store of these pictures, which is made if it is not there. Pictures that cannot be used are its `problems`.

    Args:
        contents: SHA-256 of the bytes of each file that can be read, by its path.
        what: what progress calls the pictures.

    Raises OSError, EnvironmentFault if the cache cannot be written, DataError for a picture that changes meanwhile.
    """
    size, channels, fit = section.image_size or DEFAULT_SIZE, section.channels, section.fit
    workers = len(usable_cpus()) if section.workers is None else section.workers

    def build(folder: Path) -> tuple[Mapping[str, Any], Files]:
        geometry = Geometry(*size, channels or _channels(files), fit)
        digests = np.zeros((len(files), 2, 32), np.uint8)
        problems: dict[int, str] = {}
        activity = f"decoding {what}"
        logger.info(activity)
        with report_progress(activity, len(files), "pictures") as progress:

            def done(decoded: Decoded) -> None:
                picture = files[decoded.index]
                if decoded.file and picture.row is None and decoded.file != contents.get(str(picture.path)):
                    raise DataError(f"{picture.name} changed while it was read", "", "run it again when it is written")
                if decoded.why:
                    problems[decoded.index] = decoded.why
                for part, digest in enumerate((decoded.file, decoded.pixels)):
                    if digest:
                        digests[decoded.index, part] = np.frombuffer(bytes.fromhex(digest), np.uint8)
                progress.advance(1)

            decode_all(folder, files, geometry, workers, done)
        with naming(folder / DIGESTS):
            np.save(folder / DIGESTS, digests)
        content = {"geometry": asdict(geometry), "problems": {str(row): problems[row] for row in sorted(problems)}}
        return content, seal_files(folder, [folder / DIGESTS])

    def open_store(folder: Path, artifact: Artifact) -> ImageStore:
        geometry = Geometry(**artifact.content["geometry"])
        problems = {int(row): why for row, why in artifact.content["problems"].items()}
        data = read_sealed(folder, artifact, DIGESTS, limit=artifact.files[DIGESTS].bytes)
        digests: np.ndarray = np.load(io.BytesIO(data))
        of_rows = digests[:, 1].tobytes()
        pixels = open_mapped(folder / PIXELS, lambda file: FixedRows(file, of_rows, geometry.shape))

        def decode_again(row: int) -> np.ndarray:
            picture = files[row]
            logger.warning(f"the cached pixels of {picture.name} are damaged; decoding it again")
            decoded, data = decode_one(picture, geometry)
            if decoded.pixels != digests[row, 1].tobytes().hex():
                why = decoded.why or "its bytes are others than when the training began"
                raise DataError(f"{picture.name} has changed", why, "run the command again")
            with open(folder / PIXELS, "r+b") as file:
                write_row(file.fileno(), row, data)
            return pixels.file  # a map of the file that was written

        pixels.repair = decode_again
        return ImageStore(geometry, pixels, digests, problems)

    rows = [(contents.get(str(picture.path)), picture.row) for picture in files]
    path = cache_path("images") / rows_key("aifx.data.readers.pictures", size, channels, fit, rows)
    return cached(path, "image store", VERSION, build, open_store, logger.warning)


def _channels(files: Sequence[Picture]) -> int:
    """1 if all pictures are grey, otherwise 3."""
    for picture in files:
        with suppress(BadPicture, OSError), picture.open() as file, open_picture(file) as opened:
            if not is_grey(opened):
                return 3
    return 1


def open_pictures(
    listing: Listing, contents: Mapping[str, str], section: ImagesSection, *, test_for: DataSpec | None = None
) -> ArrayDataset:
    """The data set of these pictures. Raises DataError.

    Args:
        contents: SHA-256 of the bytes of each file that can be read, by its path.
        test_for: what a trained model knows: all pictures are a test split for it, and nothing is divided.
    """
    if section.channels not in (None, *MODES):
        why = "a picture has 1 channel (grey), 3 (red, green, blue) or 4 (with opacity)"
        raise ConfigError(f"data.channels = {section.channels} cannot be used with pictures", why, "data.channels = 3")
    examples = listing.examples
    store = open_images(examples, contents, section, f"pictures of {listing.name}")
    _report([(examples[index].name, why) for index, why in store.problems.items()], len(examples), section)
    usable = [index for index in range(len(examples)) if index not in store.problems]
    digests = {index: store.digests[index, 0].tobytes() for index in usable}
    if test_for:
        splits: dict[Split, list[int]] = {"test": usable}
    else:
        _warn_of_contradictions(listing, digests)
        splits = _without_copies(divide(listing, digests, section), listing, digests, section)
        _check_classes(splits, listing, section)
    targets = _targets(listing)
    mean, scale = (test_for.target_mean, test_for.target_scale) if test_for else (0.0, 1.0)
    if listing.target == "value":
        if len(known := targets[splits.get("train", [])]):
            mean, scale = float(known.mean()), scale_of(known)
        targets = ((targets - mean) / scale).astype(np.float32)
    spec = replace(pictures_spec(listing, store.geometry.shape), target_mean=mean, target_scale=scale)
    digest = Sha256(repr((store.geometry, listing.target, listing.classes)).encode())
    arrays: dict[Split, Arrays] = {}
    for split, indices in splits.items():
        rows = np.array(indices, np.int64)
        images: np.ndarray = StoredImages(store, rows)  # type: ignore[assignment]  # of it, a source needs indexing
        arrays[split] = {"inputs": images, "targets": targets[rows], **target_units(spec, len(rows))}
        digest.update(f"{split} {len(indices)}".encode())
        digest.update(store.digests[rows, 1].tobytes() + arrays[split]["targets"].tobytes())
    hints: dict[Split, str] = {split: f"aifx train --set data.{split}_fraction=0.1" for split in ("validation", "test")}

    def places(split: Split, rows: Sequence[int]) -> list[str]:
        return [examples[splits[split][row]].name for row in rows]

    def labels(split: Split, column: str | None) -> Labels | None:
        return None if column is None else Labels.of(_column(listing, column)[splits[split]])

    return ArrayDataset(arrays, spec, digest.hexdigest(), name=listing.name, hints=hints, places=places, labels=labels)


def _column(listing: Listing, name: str) -> np.ndarray:
    """The text that each picture has in a column of its list or version: `[examples]`. Raises DataError."""
    found = listing.source
    if found is None:
        raise no_column(name, listing.name)
    if isinstance(found, SourceFile):
        return Source(found).column(name)
    values = Source(SourceFile(found.reference, found.reference, "dataset"), found).column(name)
    is_example = [value is not None for value in found.column(listing.target)]
    return np.asarray(values[is_example])


def pictures_spec(listing: Listing, shape: tuple[int, int, int]) -> DataSpec:
    """The spec of pictures of this shape."""
    count = len(listing.classes)
    targets = {
        "label": Field((), "int32"),
        "labels": Field((count,), "float32", ("classes",)),
        "value": Field((), "float32"),
    }[listing.target]
    fields = {"inputs": Field(shape, "uint8", AXES), "targets": targets, WEIGHTS: Field((), "float32")}
    spec = DataSpec(fields, classes=listing.classes, target_size=count if listing.target == "labels" else 1)
    units = {name: Field((), values.dtype.name) for name, values in target_units(spec, 0).items()}
    return replace(spec, fields=fields | units)


def _targets(listing: Listing) -> np.ndarray:
    """Targets of the examples: the class's number int32, 1 per class that it has float32 `[classes]`, or the value."""
    number = {name: index for index, name in enumerate(listing.classes)}
    if listing.target == "value":
        return np.array([example.target for example in listing.examples], np.float64)
    if listing.target == "label":
        return np.array([number[str(example.target)] for example in listing.examples], np.int32)
    targets = np.zeros((len(listing.examples), len(number)), np.float32)
    for row, example in zip(targets, listing.examples, strict=True):
        row[[number[label] for label in example.labels]] = 1
    return targets


def _report(problems: Sequence[tuple[str, str]], count: int, section: ImagesSection) -> None:
    """Raise DataError for pictures, of `count`, that cannot be used, or with `data.errors` = "skip" list them."""
    if problems and section.errors == "skip":
        _list_left_out(problems, count, "cannot be used")
    elif problems:
        (first, why), *others = problems
        more = f"; {some_names([name for name, _ in others])} cannot be used, either" if others else ""
        raise DataError(f"{first} cannot be used", why + more, SKIP)


def _list_left_out(pictures: Sequence[tuple[str, str]], count: int, why: str) -> None:
    listed = [f"{name}: {reason}" for name, reason in pictures[:MOST_NAMED]]
    more = [f"and {len(pictures) - MOST_NAMED:,} more"] if len(pictures) > MOST_NAMED else []
    head = f"{len(pictures):,} of {count:,} pictures are left out, since they {why}:"
    logger.warning("\n  ".join([head, *listed, *more]))


def divide(listing: Listing, digests: Mapping[int, bytes], section: ImagesSection) -> dict[Split, list[int]]:
    """The examples of each split, by index.

    A split that no example names is taken from the training examples: of each class the share that `section` says, or
    of each set of labels that is frequent enough. Which ones follows from their digests and `data.split_seed`.
    Copies of a picture, and the pictures of a cluster of near-duplicates, stay together.
    """
    splits: dict[Split, list[int]] = {split: [] for split in ORDER}
    strata: dict[object, dict[bytes, list[int]]] = {}
    first: dict[bytes, object] = {}  # the label of the first picture of a group decides for the others
    for index, digest in digests.items():
        example = listing.examples[index]
        if example.split in ("validation", "test"):
            splits[example.split].append(index)
        else:
            group = digest if example.cluster is None else Sha256(example.cluster.encode()).digest()
            stratum = first.setdefault(group, example.labels)
            strata.setdefault(stratum, {}).setdefault(group, []).append(index)
    shares = {"test": section.test_fraction, "validation": section.validation_fraction}
    taken: dict[Split, float] = {split: shares[split] for split in ORDER[:2] if not splits[split]}
    if listing.target == "labels":
        strata = _with_pooled(strata, 1 / min((share for share in taken.values() if share), default=1))
    for pictures in strata.values():
        order = sorted(pictures, key=lambda digest: Sha256(b"%d " % section.split_seed + digest).digest())
        parts: dict[Split, list[bytes]] = {}
        for split, share in taken.items():
            count = max(round(share * len(pictures)), 1 if share and len(pictures) > len(taken) else 0)
            parts[split], order = order[:count], order[count:]
        for split, part in {**parts, "train": order}.items():
            splits[split] += [index for digest in part for index in pictures[digest]]
    return {split: sorted(indices) for split, indices in splits.items()}


def _with_pooled(strata: Mapping[object, dict[bytes, list[int]]], least: float) -> dict[object, dict[bytes, list[int]]]:
    """The strata with all of fewer than `least` pictures in one: their shares would be no whole pictures."""
    kept: dict[object, dict[bytes, list[int]]] = {}
    for labels, pictures in strata.items():
        kept.setdefault(labels if len(pictures) >= least else None, {}).update(pictures)
    return kept


def _without_copies(
    splits: Mapping[Split, list[int]], listing: Listing, digests: Mapping[int, bytes], section: ImagesSection
) -> dict[Split, list[int]]:
    """The splits without the pictures that are also in a later one. Raises DataError unless they are to be skipped."""
    held_out: dict[bytes, tuple[Split, int]] = {}
    kept: dict[Split, list[int]] = {}
    copies: list[tuple[str, str]] = []
    for split in ORDER:
        kept[split] = [index for index in splits[split] if digests[index] not in held_out]
        for index in splits[split]:
            if found := held_out.get(digests[index]):
                other = listing.examples[found[1]].name
                copies.append((listing.examples[index].name, f"the same picture as {other}, in {found[0]}"))
        held_out |= {digests[index]: (split, index) for index in kept[split]}
    if copies and section.errors == "skip":
        _list_left_out(copies, len(listing.examples), "are held out, too")
    elif copies:
        (name, why), *others = copies
        more = f"; so are {some_names([name for name, _ in others])}" if others else ""
        raise DataError(f"{name} is in two splits", f"it is {why}{more}: a test would measure what was learnt", SKIP)
    return kept


def _warn_of_contradictions(listing: Listing, digests: Mapping[int, bytes]) -> None:
    """Warn of copies of a picture that have different labels."""
    seen: dict[bytes, int] = {}
    pairs = [
        f"{listing.examples[other].name} and {listing.examples[index].name}"
        for index, digest in digests.items()
        if listing.examples[other := seen.setdefault(digest, index)].target != listing.examples[index].target
    ]
    if pairs:
        logger.warning(f"the same picture with different labels: {some_names(pairs)}")


def _check_classes(splits: Mapping[Split, list[int]], listing: Listing, section: ImagesSection) -> None:
    """Raise DataError for a single class, or a class without a training picture. Warn of what is not held out."""
    shares: dict[Split, float] = {"validation": section.validation_fraction, "test": section.test_fraction}
    if empty := [split for split, share in shares.items() if share and not splits.get(split)]:
        held_out = " and ".join(empty)
        logger.warning(f"{listing.name}: too few pictures to hold any out for {held_out}: what is learnt is not tested")
    if not listing.classes:
        return
    if len(listing.classes) == 1 and listing.target == "label":
        why = f"every picture is {listing.classes[0]!r}"
        raise DataError(f"{listing.name} has one class only", why, "add pictures of another class")
    for split in ORDER[::-1]:
        found = {label for index in splits[split] for label in listing.examples[index].labels}
        missing = [name for name in listing.classes if name not in found]
        if missing and split == "train":
            first = next((e.name for e in listing.examples if missing[0] in e.labels), listing.name)
            what = f"{listing.name}: no training picture of the class {missing[0]!r}"
            raise DataError(what, f"there is {first}", "add some, or leave the class out")
        if missing and splits[split]:
            logger.warning(f"{listing.name}: the {split} split has no picture of {some_names(missing)}")
