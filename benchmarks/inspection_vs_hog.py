"""The vision template against HOG features with a support vector machine, on the surfaces of inspection.py.

    python benchmarks/inspection_vs_hog.py FOLDER [--seeds 5] [--search] [--json]

Draws the surfaces into FOLDER/surfaces, unless they are there, and makes the project FOLDER/project of them with `aifx
init`. Trains it once per seed, unchanged; aifx picks the checkpoint by the balanced accuracy on the validation split.
The peer (Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", 2005) has the resolution, cell,
block, kernel and C that are best by the same number. --search looks for them again, in a quarter of an hour. Each then
sees the test split once. Prints a Markdown table. The peer needs scikit-image and scikit-learn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from inspection import HEIGHT, WIDTH, draw_all
from PIL import Image
from side_by_side import aifx

LABELS = ("good", "defect")
SETTINGS_OF_SVM = (("linear", 1e-3), ("linear", 1e-2), ("rbf", 1.0), ("rbf", 10.0))
BEST_OF_HOG = {"reduced": 2, "cell": 32, "block": 2, "kernel": "rbf", "C": 10.0, "class_weight": None}
"""Settings that --search finds."""
MOST_FEATURES = 4000
"""Most features of a picture: more would take minutes per setting, and were no better than chance on these surfaces."""


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    surfaces, project = asked.folder / "surfaces", asked.folder / "project"
    if not (surfaces / "surfaces.csv").exists():
        draw_all(surfaces)
    if not project.exists():
        answers = ("--template", "vision-inspection", "--answer", f"data={surfaces.absolute()}", "--yes")
        aifx(asked.folder, "init", "project", *answers, "--json")
    peer = measure_peer(surfaces, search=asked.search)
    sys.stderr.write(f"HOG and SVM: {peer}\n")
    ours = []
    for seed in range(asked.seeds):
        ours.append(measure_seed(project, seed))
        sys.stderr.write(f"aifx, seed {seed}: {ours[-1]}\n")
    print(json.dumps({"aifx": ours, "peer": peer}) if asked.json else table(ours, peer))


def measure_seed(project: Path, seed: int) -> dict[str, Any]:
    """Balanced accuracy on validation and test, and the seconds of the whole training command."""
    started = time.perf_counter()
    trained = aifx(project, "train", "--run", f"seed-{seed}", "--set", f"train.seed={seed}", "--json")
    seconds = time.perf_counter() - started
    metrics = aifx(project, "eval", "--run", f"seed-{seed}", "--set", "eval.gates=[]", "--json")["metrics"]
    test = {"test": metrics["balanced_accuracy"], "auc": metrics["auc"]}
    return {"validation": trained["best_value"], **test, "step": trained["best_step"], "seconds": round(seconds)}


def measure_peer(surfaces: Path, *, search: bool) -> dict[str, Any]:
    """The setting with the best balanced accuracy on validation, that of its test, and the seconds of it all."""
    started = time.perf_counter()
    setting = BEST_OF_HOG
    if search:
        setting = max(settings_of_hog(surfaces), key=lambda each: score_of_hog(surfaces, each, "validation"))
    scores = {split: score_of_hog(surfaces, setting, split) for split in ("validation", "test")}
    return {**scores, **setting, "seconds": round(time.perf_counter() - started)}


def settings_of_hog(surfaces: Path) -> Iterator[dict[str, Any]]:
    for reduced, cell, block in product((1, 2, 4), (8, 16, 32, 64), (1, 2)):
        rows, columns = (side // reduced // cell - block + 1 for side in (HEIGHT, WIDTH))
        if min(rows, columns) < 1 or 9 * block**2 * rows * columns > MOST_FEATURES:
            continue
        for (kernel, c), weights in product(SETTINGS_OF_SVM, (None, "balanced")):
            svm = {"kernel": kernel, "C": c, "class_weight": weights}
            yield {"reduced": reduced, "cell": cell, "block": block, **svm}


def score_of_hog(surfaces: Path, setting: dict[str, Any], split: str) -> float:
    """Balanced accuracy on the split after a fit to the training split."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    hog = setting["reduced"], setting["cell"], setting["block"]
    machine = SVC(C=setting["C"], kernel=setting["kernel"], class_weight=setting["class_weight"])
    pipeline = make_pipeline(StandardScaler(), machine).fit(*features_of(surfaces / "train", *hog))
    features, labels = features_of(surfaces / split, *hog)
    return float(balanced_accuracy_score(labels, pipeline.predict(features)))


@lru_cache(maxsize=3)
def features_of(folder: Path, reduced: int, cell: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """HOG features `[pictures, features]` and labels `[pictures]` of the pictures in a folder."""
    from skimage.feature import hog

    pictures, labels = read(folder, reduced)
    features = [hog(picture, 9, (cell, cell), (block, block), transform_sqrt=True) for picture in pictures]
    return np.stack(features), labels


def read(folder: Path, reduced: int) -> tuple[list[np.ndarray], np.ndarray]:
    """The pictures `[height, width]` from 0 to 1, and 1 for each that has a defect."""
    paths = [path for label in LABELS for path in sorted((folder / label).glob("*.jpg"))]
    pictures = [np.asarray(Image.open(path).reduce(reduced), np.float32) / 255 for path in paths]
    return pictures, np.array([path.parent.name == LABELS[1] for path in paths], int)


def table(ours: list[dict[str, Any]], peer: dict[str, Any]) -> str:
    rows = [(f"aifx, seed {seed}", one["validation"], one["test"], one["seconds"]) for seed, one in enumerate(ours)]
    rows.append(("aifx, mean", *(statistics.mean(row[i] for row in rows) for i in (1, 2, 3))))
    rows.append(("HOG and SVM", peer["validation"], peer["test"], peer["seconds"]))
    lines = [f"| {name} | {validation:.3f} | {test:.3f} | {seconds:.0f} |" for name, validation, test, seconds in rows]
    return "\n".join(["| balanced accuracy | validation | test | seconds |", "| --- | --- | --- | --- |", *lines])


if __name__ == "__main__":
    main()
