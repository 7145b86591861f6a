"""Answers about pictures of the user's own, and the training that fits them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from aifx.core.errors import DataError, UsageError

if TYPE_CHECKING:
    from aifx.data.picture_lists import Example, Listing

Flip: TypeAlias = Literal["none", "horizontal", "vertical", "both"]

MINUTES = 5.0
"""A training takes about so long on two cores, or less, unless `--answer minutes` says otherwise."""

SHARE_OF_STEPS = 0.75
"""Share of these minutes for steps. Decoding, compilation, validation and processors slower than a Zen 4 take the
rest."""

MOST_OPENED = 1000
"""Pictures whose headers tell the sizes of all."""

FEWEST_DECODED, DECODED_PIXELS = 100, 300_000_000
"""Pictures that tell the brightness and the symmetry of all: the first number, or as many as have so many pixels."""

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


def picture_answers(path: Path, answers: Mapping[str, Any], margin: float) -> dict[str, Any]:
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
    gate = _value_gate(listing, margin) if listing.target == "value" else _class_gate(listing, counts, is_balanced)
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


def _value_gate(listing: Listing, margin: float) -> dict[str, Any]:
    """The objective of pictures with numbers, and a gate that their mean does not pass."""
    numbers = [float(example.target) for example in listing.examples if isinstance(example.target, float)]
    centre = sum(numbers) / len(numbers)
    error = sum(abs(number - centre) for number in numbers) / len(numbers)
    return {
        "objective": "regression",
        "gate": f"mean_absolute_error <= {float(f'{(1 - margin) * error:.3g}'):g}",
        "lowest_gate": f"mean_absolute_error <= {float(f'{2 * error:.3g}'):g}",
        "why_gate": f"the mean of all pictures is off by {error:.3g}",
    }
