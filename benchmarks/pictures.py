"""Rate at which pictures become batches, and the time that a training waits for them.

    python benchmarks/pictures.py rate [--count 4000] [--rounds 5]
    python benchmarks/pictures.py wait [--count 2000] [--steps 80]

Both draw photographs: noise in colour whose amplitude falls with its frequency, as that of photographs does, as JPEG
files of quality 90.

`rate` decodes pictures of 224 x 224 pixels into an empty cache and then reads one epoch of training batches, changed
at random; a second epoch follows from the cache. It prints pictures per second, the median of the rounds, each in a
process of its own. The files are in the system's page cache.

`wait` makes a project with `aifx init --template vision-inspection --answer data=FOLDER` for pictures of 400 x 300
pixels, trains it, and prints how much of the steps' time after the first epoch the loop waited for data. The machine
should do nothing else: the load is printed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from side_by_side import AIFX, training_environment

ROWS, SEED, JPEG_QUALITY = 64, 0, 90
CLASSES = ("a", "b")
COMMON = {"flip": "horizontal", "crop": 0.8, "shift": 2, "brightness": 0.2, "contrast": 0.2}
AUGMENT = {"flip, crop, shift, brightness, contrast": COMMON, "the same and rotate": {**COMMON, "rotate": 10}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=("rate", "wait", "round"))
    parser.add_argument("--count", type=int, help="pictures")
    parser.add_argument("--rounds", type=int, default=5, help="of rate")
    parser.add_argument("--steps", type=int, default=80, help="of the training of wait")
    parser.add_argument("--folder", type=Path, help="of the pictures of a round")
    parser.add_argument("--augment", choices=AUGMENT, default="the same and rotate", help="of a round")
    asked = parser.parse_args()
    if asked.subject == "round":
        print(json.dumps(measure_round(asked.folder, AUGMENT[asked.augment])))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure = rate if asked.subject == "rate" else wait
        measure(Path(folder), asked)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


def photograph(number: int, height: int, width: int) -> np.ndarray:
    """A picture uint8 `[height, width, 3]` that is a function of its number."""
    draw = np.random.default_rng([SEED, number])
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)) * max(height, width)
    spectrum = np.fft.rfft2(draw.normal(size=(height, width, 3)), axes=(0, 1)) / np.maximum(frequency, 1)[..., None]
    planes = np.fft.irfft2(spectrum, (height, width), axes=(0, 1)) @ draw.dirichlet((1, 1, 1), 3)
    pixels = 128 + 50 * (planes - planes.mean()) / planes.std()
    return np.asarray(pixels.round().clip(0, 255), np.uint8)


def draw_all(folder: Path, count: int, height: int, width: int) -> None:
    """Write the pictures, one class after the other."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        path = folder / CLASSES[number % len(CLASSES)] / f"{number:05}.jpg"
        Image.fromarray(photograph(number, height, width)).save(path, quality=JPEG_QUALITY)
    size = sum(path.stat().st_size for path in folder.rglob("*.jpg")) / count
    print(f"{count:,} pictures of {width} x {height} pixels, {size / 1000:.1f} kB each")


def rate(folder: Path, asked: argparse.Namespace) -> None:
    draw_all(folder / "pictures", asked.count or 4000, 224, 224)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in AUGMENT}
    for number in range(asked.rounds):
        for name, measured in rounds.items():
            environ = {**training_environment(), "AIFX_CACHE_DIR": str(folder / f"cache-{number}-{len(name)}")}
            options = "--folder", str(folder / "pictures"), "--augment", name
            done = subprocess.run(
                [sys.executable, __file__, "round", *options], env=environ, check=True, capture_output=True
            )
            measured.append(json.loads(done.stdout))
    for name, measured in rounds.items():
        print(f"{name}, pictures/s:")
        for subject in measured[0]:
            rates = [one[subject] for one in measured]
            print(f"  {subject}: {statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})")


def measure_round(folder: Path, augment: dict[str, Any]) -> dict[str, float]:
    """Pictures per second by what was done with them."""
    import grain  # noqa: F401  # takes a second, which a training spends once

    from aifx.config.sections import AugmentSection
    from aifx.core.project import Project
    from aifx.data.augment import augmented
    from aifx.data.images import ImageFormat
    from aifx.data.order import prefetch
    from aifx.data.sections import ImagesSection

    section = ImagesSection(path=folder.name, image_size=(224, 224), validation_fraction=0, test_fraction=0)
    started = time.perf_counter()
    _, data = ImageFormat.open(section, Project(folder.parent), folder)
    decoded_s = time.perf_counter() - started
    count = len(data.splits["train"]["targets"])
    source = augmented(data.source("train", ROWS, seed=SEED), AugmentSection(**augment), data.spec, SEED)
    batches = prefetch(source, range(2 * count // ROWS), slice(0, ROWS))

    def epoch_s() -> float:
        started = time.perf_counter()
        assert sum(1 for _ in islice(batches, count // ROWS)) == count // ROWS
        return time.perf_counter() - started

    first_s, second_s = epoch_s(), epoch_s()
    read = count // ROWS * ROWS
    return {
        "decoded": count / decoded_s,
        "decoded and augmented, first epoch": 1 / (decoded_s / count + first_s / read),
        "augmented from the cache, first epoch": read / first_s,
        "augmented from the cache, second epoch": read / second_s,
    }


def wait(folder: Path, asked: argparse.Namespace) -> None:
    count = asked.count or 2000
    draw_all(folder / "pictures", count, 300, 400)
    environ = {**training_environment(), "AIFX_CACHE_DIR": str(folder / "cache")}

    def aifx(place: Path, *arguments: str) -> None:
        subprocess.run([*AIFX, *arguments], cwd=place, env=environ, check=True, capture_output=True)

    aifx(folder, "init", "project", "--template", "vision-inspection", "--answer", "data=pictures")
    settings = {"train.num_steps": asked.steps, "train.validate_every": 0, "log.every": 1}
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    aifx(folder / "project", "train", *options)
    lines = (folder / "project/runs/main/metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    print(f"first step: {steps[0]['step_time_s']:.2f} s, of which {steps[0]['data_wait_s']:.3f} s for data")
    after = [step for step in steps if step["units"] > count]  # surely after the first epoch of what is not held out
    step_s, wait_s = (sum(step[name] for step in after) / len(after) for name in ("step_time_s", "data_wait_s"))
    print(f"{len(after)} steps after the first epoch: {step_s * 1000:.1f} ms, of which {wait_s * 1000:.2f} ms for data")
    print(f"data wait: {wait_s / step_s:.2%} of the step's time")


if __name__ == "__main__":
    main()
