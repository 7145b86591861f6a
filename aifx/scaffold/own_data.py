"""Answers that follow from data of the user's own: `aifx init --answer data=PATH`."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

from aifx.core.errors import DataError, UsageError
from aifx.core.project import Project

if TYPE_CHECKING:
    from aifx.data.image_files import Listing

Answers: TypeAlias = dict[str, Any]

QUESTION = "data"

OF_DATA = {"target", "time", "series", "horizon"}
"""Answers about the file that `data` names."""

MARGIN = 0.05
"""A gate asks for so much more macro F1 than the most frequent class has, or so much less error, as a share, than the
mean or the seasonal naive."""

MOST_OPENED = 1000
"""Pictures whose headers tell the sizes of all."""

MOST_PIXELS, MOST_PIXELS_OF_SMALL = 128 * 192, 128 * 128
"""Of the images that a network on a CPU is given. Pictures of more than the second number are large: what matters on
them may be small, so the template describes a network that reads maxima of local contrast."""

EPOCHS, BATCH_SIZE = 20, 64
"""Of the training that the template of images describes for small ones."""

STEPS_OF_LARGE = 400

TABLE_SHARES = {"validation_fraction": 0.15, "test_fraction": 0.2}
"""Of the rows of a table that are held out."""

TABLE_VALIDATIONS, TABLE_PATIENCE = 20, 5
"""Validations of a training on a table, and how many without improvement end it."""


def answers_from_data(template: str, answers: Mapping[str, Any], destination: Path) -> Answers:
    """What the template needs to know of the data that the answers name; nothing if they name none.

    Raises UsageError, DataError.
    """
    read = READERS.get(template)
    if read is None or not answers.get(QUESTION):
        for key in sorted(OF_DATA & answers.keys()):
            raise UsageError(f"--answer {key} requires --answer data", "it is about that file", "--answer data=FILE")
        return {}
    path = Path(answers[QUESTION]).expanduser()
    if not path.exists():
        raise UsageError(f"--answer data={path}: there is no such file or folder", "", f"ls {path.parent}")
    # A relative path is one from the project, as in `data.path`. The data is never copied, since it may be large.
    found = str(path) if path.is_absolute() else os.path.relpath(path.resolve(), destination.resolve())
    return {QUESTION: found, **read(path, answers)}


def _images(path: Path, answers: Mapping[str, Any]) -> Answers:
    """Objective, classes, channels, a size and a gate for a folder or list of pictures."""
    from aifx.data.image_files import list_pictures

    listing = list_pictures(path, str(path))
    count = len(listing.examples)
    height, width, channels = _shape([example.path for example in listing.examples])
    is_large = height * width > MOST_PIXELS_OF_SMALL
    scale = min(1.0, math.sqrt(MOST_PIXELS / (height * width)))
    return {
        "classes": list(listing.classes),
        "image_size": [max(8, 8 * round(scale * side / 8)) for side in (height, width)],
        "channels": channels,
        "is_large": is_large,
        "num_pictures": count,
        "num_steps": STEPS_OF_LARGE if is_large else min(max(EPOCHS * count // BATCH_SIZE, 150), 900),
        **(_value_gate(listing) if listing.target == "value" else _class_gate(listing, is_balanced=is_large)),
    }


def _class_gate(listing: Listing, *, is_balanced: bool) -> Answers:
    """The objective of pictures with classes, and a gate above what is reached without looking at a picture.

    `is_balanced`: a picture with one class is drawn from each class as often, so the gate counts each class as much.
    """
    counts = Counter(label for example in listing.examples for label in example.labels)
    if len(counts) < 2:
        why = f"every picture is {listing.classes[0]!r}" if listing.classes else "no picture has a label"
        raise DataError(f"{listing.name} has one class only", why, "add another class")
    if listing.target == "label" and is_balanced:
        objective, metric, chance = "classification", "balanced_accuracy", 1 / len(counts)
        why = f"chance is {chance:.2f}"
    elif listing.target == "label":
        objective, metric, chance = "classification", "accuracy", max(counts.values()) / counts.total()
        why = f"the most frequent class is {chance:.2f} of the pictures"
    else:
        objective, metric = "multilabel", "average_precision"
        chance = sum(counts.values()) / len(counts) / len(listing.examples)  # of any order: the share with the class
        why = f"a class is on {chance:.2f} of the pictures, on average"
    gate = math.ceil(100 * (chance + (1 - chance) / 5)) / 100
    return {
        "objective": objective,
        "gate": f"{metric} >= {gate:.2f}",
        "lowest_gate": f"{metric} >= {chance:.2f}",
        "why_gate": why,
    }


def _value_gate(listing: Listing) -> Answers:
    """The objective of pictures with numbers, and a gate that their mean does not pass."""
    numbers = [float(example.target) for example in listing.examples if isinstance(example.target, float)]
    centre = sum(numbers) / len(numbers)
    error = sum(abs(number - centre) for number in numbers) / len(numbers)
    return {
        "objective": "regression",
        "gate": f"mean_absolute_error <= {float(f'{(1 - MARGIN) * error:.3g}'):g}",
        "lowest_gate": f"mean_absolute_error <= {float(f'{2 * error:.3g}'):g}",
        "why_gate": f"the mean of all pictures is off by {error:.3g}",
    }


def _shape(paths: Sequence[Path]) -> tuple[float, float, int]:
    """The median height and width of the pictures, and 1 channel if all are grey, otherwise 3."""
    from aifx.data.pictures import BadPicture, is_grey, open_picture

    sizes, all_grey = [], True
    for path in paths[:: -(-len(paths) // MOST_OPENED)]:
        with suppress(BadPicture), open_picture(path) as picture:
            sizes.append((picture.height, picture.width))
            all_grey = all_grey and is_grey(picture)
    if not sizes:
        raise DataError(f"{paths[0]} cannot be used", "nor can any other picture", f"file {paths[0]}")
    height, width = (median(side) for side in zip(*sizes, strict=True))
    return height, width, 1 if all_grey else 3


def _table(path: Path, answers: Mapping[str, Any]) -> Answers:
    """The objective, a gate and the settings of a training for a table with a column `target`."""
    if "target" not in answers:
        why, hint = "the template predicts one column of the file", f"--answer data={path} --answer target=COLUMN"
        raise UsageError("--answer data requires --answer target", why, hint)
    import numpy as np

    from aifx.data.sections import TableSection
    from aifx.data.table import TableFormat

    section = TableSection.model_validate({"path": str(path), "target": answers["target"], **TABLE_SHARES})
    with TemporaryDirectory() as assets:
        form, data = TableFormat.open(section, Project(Path.cwd()), Path(assets))
    train, test = data.splits["train"]["targets"], data.splits["test"]["targets"]
    if not len(test):
        raise DataError(f"{path}: {len(train)} rows are too few", "none is held out for the test", "add rows")
    settings = {**TABLE_SHARES, **table_settings(len(train))}
    if classes := form.spec.classes:
        share = float((test == np.argmax(np.bincount(train, minlength=len(classes)))).mean())
        score = 2 * share / (1 + share) / len(classes)  # F1 of the class that is always predicted; others have 0
        gate = f"macro_f1 >= {min(score + MARGIN, 0.99):.2f}"
        return {"objective": "classification", "gate": gate, **settings}
    error = float(np.abs(test).mean()) * form.spec.target_scale
    gate = f"mean_absolute_error <= {float(f'{(1 - MARGIN) * error:.3g}'):g}"
    return {"objective": "regression", "gate": gate, **settings}


def table_settings(rows: int) -> Answers:
    """The model and the training for so many training rows.

    Steps grow with the root of the rows: a large table has more to learn, and a small one is read more often. Few rows
    are learned by heart soon, so a small table gets small batches, a narrow network, more dropout and more weight
    decay. The average of the weights smooths two validations, so that the best one is less a matter of luck.
    """
    validate_every = max(10, round(math.sqrt(rows)))
    num_steps = TABLE_VALIDATIONS * validate_every
    return {
        "num_steps": num_steps,
        "batch_size": _power_of_two(rows / 8, 16, 256),
        "validate_every": validate_every,
        "early_stopping": TABLE_PATIENCE,
        "ema_decay": round(1 - 0.5 / validate_every, 4),
        "learning_rate": 0.003,
        "weight_decay": round(300 / num_steps, 3),
        "warmup_steps": min(50, num_steps // 10),
        "width": _power_of_two(3 * math.sqrt(rows), 32, 256),
        "num_layers": 2 if rows < 1000 else 3,
        "dropout": round(min(max(0.6 - 0.1 * math.log10(rows), 0.1), 0.5), 2),
    }


def _power_of_two(number: float, least: int, most: int) -> int:
    """The power of two that is nearest by ratio, between two others."""
    return min(max(1 << round(math.log2(number)), least), most) if number > 1 else least


def _series(path: Path, answers: Mapping[str, Any]) -> Answers:
    from aifx.scaffold.own_series import series_answers

    return series_answers(path, answers, MARGIN)


READERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Answers]] = {
    "series": _series,
    "tabular": _table,
    "vision-inspection": _images,
}
"""By template: what it needs to know of a file or folder, and of the other answers."""
