"""Answers that follow from data of the user's own: `aifx init --answer data=PATH`.

A table, series or pictures decide the model, the training and a gate of their template. Imports NumPy.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from aifx.core.errors import ConfigError, DataError, UsageError
from aifx.core.project import Project
from aifx.data.columns import Table, as_text, infer_kind, is_missing, read_table
from aifx.data.sections import SeriesSection, TableSection
from aifx.data.series import SeriesFormat
from aifx.data.series_windows import SeriesData
from aifx.data.table import TableFormat
from aifx.data.time_grid import infer_grid, parse_parts, parse_time

if TYPE_CHECKING:
    from aifx.data.picture_lists import Example, Listing

Answers: TypeAlias = dict[str, Any]

MARGIN = 0.05
"""A gate asks for so much more macro F1 than the most frequent class has, or so much less error, as a share, than the
mean or the seasonal naive."""

TABLE_SHARES = {"validation_fraction": 0.15, "test_fraction": 0.2}
"""Shares of a table's rows that are held out."""

TABLE_VALIDATIONS, TABLE_PATIENCE = 20, 5
"""Validations of a training on a table, and how many without improvement end it."""


def answers_from_data(template: str, answers: Mapping[str, Any], destination: Path) -> Answers:
    """Answers to the template's questions about the file or folder that the answer `data` names.

    Raises UsageError, DataError.
    """
    path = Path(answers["data"]).expanduser()
    if not path.exists():
        raise UsageError(f"--answer data={path}: there is no such file or folder", "", f"ls {path.parent}")
    # A relative path is one from the project, as in `data.path`. The data is never copied, since it may be large.
    found = str(path) if path.is_absolute() else os.path.relpath(path.resolve(), destination.resolve())
    return {"data": found, **READERS[template](path, answers)}


def table_answers(path: Path, answers: Mapping[str, Any]) -> Answers:
    """The objective, a gate and the settings of a training for a table with a column `target`."""
    if "target" not in answers:
        why, hint = "the template predicts one column of the file", f"--answer data={path} --answer target=COLUMN"
        raise UsageError("--answer data requires --answer target", why, hint)
    section = TableSection.model_validate({"path": str(path), "target": answers["target"], **TABLE_SHARES})
    with TemporaryDirectory() as assets:
        form, data = TableFormat.open(section, Project(Path.cwd()), Path(assets))
    train, test = data.splits["train"]["targets"], data.splits["test"]["targets"]
    if not len(test):
        raise DataError(f"{path}: {len(train)} rows are too few", "none is held out for the test", "add rows")
    if classes := form.spec.classes:
        counts = np.bincount(train, minlength=len(classes))
        share = float((test == np.argmax(counts)).mean())
        score = 2 * share / (1 + share) / len(classes)  # F1 of the class that is always predicted; others have 0
        gate = f"macro_f1 >= {min(score + MARGIN, 0.99):.2f}"
        settings = table_settings(len(train), class_balance(counts.tolist()))
        return {"objective": "classification", "gate": gate, **TABLE_SHARES, **settings}
    error = float(np.abs(test).mean()) * form.spec.target_scale
    gate = f"mean_absolute_error <= {float(f'{(1 - MARGIN) * error:.3g}'):g}"
    return {"objective": "regression", "gate": gate, **TABLE_SHARES, **table_settings(len(train))}


def class_balance(counts: Sequence[int]) -> float:
    """The probability that two rows have different classes, relative to that of equally frequent classes.

    Args:
        counts: rows of each class.
    """
    rows = sum(counts)
    return (1 - sum((count / rows) ** 2 for count in counts)) / (1 - 1 / len(counts))


def table_settings(rows: int, balance: float | None = None) -> Answers:
    """The model and the training for so many training rows, of numbers or of classes with a balance.

    Steps grow with the root of the rows: a large table has more to learn, and a small one is read more often. Few rows
    are learned by heart soon, so a small table gets small batches, a narrow network, more dropout and more weight
    decay. The average of the weights and that of three validations make the best one less a matter of luck.

    Rows of a frequent class teach little: with a class of share p, the information of a row on a linear model of two
    classes is proportional to p (1 - p). So the rows count by their balance, except for the batch: a small one would
    seldom have a row of the rare class. Smaller steps keep a network of classes nearer to its linear part, which log
    loss rewards; networks of numbers had larger errors with them.

    Args:
        balance: of the classes, from `class_balance`.
    """
    batch_size = _power_of_two(rows / 8, 16, 256)
    rows = rows if balance is None else max(1, round(balance * rows))
    validate_every = max(10, round(math.sqrt(rows)))
    num_steps = TABLE_VALIDATIONS * validate_every
    return {
        "num_steps": num_steps,
        "batch_size": batch_size,
        "validate_every": validate_every,
        "early_stopping": TABLE_PATIENCE,
        "best_over": 3,
        "ema_decay": round(1 - 0.5 / validate_every, 4),
        "learning_rate": 0.003 if balance is None else 0.002,
        "weight_decay": round(100 / num_steps, 3),
        "warmup_steps": min(50, num_steps // 10),
        "width": _power_of_two(3 * math.sqrt(rows), 32, 256),
        "num_layers": 2 if rows < 1000 else 3,
        "dropout": round(min(max(0.6 - 0.1 * math.log10(rows), 0.1), 0.5), 2),
    }


def _power_of_two(number: float, least: int, most: int) -> int:
    """The power of two that is nearest by ratio, between two others."""
    return min(max(1 << round(math.log2(number)), least), most) if number > 1 else least


TIME_PARTS = (("year",), ("month",), ("day", "day_of_month", "date_of_month"), ("hour",), ("minute",), ("second",))
"""Names of columns that are a time together, if no column is one by itself: the first alone, or the first few."""

MOST_STEPS = 24
"""Most steps of the forecast. It reaches one season ahead if that is shorter."""

EPOCHS, BATCH_SIZE = 20, 64
"""Epochs and batch size of the training that the template of series describes."""

CONTEXT = 8
"""The model reads so many times what it forecasts."""


def series_answers(path: Path, answers: Mapping[str, Any]) -> Answers:
    """Columns, windows, the split, and a gate that asks for an error smaller by MARGIN than the seasonal naive's.

    Raises UsageError, DataError.
    """
    asked = _asked_horizon(answers)
    table = read_table(path, str(path))
    time = tuple(answers["time"].split(",")) if answers.get("time") else _time(table)
    named = {"time": list(time), **{key: [answers[key]] for key in ("series", "target") if answers.get(key)}}
    for key, names in named.items():
        for name in names:
            table.column(name, f"--answer {key}")
    times = _times(table, time)
    series = answers.get("series") or _series(table, time, times)
    target = answers.get("target") or _target(table, {*time, series})
    season, first, end = _extents(table, times, series, target)
    steps = int(np.median(end - first))
    horizon = asked or max(1, min(season, MOST_STEPS, steps // 20))
    context = max(1, min(CONTEXT * horizon, steps // 4))
    # With "date", series that end early would have fewer values in the test, or none.
    split = "last" if np.ptp(end) > horizon else "date"
    columns = {"time": time[0] if len(time) == 1 else list(time), "value": target, "series": series}
    windows = {"split": split, "context": context, "horizon": horizon}
    section = SeriesSection.model_validate({"path": str(path), **columns, **windows})
    with TemporaryDirectory() as assets:
        form, data = SeriesFormat.open(section, Project(Path.cwd()), Path(assets))
    error = min(_naive_error(data, lag) for lag in form.facts.calendar.grid.seasons)
    return {
        "time_columns": columns["time"],
        "target": target,
        "series": series or "",
        "step": str(form.facts.calendar.grid),
        **windows,
        "num_steps": min(max(EPOCHS * table.num_rows // BATCH_SIZE, 200), 1000) // 10 * 10,
        "pooling": [min(season, context), 1] if 1 < season <= context else [max(1, context // 8), 1],
        "gate": f"mean_absolute_error <= {float(f'{(1 - MARGIN) * error:.3g}'):g}",
    }


def _time(table: Table) -> tuple[str, ...]:
    """The columns of the time: the first whose values all are one, or those of its parts."""
    for name, values in table.values.items():
        with suppress(ValueError):
            if infer_kind(values) != "numeric":
                for value in values:
                    parse_time(value)
                return (name,)
    found = {name.lower(): name for name in table.values}
    parts = [next((found[name] for name in names if name in found), None) for names in TIME_PARTS]
    there = parts[: parts.index(None)] if None in parts else parts
    if there:
        return tuple(part for part in there if part)
    what = f"{table.name}: no column of times such as 1988-12-31 or 1988-12-31T23:00"
    raise DataError(what, f"its columns are {', '.join(table.values)}", "--answer time=COLUMN, or year,month,day")


def _times(table: Table, columns: Sequence[str]) -> np.ndarray:
    """The time of each row, datetime64[us] `[rows]`. Raises DataError naming the line of one that is none."""
    times = []
    for number, row in enumerate(zip(*(table.values[name] for name in columns), strict=True)):
        try:
            times.append(parse_time(row[0]) if len(row) == 1 else parse_parts(row))
        except (ValueError, TypeError) as error:
            what = f"{table.place(number)}: no time in {', '.join(columns)}"
            raise DataError(what, str(error), "correct the row, or --answer time=COLUMN") from None
    return np.array(times, "M8[us]")


def _target(table: Table, others: set[str | None]) -> str:
    """The only column of numbers that is not the time. Raises UsageError if there is no such column, or several."""
    numeric = [name for name, values in table.values.items() if name not in others and infer_kind(values) == "numeric"]
    if len(numeric) == 1:
        return numeric[0]
    why = f"columns of numbers are {', '.join(numeric)}" if numeric else "it has no other column of numbers"
    hint = f"--answer target={numeric[-1] if numeric else 'COLUMN'}"
    raise UsageError(f"{table.name}: which column is to be forecast?", why, hint)


def _series(table: Table, time: Sequence[str], times: np.ndarray) -> str | None:
    """The column that names the series: None if each time is there once. Raises DataError if no column does."""
    if len(np.unique(times)) == len(times):
        return None
    for name, values in table.values.items():
        named = set(zip(times.tolist(), map(as_text, values), strict=True))
        if name not in time and infer_kind(values) != "numeric" and len(named) == len(times):
            return name
    first = set(np.unique(times, return_index=True)[1].tolist())
    twice = next(number for number in range(len(times)) if number not in first)
    what = f"{table.place(twice)}: the time {times[twice]} is also that of a row before"
    hint = "--answer series=COLUMN, if a column of numbers does; otherwise add up the rows of a time"
    raise DataError(what, "no column of texts names several series", hint)


def _asked_horizon(answers: Mapping[str, Any]) -> int | None:
    """The steps of `--answer horizon`. Raises UsageError."""
    text = str(answers.get("horizon") or "")
    if text and not (text.isdecimal() and int(text) > 0):
        raise UsageError(f"--answer horizon={text} is no number of steps", "it is 1 or more", "--answer horizon=18")
    return int(text) if text else None


def _extents(table: Table, times: np.ndarray, series: str | None, target: str) -> tuple[int, np.ndarray, np.ndarray]:
    """The shortest season in steps, and the place of each series' first row and that after its last value `[series]`.

    Raises DataError for too few rows.
    """
    names = np.array([""] * len(times) if series is None else [as_text(value) for value in table.values[series]])
    which = np.unique(names, return_inverse=True)[1]
    order = np.argsort(which, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(which[order])) + 1)
    try:
        grid = infer_grid([times[part] for part in parts])
    except ValueError as error:
        raise DataError(f"{table.name}: too few rows", str(error), "add rows") from None
    places, _ = grid.places(times)
    is_known = ~np.array([is_missing(value) for value in table.values[target]])
    first = np.array([places[part].min() for part in parts])
    end = np.array([max(places[part][is_known[part]], default=places[part].min()) + 1 for part in parts])
    return grid.seasons[0], first, end


def _naive_error(data: SeriesData, season: int) -> float:
    """The mean absolute error of the value a season before, over the test split, in the unit of the data."""
    naive = data.naive("test", season)
    source = data.source("test", len(naive), seed=None)
    batch = source.read(0, slice(0, len(naive)))
    off = np.abs(naive - batch["targets"]) * batch["scale"][:, None] * batch["weights"]
    if not batch["weights"].any():
        raise ConfigError(f"{data.name}: no value in the test split", "the gate follows from some", "add rows")
    return float(off.sum()) / float(batch["weights"].sum())


Flip: TypeAlias = Literal["none", "horizontal", "vertical", "both"]

MINUTES = 5.0
"""A training takes about so long on two cores, or less, unless `--answer minutes` says otherwise."""

SHARE_OF_STEPS = 0.75
"""Share of these minutes for steps. Decoding, compilation, validation and processors slower than a Zen 4 take the
rest."""

MOST_OPENED = 1000
"""Most pictures whose headers are read for the sizes."""

FEWEST_DECODED, DECODED_PIXELS = 100, 300_000_000
"""Pictures are decoded for brightness and symmetry until both are reached, or all are."""

THUMBNAIL = 24
"""Pixels a side, by which pictures are compared with their mirror images."""

LARGEST_SMALL = 64 * 64
"""Pixels. Of larger pictures, the first convolution of the network makes the sides four times smaller."""

SMALLEST_SIDE = 28
"""Pixels. Smaller pictures are enlarged, so that a shift or a turn by part of a pixel makes another picture."""

MOST_PIXELS = 192 * 256
"""Most pixels of the images that a network on a CPU is given."""


@dataclass(frozen=True)
class Network:
    """A residual network for a kind of pictures.

    Attributes:
        widths: of its stages.
        pixel_s: seconds of a training step per pixel on two cores. An AMD EPYC (Zen 4) took a sixth less, 2026-12-01.
    """

    widths: tuple[int, ...]
    pixel_s: float


SMALL, LARGE = Network((32, 64, 128), 1.7e-6), Network((32, 64, 128, 256), 0.55e-6)
MARKS = Network((16, 32), 0.32e-6)
"""For large pictures whose class a thumbnail does not show, such as surfaces with scratches: the maxima of few stages
learn from a small place, where those of four stages stay at chance."""

PICTURE_S = 0.3e-3
"""Seconds of a training step per picture, however small."""

FEWEST_EPOCHS, MOST_EPOCHS = 15, 20
"""Large pictures are reduced until the time lasts for the first number. More than the second overfits small sets."""

FEWEST_STEPS = 200

UNEQUAL = 1.5
"""Classes are unequal if the largest has so many times the pictures of the smallest."""

FAITHFUL = 0.6
"""A mirror image is one more picture of its class if its nearest neighbour is of that class this often, as a share of
the picture's own neighbour, both above chance."""

LEAST_SKILL = 0.1
"""Least share of nearest neighbours of the same class, above chance, for thumbnails to show the class."""


def picture_answers(path: Path, answers: Mapping[str, Any]) -> Answers:
    """Objective, classes, a gate and the settings of a training for a folder or list of pictures.

    Raises UsageError, DataError.
    """
    from aifx.data.picture_lists import list_pictures

    minutes = _asked_minutes(answers)
    listing = list_pictures(path, str(path))
    sample = _sample(listing.examples)
    flip = mirrored(sample.pixels, sample.targets)
    counts = Counter(label for example in listing.examples for label in example.labels)
    is_balanced = listing.target == "label" and max(counts.values()) >= UNEQUAL * min(counts.values())
    gate = _value_gate(listing) if listing.target == "value" else _class_gate(listing, counts, is_balanced)
    return {
        "classes": list(listing.classes),
        "channels": sample.channels,
        "num_pictures": len(listing.examples),
        "is_balanced": is_balanced,
        **gate,
        **picture_settings(len(listing.examples), sample.height, sample.width, minutes, is_seen=flip is not None),
        "pixel_mean": [round(float(mean), 3) for mean in sample.pixels.mean(axis=(0, 1, 2))],
        "pixel_std": [max(round(float(std), 3), 0.01) for std in sample.pixels.std(axis=(0, 1, 2))],
        **({"flip": flip} if flip else {}),
    }


def picture_settings(count: int, height: float, width: float, minutes: float, *, is_seen: bool) -> dict[str, Any]:
    """The size of the images, the model and the training for so many pictures, and minutes on two cores.

    As many steps as the time allows, up to MOST_EPOCHS. If there is time for few epochs, large pictures become smaller.
    Weight decay is by step, so that its effect on the weights is the same after any number of steps.

    Args:
        is_seen: whether a thumbnail shows the class of a picture.
    """
    seconds = SHARE_OF_STEPS * 60 * minutes
    is_large = height * width > LARGEST_SMALL
    network = SMALL if not is_large else LARGE if is_seen else MARKS
    most_pixels = min(MOST_PIXELS, max(seconds / (FEWEST_EPOCHS * count) / network.pixel_s, LARGEST_SMALL))
    scale = min(1.0, math.sqrt(most_pixels / (height * width))) if is_large else 1.0
    times = 1 if is_large else math.ceil(SMALLEST_SIDE / min(height, width))
    if scale < 1:
        image_size = [max(8, 8 * round(scale * side / 8)) for side in (height, width)]
    else:
        image_size = [round(times * side) for side in (height, width)]
    batch_size = min(32 if is_large else 64, 1 << round(math.log2(max(count, 128) / 16)))
    step_s = batch_size * (math.prod(image_size) * network.pixel_s + PICTURE_S)
    num_steps = max(min(round(seconds / step_s), MOST_EPOCHS * count // batch_size), FEWEST_STEPS)
    validate_every = max(10, num_steps // 15)
    return {
        "minutes": max(minutes, round(num_steps * step_s / SHARE_OF_STEPS / 60, 1)),
        "image_size": image_size,
        "is_large": is_large,
        "is_seen": is_seen,
        "widths": list(network.widths),
        "num_steps": num_steps,
        "batch_size": batch_size,
        "validate_every": validate_every,
        "warmup_steps": max(10, min(60, num_steps // 10)),
        "ema_decay": round(1 - 14 / num_steps, 4),
        "weight_decay": round(min(150 / num_steps, 0.3), 3),
        "flip": "both" if is_large else "horizontal",
        "rotate": 10 if times > 1 else 0,
        "shift": max(1, round(min(image_size) / 32)) if is_large else times * max(1, round(min(height, width) / 14)),
    }


@dataclass(frozen=True)
class Sample:
    """Some of the pictures.

    Attributes:
        height, width: their median, in pixels.
        channels: 1 if all are grey, otherwise 3.
        pixels: thumbnails of some, float32 `[pictures, THUMBNAIL, THUMBNAIL, channels]`, from 0 to 1.
        targets: of each thumbnail, a class, several classes or a number.
    """

    height: float
    width: float
    channels: int
    pixels: np.ndarray
    targets: Sequence[Any]


def _sample(examples: Sequence[Example]) -> Sample:
    """Every n-th picture that can be read. Raises DataError if none can."""
    from aifx.data.readers.pictures import BadPicture, Geometry, decode, is_grey, open_picture

    opened, sizes, all_grey = [], [], True
    for example in examples[:: -(-len(examples) // MOST_OPENED)]:
        with suppress(BadPicture), open_picture(example.path) as picture:
            sizes.append((picture.height, picture.width))
            all_grey = all_grey and is_grey(picture)
            opened.append(example)
    thumbnails, targets = [], []
    if opened:
        height, width = (float(median(side)) for side in zip(*sizes, strict=True))
        most = max(FEWEST_DECODED, round(DECODED_PIXELS / (height * width)))
        geometry = Geometry(THUMBNAIL, THUMBNAIL, 1 if all_grey else 3, "stretch")
        for example in opened[:: -(-len(opened) // most)]:
            with suppress(BadPicture):
                thumbnails.append(decode(example.path, geometry))
                targets.append(example.target)
    if not thumbnails:
        path = examples[0].path
        raise DataError(f"{path} cannot be used", "nor can any other picture", f"file {path}")
    pixels = np.stack(thumbnails).astype(np.float32) / 255
    return Sample(height, width, pixels.shape[-1], pixels, targets)


def mirrored(pixels: np.ndarray, targets: Sequence[Any]) -> Flip | None:
    """The mirror images that still look like their class, such as "none" for written digits.

    None if thumbnails do not show the class, or if targets are numbers.

    Args:
        pixels: float32 `[pictures, height, width, channels]`.
        targets: of each picture, anything that is equal for pictures of one class.
    """
    names = {target: i for i, target in enumerate(dict.fromkeys(targets))}
    if len(names) < 2 or isinstance(targets[0], float):
        return None
    classes = np.array([names[target] for target in targets])
    weights = 1 / np.bincount(classes)[classes] / len(names)  # each class counts the same
    own = _directions(pixels)

    def skill(images: np.ndarray) -> float:
        """The share of pictures whose nearest neighbour has their class, minus that of chance."""
        likeness = _directions(images) @ own.T
        np.fill_diagonal(likeness, -np.inf)
        hits = classes[likeness.argmax(axis=1)] == classes
        return float((hits * weights).sum()) - 1 / len(names)

    found = skill(pixels)
    if found < LEAST_SKILL * (1 - 1 / len(names)):
        return None
    across, down = (skill(images) >= FAITHFUL * found for images in (pixels[:, :, ::-1], pixels[:, ::-1]))
    return "both" if across and down else "horizontal" if across else "vertical" if down else "none"


def _directions(pixels: np.ndarray) -> np.ndarray:
    """Pictures as vectors `[pictures, numbers]` of mean 0 and length 1."""
    flat = pixels.reshape(len(pixels), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    directions: np.ndarray = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    return directions


def _asked_minutes(answers: Mapping[str, Any]) -> float:
    """The time of `--answer minutes`. Raises UsageError."""
    given = answers.get("minutes")
    with suppress(ValueError):
        minutes = MINUTES if given in (None, "") else float(str(given))
        if 0 < minutes < math.inf:
            return minutes
    raise UsageError(f"--answer minutes={given} is no time", "it is a number above 0", "--answer minutes=10")


def _class_gate(listing: Listing, counts: Counter[str], is_balanced: bool) -> dict[str, Any]:
    """The objective of pictures with classes, and a gate above what is reached without looking at a picture.

    `is_balanced`: a picture with one class is drawn from each class as often, so the gate counts each class as much.
    """
    if len(counts) < 2:
        why = f"every picture is {listing.classes[0]!r}" if listing.classes else "no picture has a label"
        raise DataError(f"{listing.name} has one class only", why, "add another class")
    if is_balanced:
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


def _value_gate(listing: Listing) -> dict[str, Any]:
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


READERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Answers]] = {
    "series": series_answers,
    "tabular": table_answers,
    "vision-inspection": picture_answers,
}
"""The function that reads a file or folder and the other answers, by template."""
