"""Cost of the training loop over the bare compiled step: records, metrics.jsonl, log, live panel; checkpoints.

    python benchmarks/loop_overhead.py [--steps 40] [--rounds 16] [--set section.key=value ...]

The bare step runs on batches that lie on the device; the loop reads its own, writes metrics and draws the panel at a
terminal, as `aifx train` does. Both are sampled step by step, one dispatched ahead, in blocks that alternate; a ratio
is that of a loop's median step to the mean of the bare blocks beside it, the interval a bootstrap over the ratios.
`alone` is the loop over steps that take no time: what the host does, all of it, whether the device waits for it or not.
`loop + checkpoints` also saves in the background every 50 steps, the last save waited for, and is timed as a whole, so
that it is held against the mean of as many bare steps.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from aifx.machine.huge_pages import restart_with_huge_pages

GOALS = {"loop": 1.01, "loop + checkpoints": 1.03}
SAVE_EVERY = 50
ALONE_STEPS = 500


def main() -> None:
    restart_with_huge_pages()  # as `aifx train` does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40, help="steps of a block")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--saving-rounds", type=int, default=4, help="of 100 steps, with checkpoints")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as nowhere:
        os.environ["AIFX_CACHE_DIR"] = f"{name}/cache"
        from rich.console import Console

        from aifx.benchmarking.suites import SUITES, Bench
        from aifx.benchmarking.train.rounds import Looping, Series
        from aifx.benchmarking.train.subject import Subject
        from aifx.commands.train.panel import Panel
        from aifx.scaffold.projects import scaffold

        folder = Path(name) / "project"
        scaffold(folder, "language-model", data={}, ask=False)
        bench = Bench(SUITES["train"], False, {"set": arguments.settings}, folder=folder)
        subject = Subject(bench, bench.config, Path(name) / "run")
        subject.begin()
        panel = Panel(Console(file=nowhere, force_terminal=True, width=80))
        looping, bare = Looping(subject, [panel]), Series(subject.step)
        bare.warm(10.0)
        looping.block(arguments.steps)

        def bare_s() -> float:
            bare.block(0.0, arguments.steps)
            return bare.medians[-1]

        def bare_mean_s() -> float:
            bare.block(0.0, 2 * SAVE_EVERY)
            return statistics.fmean(bare.blocks[-1])

        ratios: dict[str, list[float]] = {name: [] for name in GOALS}
        before = bare_s()
        for _ in range(arguments.rounds):
            loop_s = statistics.median(record.step_time_s for record in looping.block(arguments.steps))
            after = bare_s()
            ratios["loop"].append(loop_s / ((before + after) / 2))
            before = after
        saving = Looping(subject, [panel], save_every=SAVE_EVERY)
        before = bare_mean_s()
        for _ in range(arguments.saving_rounds):
            took_s = saving.whole_s(2 * SAVE_EVERY)
            after = bare_mean_s()
            ratios["loop + checkpoints"].append(took_s / ((before + after) / 2))
            before = after
        alone_s = statistics.median(looping.alone_s(ALONE_STEPS)[0] for _ in range(5))
    step_s = bare.median_s
    sys.stdout.write(f"{'bare':20} {step_s * 1e3:8.2f} ms a step\n")
    sys.stdout.write(f"{'alone':20} {alone_s * 1e3:8.3f} ms a step, {alone_s / step_s:.2%} of it\n")
    for name, seen in ratios.items():
        if seen:
            low, high = interval(seen)
            within = f"{low:.4f} to {high:.4f}; goal {GOALS[name]}"
            sys.stdout.write(f"{name:20} {statistics.median(seen):8.4f} of bare   ({within})\n")


def interval(ratios: list[float]) -> tuple[float, float]:
    """The interval of the median, by resampling."""
    drawn = np.random.default_rng(0).choice(ratios, size=(4000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
