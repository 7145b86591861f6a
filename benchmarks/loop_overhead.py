"""What the training loop costs over the bare compiled step: records, metrics.jsonl, log, live panel, checkpoints.

    python benchmarks/loop_overhead.py [--steps 100] [--rounds 7] [--set section.key=value ...]

The bare step runs on one batch that lies on the device already; the loop reads its batches. `loop` writes metrics and
draws the panel; `loop + checkpoints` also saves in the background every 50 steps, the last save waited for. Rounds
alternate, and a ratio is that of a round's loop to the mean of the bare rounds beside it, so that a machine that drifts
tells on both.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

GOALS = {"loop": 1.01, "loop + checkpoints": 1.03}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.settings)
        bench.bare(20)
        times: dict[str, list[float]] = {"bare": [], "loop": [], "loop + checkpoints": []}
        kinds: dict[str, Callable[[int], float]] = {
            "loop": bench.loop,
            "loop + checkpoints": bench.loop_with_checkpoints,
        }
        ratios: dict[str, list[float]] = {name: [] for name in kinds}
        for _ in range(arguments.rounds):
            before = bench.bare(arguments.steps)
            times["bare"].append(before)
            for name, run in kinds.items():
                took = run(arguments.steps)
                after = bench.bare(arguments.steps)
                times[name].append(took)
                times["bare"].append(after)
                ratios[name].append(took / ((before + after) / 2))
                before = after
    for name, values in times.items():
        sys.stdout.write(f"{name:20} {statistics.median(values) * 1e3:8.2f} ms a step\n")
    for name, values in ratios.items():
        spread = f"{min(values):.4f} to {max(values):.4f}"
        sys.stdout.write(f"{name:20} {statistics.median(values):8.4f} of bare   ({spread}; goal {GOALS[name]})\n")


class Bench:
    """One compiled step, and ways to run it."""

    def __init__(self, folder: Path, settings: list[str]) -> None:
        os.environ["AIFX_CACHE_DIR"] = str(folder / "cache")
        from aifx.config import load_config
        from aifx.parallel import make_mesh, place_batch
        from aifx.project import Project
        from aifx.scaffold import find_template, scaffold
        from aifx.tasks.registry import create_task
        from aifx.train.beginning import initialize
        from aifx.train.state import abstract_state
        from aifx.train.step import lower_step, make_recipe

        scaffold(folder / "project", find_template("language-model"), data={}, ask=False, quiet=True)
        self.project = Project(folder / "project")
        self.config = load_config(self.project, ["train.validate_every=0", *settings])
        task = create_task(self.config, self.project, folder, say=lambda _: None)
        self.recipe = make_recipe(self.config, task, make_mesh("all"))
        abstract = abstract_state(self.recipe.specs, self.recipe.optimizer, self.recipe.mesh)
        self.rows = slice(0, self.config.train.global_batch_size)
        batch = task.source("train").read(0, self.rows)
        self.step_fn: Any = lower_step(self.recipe, abstract, batch).compile()
        self.batch = place_batch(batch, self.recipe.mesh)
        self.state = initialize(self.recipe, abstract)

    def bare(self, steps: int) -> float:
        """Seconds a step of the compiled program alone."""
        started = time.perf_counter()
        for _ in range(steps):
            self.state, numbers = self.step_fn(self.state, self.batch)
        numbers.block_until_ready()
        return (time.perf_counter() - started) / steps

    def loop(self, steps: int) -> float:
        return self._loop(steps, 0)

    def loop_with_checkpoints(self, steps: int) -> float:
        return self._loop(steps, 50)

    def _loop(self, steps: int, save_every: int) -> float:
        """Seconds a step of the loop as `aifx train` runs it at a terminal."""
        from rich.console import Console

        from aifx.checkpoint import Checkpoints
        from aifx.commands.panel import Panel
        from aifx.data import prefetch
        from aifx.hardware import cpu_peak
        from aifx.train.loop import Loop
        from aifx.train.meter import Meter
        from aifx.train.observers import LogFile, MetricsFile
        from aifx.train.records import RunInfo
        from aifx.train.signals import StopSignals
        from aifx.train.story import Story
        from aifx.train.validation import Progress, Validator

        run = self.project.run("bench")
        shutil.rmtree(run.path, ignore_errors=True)
        config = replace(
            self.config,
            train=self.config.train.model_copy(update={"num_steps": steps}),
            checkpoint=self.config.checkpoint.model_copy(update={"every": save_every}),
        )
        checkpoints: Any = Checkpoints(run.checkpoints, config.checkpoint) if save_every else Unsaved()
        with open(os.devnull, "w") as nowhere:
            panel = Panel(Console(file=nowhere, force_terminal=True, width=80))
            story = Story(run, [MetricsFile(run), LogFile(run), panel])
            task = self.recipe.task
            flops = task.model.flops(task.batch_shape())
            info = RunInfo(run, config, 0, 0, steps, task.unit, 0, flops, cpu_peak(), "cpu", "float32")
            meter = Meter(info, 0, None)
            validator = Validator(self.recipe, 0, lambda: False)
            loop = Loop(
                config, self.recipe, self.step_fn, meter, checkpoints, validator, story, StopSignals(), Progress()
            )
            story.event("start", step=0)
            story.start(info)
            batches = prefetch(task.source("train"), range(steps), self.rows)
            started = time.perf_counter()
            self.state = loop.run(self.state, batches, 0).state
            checkpoints.wait()
            took = (time.perf_counter() - started) / steps
            story.end(None)
        return took


class Unsaved:
    """In place of checkpoints where their cost is not what is measured."""

    def save(
        self, step: int, state: Any, *, host: Mapping[str, Any], validation_loss: float | None, force: bool
    ) -> None:
        pass

    def wait(self) -> bool:
        return True


if __name__ == "__main__":
    main()
