"""Answers that follow from data of the user's own: `aifx init --answer data=PATH`."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from aifx.core.errors import DataError, UsageError

Answers: TypeAlias = dict[str, Any]

QUESTION = "data"

MOST_OPENED = 1000
"""Pictures whose headers tell the sizes of all."""

MOST_PIXELS = 128 * 128
"""Of the images that a small network on a CPU is given."""

EPOCHS, BATCH_SIZE = 20, 64
"""Of the training that the template of images describes."""


def answers_from_data(template: str, answers: Mapping[str, Any], destination: Path) -> Answers:
    """What the template needs to know of the data that the answers name; nothing if they name none.

    Raises UsageError, DataError.
    """
    read = READERS.get(template)
    if read is None or not answers.get(QUESTION):
        return {}
    path = Path(answers[QUESTION]).expanduser()
    if not path.exists():
        raise UsageError(f"--answer data={path}: there is no such file or folder", "", f"ls {path.parent}")
    # As `data.path` has it, which is relative to the project; never copied, since it may be large.
    return {QUESTION: os.path.relpath(path.resolve(), destination.resolve()), **read(path)}


def _images(path: Path) -> Answers:
    """Classes, channels, a size and a gate for a folder or list of pictures."""
    from aifx.data.image_files import list_pictures

    listing = list_pictures(path, str(path))
    if listing.target != "label":
        why = f"it has the column {listing.target}, and this template's pictures have one label each"
        raise DataError(
            f"{path} does not fit the template", why, "write [data] and [objective] yourself: docs/tasks.md"
        )
    counts = Counter(example.target for example in listing.examples)
    if len(counts) < 2:
        raise DataError(f"{path} has one class only", f"every picture is {listing.classes[0]!r}", "add another class")
    majority = max(counts.values()) / counts.total()
    steps = min(max(EPOCHS * counts.total() // BATCH_SIZE, 150), 900)
    size, channels = _shape([example.path for example in listing.examples])
    return {
        "classes": list(listing.classes),
        "image_size": list(size),
        "channels": channels,
        "num_pictures": counts.total(),
        "majority": f"{majority:.2f}",
        "gate": f"{math.ceil(100 * (majority + (1 - majority) / 5)) / 100:.2f}",
        "num_steps": steps,
    }


def _shape(paths: Sequence[Path]) -> tuple[tuple[int, int], int]:
    """A height and width like those of the pictures, made smaller if they are large; and 1 channel if all are grey."""
    from aifx.data.pictures import BadPicture, is_grey, open_picture

    sizes, all_grey = [], True
    for path in paths[:: -(-len(paths) // MOST_OPENED)]:
        with suppress(BadPicture), open_picture(path) as picture:
            sizes.append((picture.height, picture.width))
            all_grey = all_grey and is_grey(picture)
    if not sizes:
        raise DataError(f"{paths[0]} cannot be used", "and so it is with the other pictures", f"file {paths[0]}")
    height, width = (median(side) for side in zip(*sizes, strict=True))
    scale = min(1.0, math.sqrt(MOST_PIXELS / (height * width)))
    return (max(8, 8 * round(scale * height / 8)), max(8, 8 * round(scale * width / 8))), 1 if all_grey else 3


READERS: Mapping[str, Callable[[Path], Answers]] = {"vision-inspection": _images}
"""By template: what it needs to know of a file or folder."""
