"""Labels that a model needs if it chooses the rows that people label, against rows at random.

    python benchmarks/active_learning.py [--seeds 0 1 2 3 4] [--first 100] [--more 100] [--rounds 2] [--steps 200]
    python benchmarks/active_learning.py --table LINES...

4,000 pictures of Fashion-MNIST have no label at first. Each round labels as many more rows, by the data set's own
labels, which stand for people, makes a version with `aifx data label`, trains a new model on it and measures it on the
1,000 pictures of the test. The rows are those of which the model before is least certain, or a random sample. The first
round is the same for both. Every command is one of aifx's; they run in this process, which imports JAX once.

It prints a line of JSON for each model, and at the end the table of docs/explanation/active-learning.md: mean and
standard deviation of the test accuracy over the seeds, and the difference of the pairs. `--table` makes it of the lines
of processes that ran some seeds each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
sys.path.append(str(REPOSITORY / "tests"))
import inprocess  # noqa: E402

ARCHIVE = REPOSITORY / "templates/vision-inspection/data/fashion_mnist_small.npz"
CLASSES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")
ARMS = ("least certain", "random")
PROJECT = """\
[project]
name = "fashion"

[task]
kind = "vision"

[data]
dataset = "fashion"
classes = {classes}
image_size = [28, 28]
channels = 1
validation_fraction = 0.1
test_fraction = 0.0

[augment]
flip = "horizontal"
shift = 2

[model]
channels = [16, 32]
pooling = "max"
dropout = 0.4

[objective]
label_smoothing = 0.1

[optimizer]
kind = "muon"
learning_rate = 0.02
adam_learning_rate = 0.002
weight_decay = 0.1
ema_decay = 0.95

[train]
num_steps = {steps}
global_batch_size = 32
"""


class Project:
    """A project whose data set people label.

    Args:
        folder: a new folder.
        steps: of each training.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = folder
        (folder / "aifx.toml").write_text(PROJECT.format(classes=json.dumps(CLASSES), steps=steps))

    def aifx(self, *args: str) -> Any:
        """The document that a command prints."""
        done = inprocess.run([*args, "--json"], self.folder, os.environ)
        if done.returncode:
            raise SystemExit(f"aifx {' '.join(args)} exits with {done.returncode}: {done.stderr}{done.stdout}")
        return json.loads(done.stdout)

    def label(self, labels: dict[str, str]) -> None:
        """Label each row, as people do, and make a version with the labels."""
        lines = [json.dumps({"row": row, "label": label, "labeller": "oracle"}) for row, label in labels.items()]
        (self.folder / "labels.jsonl").write_text("\n".join(lines) + "\n")
        self.aifx("data", "label", "import", "fashion", "labels.jsonl")
        self.aifx("data", "label", "apply", "fashion")

    def train(self, run: str, seed: int) -> float:
        """Accuracy on the test."""
        self.aifx("train", "--run", run, "--set", f"train.seed={seed}")
        return float(self.aifx("eval", "--run", run, "--data", "test")["datasets"][0]["metrics"]["accuracy"])

    def certainties(self, run: str) -> dict[str, float]:
        """The probability of the likeliest class, by row."""
        shards = sorted(str(path) for path in self.version.glob("shards/*.parquet"))
        self.aifx("predict", *shards, "--run", run, "--output", "predictions.jsonl")
        lines = (self.folder / "predictions.jsonl").read_text().splitlines()
        return {found["_row"]: found["probability"] for found in map(json.loads, lines)}

    @property
    def version(self) -> Path:
        """The folder of the latest version."""
        datasets = self.folder / "datasets/fashion"
        return datasets / (datasets / "latest").read_text().strip()


def write_pictures(folder: Path, count: int) -> dict[str, str]:
    """The first pictures of the training split without a label, and the test by class. Returns the labels by name."""
    with np.load(ARCHIVE) as archive:
        train, test = (archive[f"{split}_images"] for split in ("train", "test"))
        labels, test_labels = (archive[f"{split}_labels"] for split in ("train", "test"))
    (folder / "pictures").mkdir()
    truth = {}
    for number, (image, label) in enumerate(zip(train[:count], labels, strict=False)):
        Image.fromarray(image).save(folder / "pictures" / f"{number:04d}.png")
        truth[f"{number:04d}.png"] = CLASSES[label]
    for number, (image, label) in enumerate(zip(test[:count], test_labels, strict=False)):
        (folder / "test" / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "test" / CLASSES[label] / f"{number:04d}.png")
    return truth


def collect(folder: Path, steps: int, count: int = 4000) -> tuple[Project, dict[str, str]]:
    """A project with the pictures as a data set, and the true label of each row."""
    import pyarrow.parquet as parquet

    truth = write_pictures(folder, count)
    project = Project(folder, steps)
    project.aifx("data", "add", "fashion", "pictures", "--license", "MIT")
    rows: dict[str, str] = {}
    for path in sorted(project.version.glob("shards/*.parquet")):
        table = parquet.read_table(path, columns=["_row", "_source"])
        names = (source.rpartition("/")[2] for source in table["_source"].to_pylist())
        rows |= dict(zip(table["_row"].to_pylist(), (truth[name] for name in names), strict=True))
    return project, rows


def begin(project: Project, truth: dict[str, str], seed: int, first: int) -> tuple[list[str], float]:
    """The round of both arms: random rows, and the accuracy of the model that they train."""
    labelled = list(np.random.default_rng(seed).choice(sorted(truth), first, replace=False))
    project.label({row: truth[row] for row in labelled})
    return labelled, project.train("round-0", seed)


def rounds(
    project: Project, truth: dict[str, str], labelled: list[str], arm: str, seed: int, more: int, count: int
) -> Iterator[tuple[int, float]]:
    """The number of labels and the accuracy after each round, in a project that began."""
    random = np.random.default_rng(seed + 1000)
    for number in range(1, count + 1):
        left = sorted(set(truth) - set(labelled))
        if arm == "random":
            new = list(random.choice(left, more, replace=False))
        else:
            certainty = project.certainties(f"round-{number - 1}")
            new = sorted(left, key=lambda row: certainty[row])[:more]
        project.label({row: truth[row] for row in new})
        labelled = [*labelled, *new]
        yield len(labelled), project.train(f"round-{number}", seed)


def table(results: dict[tuple[str, int], dict[int, float]]) -> str:
    """The page's table: mean and deviation over the seeds, and the difference of the pairs."""
    seeds = sorted({seed for _, seed in results})
    lines = ["| labels | least certain | random | difference |", "| --- | --- | --- | --- |"]
    for labels in sorted(results[ARMS[0], seeds[0]]):
        of_arm = {arm: [100 * results[arm, seed][labels] for seed in seeds] for arm in ARMS}
        differences = [one - other for one, other in zip(of_arm[ARMS[0]], of_arm[ARMS[1]], strict=True)]
        cells = [_mean(of_arm[arm]) for arm in ARMS] + [_mean(differences, sign="+")]
        lines.append(f"| {labels} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(values: Sequence[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.1f} ± {deviation:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--table", type=Path, nargs="+", metavar="LINES")
    parser.add_argument("--first", type=int, default=100, help="labels of the first round")
    parser.add_argument("--more", type=int, default=100, help="labels that each round adds")
    parser.add_argument("--rounds", type=int, default=2, help="after the first one")
    parser.add_argument("--steps", type=int, default=200, help="of each training")
    asked = parser.parse_args()
    if asked.table:
        lines = [json.loads(line) for path in asked.table for line in path.read_text().splitlines() if line[:1] == "{"]
    else:
        lines = list(measure(asked))
    results: dict[tuple[str, int], dict[int, float]] = {}
    for line in lines:
        results.setdefault((line["arm"], line["seed"]), {})[line["labels"]] = line["accuracy"]
    print(table(results))


def measure(asked: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for each model."""
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder, "start")
        start.mkdir()
        _, truth = collect(start, asked.steps)
        for seed in asked.seeds:
            base = Path(folder, f"seed-{seed}")
            shutil.copytree(start, base)
            labelled, accuracy = begin(Project(base, asked.steps), truth, seed, asked.first)
            for arm in ARMS:
                place = Path(folder, f"{arm}-{seed}")
                shutil.copytree(base, place)
                yield _line(arm, seed, len(labelled), accuracy)
                project = Project(place, asked.steps)
                for labels, reached in rounds(project, truth, labelled, arm, seed, asked.more, asked.rounds):
                    yield _line(arm, seed, labels, reached)


def _line(arm: str, seed: int, labels: int, accuracy: float) -> dict[str, Any]:
    line = {"arm": arm, "seed": seed, "labels": labels, "accuracy": accuracy}
    print(json.dumps(line), flush=True)
    return line


if __name__ == "__main__":
    main()
