"""Pictures of an inspection that does not exist: surfaces with texture, some of which have a defect.

    python benchmarks/inspection.py FOLDER

draws 2,000 grey surfaces of 256 x 384 pixels as JPEG files in FOLDER/SPLIT/good and FOLDER/SPLIT/defect, where SPLIT is
train, validation or test (70, 15 and 15 %). Each is lit in one of three ways. A quarter has a scratch, a spot or a
crack, of a strength that reaches from hardly visible to obvious. FOLDER/surfaces.csv lists what each picture shows.
Every picture is a function of the seed and its number.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter
from scipy.special import expit

HEIGHT, WIDTH = 256, 384
COUNT = 2000
DEFECTS = ("scratch", "spot", "crack")
LIGHTS = ("even", "side", "lamp")
SPLITS = {"train": 0.70, "validation": 0.15, "test": 0.15}
FINER = 4  # lines are drawn at so many times the resolution, and then averaged
JPEG_QUALITY = 90


def noise(draw: Generator, *sigma: float) -> np.ndarray:
    """Smooth noise of mean 0 and deviation 1 `[HEIGHT, WIDTH]`; `sigma` in pixels along y and x."""
    field: np.ndarray = gaussian_filter(draw.normal(size=(HEIGHT, WIDTH)), sigma, mode="wrap")
    return field / field.std()


def texture(draw: Generator) -> np.ndarray:
    """The reflectance of a brushed surface, about 0.5."""
    brushed = noise(draw, draw.uniform(0.4, 0.8), draw.uniform(6, 24))
    grain, blotches = noise(draw, 0.6, 0.6), noise(draw, 18, 18)
    weights = draw.uniform([0.02, 0.01, 0.01], [0.06, 0.03, 0.03])
    return 0.5 + weights[0] * brushed + weights[1] * grain + weights[2] * blotches


def light(draw: Generator, kind: str) -> np.ndarray:
    """The brightness of each place, about 1."""
    y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
    if kind == "even":
        return np.full_like(x, draw.uniform(0.9, 1.1))
    if kind == "side":
        angle, slope = draw.uniform(0, 2 * np.pi), draw.uniform(0.2, 0.45)
        return 1 + slope * (np.cos(angle) * x + np.sin(angle) * y) / np.sqrt(2)
    (centre_y, centre_x), reach = draw.uniform(-0.6, 0.6, 2), draw.uniform(0.6, 1.2)
    return 0.6 + 0.7 * np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * reach**2))


def drawn(lines: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Lines of `[points, 2]` (x, y) with their widths in pixels, as a mask from 0 to 1."""
    canvas = Image.new("L", (WIDTH * FINER, HEIGHT * FINER))
    pen = ImageDraw.Draw(canvas)
    for points, width in lines:
        pen.line([tuple(point) for point in (points * FINER).tolist()], 255, max(round(width * FINER), 1), "curve")
    return np.asarray(canvas.resize((WIDTH, HEIGHT), Image.Resampling.BOX), np.float64) / 255


def scratch(draw: Generator) -> np.ndarray:
    """A bent line, brighter or darker than the surface: a mask from -1 to 1."""
    start, angle, length = (
        draw.uniform(20, [WIDTH - 20, HEIGHT - 20]),
        draw.uniform(0, 2 * np.pi),
        draw.uniform(40, 200),
    )
    along = np.array([np.cos(angle), np.sin(angle)])
    t = np.linspace(0, 1, 40)[:, None]
    bend = draw.normal(0, 0.12) * length * t * (1 - t) * 4
    points = start + length * t * along + bend * along[::-1] * (1, -1)
    return draw.choice([-1, 1]) * drawn([(points, draw.uniform(0.7, 2))])


def spot(draw: Generator) -> np.ndarray:
    """A dark blot with an irregular edge."""
    centre, radius = draw.uniform(15, [WIDTH - 15, HEIGHT - 15]), draw.uniform(3, 11)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    distance = np.hypot(x - centre[0], (y - centre[1]) * draw.uniform(0.7, 1.4))
    edge = radius * (1 + 0.25 * noise(draw, 3, 3))
    return -expit((edge - distance) / draw.uniform(0.5, 2))


def crack(draw: Generator) -> np.ndarray:
    """A dark jagged line with branches."""

    def walk(start: np.ndarray, angle: float, steps: int) -> np.ndarray:
        turns = angle + np.cumsum(draw.normal(0, 0.35, steps))
        moves = draw.uniform(2, 6, steps)[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
        return np.concatenate([start[None], start + np.cumsum(moves, axis=0)])

    angle = draw.uniform(0, 2 * np.pi)
    stem = walk(draw.uniform(30, [WIDTH - 30, HEIGHT - 30]), angle, int(draw.integers(10, 35)))
    lines = [(stem, draw.uniform(0.8, 1.6))]
    for _ in range(draw.integers(0, 4)):
        start = stem[draw.integers(len(stem))]
        lines.append(
            (walk(start, angle + draw.choice([-1, 1]) * draw.uniform(0.5, 1.2), int(draw.integers(4, 12))), 0.7)
        )
    return -drawn(lines)


def surface(seed: int, number: int, *, is_defective: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """The picture of a number, uint8 `[HEIGHT, WIDTH]`, and what it shows."""
    draw = np.random.default_rng([seed, number])
    lit = str(draw.choice(LIGHTS))
    reflected = texture(draw)
    defect, strength = "", 0.0
    if is_defective:
        defect, strength = str(draw.choice(DEFECTS)), draw.uniform(0.05, 1)
        mask = {"scratch": scratch, "spot": spot, "crack": crack}[defect](draw)
        reflected = reflected * (1 + (0.08 + 0.4 * strength) * gaussian_filter(mask, 0.5))
    seen = reflected * light(draw, lit) * draw.uniform(0.85, 1.15)
    seen += draw.normal(0, 0.012, seen.shape)  # of the camera
    picture = (255 * seen).round().clip(0, 255).astype(np.uint8)
    return picture, {"lighting": lit, "defect": defect, "strength": f"{strength:.3f}"}


def draw_all(folder: Path, count: int = COUNT, seed: int = 0) -> None:
    """Write the pictures and the list of them."""
    draw = np.random.default_rng([seed, count])
    defective = set(draw.permutation(count)[: count // 4].tolist())
    ends = np.cumsum([round(share * count) for share in SPLITS.values()])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "surfaces.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["file", "label", "split", "lighting", "defect", "strength"])
        writer.writeheader()
        for number in range(count):
            split = list(SPLITS)[min(int(np.searchsorted(ends, number, "right")), len(SPLITS) - 1)]
            picture, properties = surface(seed, number, is_defective=number in defective)
            label = "defect" if properties["defect"] else "good"
            path = folder / split / label / f"{number:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path, quality=JPEG_QUALITY)
            writer.writerow({"file": path.relative_to(folder), "label": label, "split": split, **properties})


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw_all(asked.folder, asked.count, asked.seed)
    print(f"{asked.count:,} pictures in {asked.folder}")


if __name__ == "__main__":
    main()
