"""Loss that the preset `tiny` reaches against `gpt2-10m` in equal time, on the text of the language template.

    python benchmarks/presets.py [--seconds 120] [--seeds 0 1 2] [--steps tiny=400 gpt2-10m=200]
                                 [--set tiny optimizer.learning_rate=0.02 ...]

A step of each is timed in blocks that alternate, and `--seconds` divided by its median is the number of steps; the
machine should do nothing else. `--steps` takes numbers that were measured before, so that the trainings need no idle
machine. Prints bits per byte of validation and test split, by run, and the means.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from aifx.machine.huge_pages import restart_with_huge_pages

SAME = {
    "data.seq_len": 256,
    "data.eval_stride": 128,
    "train.global_batch_size": 4,
    "train.validate_every": 0,
    "checkpoint.every": 0,
    "schedule.kind": "wsd",
    "schedule.warmup_steps": 20,
    "schedule.decay_fraction": 0.5,
    "schedule.final_fraction": 0.0,
}
RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {"optimizer.kind": "muon", "optimizer.learning_rate": 0.01, "optimizer.adam_learning_rate": 0.02},
    "gpt2-10m": {"optimizer.kind": "adamw", "optimizer.learning_rate": 0.001},
}
"""The learning rates are the best of those tried on the validation split (docs/models.md)."""

SPLITS: tuple[Literal["validation", "test"], ...] = ("validation", "test")

PROJECT = """
[project]
name = "presets"

[task]
kind = "language"

[data]
train = ["{text}"]
validation_fraction = 0.05
test_fraction = 0.1
vocab_size = 4096
"""


def main() -> None:
    restart_with_huge_pages()  # as `aifx train` does
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as name:
        project = Path(name)
        text = Path(__file__).parents[1] / "templates/language-model/data/moby_dick.txt"
        (project / "aifx.toml").write_text(PROJECT.format(text=text))
        settings = {preset: {**SAME, **recipe, "model.preset": preset} for preset, recipe in RECIPES.items()}
        for preset, *changes in arguments.set:
            settings[preset] |= {key: json.loads(value) for key, value in (change.split("=", 1) for change in changes)}
        if arguments.steps:
            steps = {preset: int(count) for preset, count in (s.split("=") for s in arguments.steps)}
        else:
            step_s = time_steps(project, settings)
            steps = {preset: round(arguments.seconds / s) for preset, s in step_s.items()}
            report(seconds_per_step=step_s, steps=steps, load=os.getloadavg()[0])
        for preset, count in steps.items():
            runs = [train(project, f"{preset}-{seed}", settings[preset], count, seed) for seed in arguments.seeds]
            means = runs and {split: statistics.fmean(run[split] for run in runs) for split in SPLITS}
            report(preset=preset, steps=count, seeds=arguments.seeds, mean=means)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", nargs="+", metavar="PRESET=STEPS")
    parser.add_argument("--set", nargs="+", action="append", default=[], metavar=("PRESET", "KEY=VALUE"))
    return parser.parse_args()


def time_steps(project: Path, settings: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The median time of a step, in seconds."""
    from aifx.benchmarking.suites import SUITES, Bench
    from aifx.benchmarking.train.rounds import Series
    from aifx.benchmarking.train.subject import Subject

    series = {}
    for preset, values in settings.items():
        chosen = [f"{key}={value}" for key, value in values.items()]
        bench = Bench(SUITES["train"], False, {"set": chosen}, folder=project)
        subject = Subject(bench, bench.config, project / preset)
        subject.begin()
        series[preset] = Series(subject.step)
        series[preset].warm(2.0)
    for _ in range(8):
        for one in series.values():
            one.block(0.0, 6)
    return {preset: one.median_s for preset, one in series.items()}


def train(project: Path, run: str, settings: dict[str, Any], steps: int, seed: int) -> dict[str, float]:
    """Bits per byte of the trained model on each split."""
    import aifx

    settings = {**settings, "train.num_steps": steps, "train.seed": seed}
    aifx.train(project, run=run, settings=settings)
    found = {split: aifx.evaluate(project / "runs" / run, split=split).metrics["bits_per_byte"] for split in SPLITS}
    report(run=run, steps=steps, **found)
    return found


def report(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
