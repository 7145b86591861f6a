"""Which pictures a project or a data set names, and what each shows: in folders, in lists, in versions."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from aifx.core.errors import DataError, did_you_mean
from aifx.core.plurals import counted
from aifx.data.names import CLUSTER, ROW, SPLIT
from aifx.data.readers.documents import files_below
from aifx.data.readers.formats import PICTURE_SUFFIXES, TARGETS, Target, TargetKind
from aifx.data.readers.pictures import Picture
from aifx.data.readers.rows import input_file, read_rows
from aifx.data.readers.sources import SourceFile, name_of
from aifx.data.splits import SPLIT_FOLDERS, Split, split_folders
from aifx.data.versions.catalog import DatasetPart

logger = logging.getLogger(__name__)

SEPARATOR = ";"  # between the names in a cell of the column `labels`


@dataclass(frozen=True)
class Example(Picture):
    """A picture, what it shows, and the split that its folder or its row names.

    Attributes:
        cluster: of near-duplicates, which are in one split; None if it is not known.
    """

    target: Target
    split: Split | None
    cluster: str | None = field(default=None, kw_only=True)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes that it shows."""
        if isinstance(self.target, tuple):
            return self.target
        return (self.target,) if isinstance(self.target, str) else ()


@dataclass(frozen=True)
class Listing:
    """The pictures that `[data]` names. `target` says what is known of each: a class, several, or a number."""

    name: str
    examples: Sequence[Example]
    target: TargetKind
    classes: tuple[str, ...]  # empty for numbers
    source: SourceFile | DatasetPart | None = None  # the .csv file or the version that lists them; None if a folder


def list_pictures(path: Path, name: str, classes: tuple[str, ...] = (), *, has_all: bool = True) -> Listing:
    """The pictures of a folder of classes, or of a .csv file. Raises DataError.

    Args:
        name: what messages call `path`.
        classes: names of the classes, in order; empty takes those that are found.
        has_all: whether a class without a picture is an error.
    """
    target: TargetKind = "label"
    if path.is_dir():
        examples = list(_folder(path, name))
    elif path.suffix.lower() == ".csv":
        target, examples = read_list(path, name)
    else:
        why = "it takes a folder of pictures, a .csv file that lists them, or an .npz file"
        raise DataError(f"data.path = {name!r} cannot be used", why, f"ls -l {name}")
    if not examples:
        raise DataError(f"{name} has no pictures", f"they are {', '.join(PICTURE_SUFFIXES)}", f"ls {name}")
    source = None if path.is_dir() else input_file(str(path))
    return Listing(name, examples, target, _classes(name, examples, target, classes, has_all), source)


def picture_files(listing: Listing, base: Path) -> list[SourceFile]:
    """The files of these pictures that are there, each once, with what it shows. `base`: as `name_of` takes it."""
    top = Path(os.path.abspath(base))
    pictures = (
        SourceFile(name_of(os.path.abspath(one.path), top), str(one.path), "image", target=one.target, split=one.split)
        for one in listing.examples
        if one.path.is_file()
    )
    return list(dict.fromkeys(pictures))


def list_version(part: DatasetPart, classes: tuple[str, ...] = ()) -> Listing:
    """The pictures of a version of a data set. Rows without a label are left out, with a warning. Raises DataError."""
    target = _target_column(part.manifest.columns, part.reference)
    columns = [target, *(name for name in (ROW, SPLIT, CLUSTER) if part.has_column(name))]
    examples, unlabelled = [], []
    numbers: Counter[Path] = Counter()  # rows of each shard so far
    for shard, batch in part.batches(columns):
        for row, values in enumerate(batch.to_pylist(), numbers[shard]):
            name = f"{part.reference}: row {values.get(ROW, row)}"
            if (value := values[target]) is None:
                unlabelled.append(name)
                continue
            split = None if values.get(SPLIT) is None else part.split_of(values[SPLIT])
            found = _target(value, target, name)
            examples.append(Example(shard, name, found, split, row=row, cluster=values.get(CLUSTER)))
        numbers[shard] += len(batch)
    if unlabelled:
        logger.warning(f"left out {counted(len(unlabelled), 'row')} without a label, such as {unlabelled[0]}")
    if not examples:
        raise DataError(f"{part.reference} has no pictures with a label", "", f"aifx data profile {part.reference}")
    return Listing(part.reference, examples, target, _classes(part.reference, examples, target, classes), part)


def _folder(path: Path, name: str) -> Iterator[Example]:
    """The pictures below folders of classes, which may be in folders of splits."""
    folders = _folders_in(path)
    splits = split_folders(folders)
    if not splits:
        yield from _classes_of(path, name, None)
    elif others := sorted(set(folders) - set(splits)):
        logger.warning(f"{name}: aifx reads {', '.join(splits)}, and not {', '.join(others)}")
    for folder, split in splits.items():
        yield from _classes_of(path / folder, f"{name}/{folder}", split)


def _folders_in(path: Path) -> list[str]:
    return [child.name for child in sorted(path.iterdir()) if child.is_dir() and not child.name.startswith(".")]


def _classes_of(path: Path, name: str, split: Split | None) -> Iterator[Example]:
    """The pictures of each class. A folder without pictures is no class. Raises DataError if there are no folders."""
    if not (folders := _folders_in(path)):
        why = "each class has a folder of its own in it, with its pictures"
        raise DataError(f"{name} has no folders of classes", why, f"mkdir {name}/good {name}/bad")
    others: list[str] = []
    for folder in folders:
        files = list(files_below(path / folder))
        pictures = [file for file in files if file.suffix.lower() in PICTURE_SUFFIXES]
        others += [f"{name}/{file.relative_to(path)}" for file in files if file.suffix.lower() not in PICTURE_SUFFIXES]
        yield from (Example(file, f"{name}/{file.relative_to(path)}", folder, split) for file in pictures)
        if not pictures:
            logger.warning(f"{name}/{folder} has no pictures ({', '.join(PICTURE_SUFFIXES)}), so it is no class")
    if others:
        logger.info(f"{name}: {len(others)} files are no pictures, such as {others[0]}")


def read_list(path: Path, name: str) -> tuple[TargetKind, list[Example]]:
    """The pictures of a .csv list with the columns `file`, one of TARGETS and perhaps `split`. Raises DataError."""
    examples: list[Example] = []
    target: TargetKind = "label"
    for row in read_rows(input_file(str(path))):
        place = f"{name}{row.place.removeprefix(str(path))}"
        target = _target_column(row.values, name, is_list=True)
        file = str(row.values["file"])
        if not file:
            raise DataError(f"{place}: no file", "the column file is empty", "name a picture")
        named = str(row.values.get("split", ""))
        if named and named.lower() not in SPLIT_FOLDERS:
            hint = "train, validation or test"
            raise DataError(f"{place}: no split {named!r}", did_you_mean(named, SPLIT_FOLDERS), hint)
        found = _target(row.values[target], target, place)
        split = SPLIT_FOLDERS[named.lower()] if named else None
        examples.append(Example(path.parent / file, f"{place}: {file}", found, split))
    if not examples:
        hint = "name the pictures below a header: docs/tasks.md"
        raise DataError(f"{name} has no pictures", "no row names a file", hint)
    return target, examples


def _target_column(columns: Collection[str], name: str, *, is_list: bool = False) -> TargetKind:
    """The one of TARGETS that a list or a version has. Raises DataError if there is none, or several."""
    found = [target for target in TARGETS if target in columns]
    if len(found) != 1 or (is_list and "file" not in columns):
        why = f"it has the columns {', '.join(columns)}"
        hint = "name the columns file and label, labels (such as a;b) or value: docs/tasks.md"
        raise DataError(f"{name} does not say what its pictures show", why, hint)
    return found[0]


def _target(value: object, target: TargetKind, place: str) -> Target:
    """The target in the text of a list's cell or in the value of a version's row. Raises DataError."""
    if target == "labels":
        names = value if isinstance(value, list) else str(value).split(SEPARATOR)
        return tuple(sorted({str(name).strip() for name in names} - {""}))
    text = str(value).strip()
    if target == "label":
        if not text:
            raise DataError(f"{place}: no label", "the column label is empty", "name a class")
        return text
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise DataError(f"{place}: {text!r} is not a number", "the column value holds numbers", "label, for classes")


def _classes(
    name: str, examples: Sequence[Example], target: TargetKind, classes: tuple[str, ...], has_all: bool = True
) -> tuple[str, ...]:
    """The names of the classes; none for numbers. Raises DataError for one that `classes` lacks or that has no
    picture."""
    if target == "value":
        return ()
    found = Counter(label for example in examples for label in example.labels)
    # Numbers by value, names by letters.
    in_order = sorted(found, key=lambda label: (int(label), label) if label.isdecimal() else (-1, label))
    known = classes or tuple(in_order)
    if unknown := sorted(set(found) - set(known)):
        first = next(example for example in examples if unknown[0] in example.labels)
        what = f"{first.name}: the class {unknown[0]!r} is not one of data.classes"
        raise DataError(what, did_you_mean(unknown[0], known), "aifx config show    (data.classes = [] takes all)")
    if missing := [label for label in known if not found[label]] if has_all else []:
        why = "data.classes names it"
        raise DataError(f"{name}: a class without images: {missing[0]!r}", why, "aifx config show")
    return known
