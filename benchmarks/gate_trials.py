"""Rates at which a gate reports a slowdown that is none, and one that is there, on launches of a real training step.

    python benchmarks/gate_trials.py record FILE [--launches 60] [--busy "with what"]
    python benchmarks/gate_trials.py trials FILE ... [--trials 200] [--bound 0.05] [--slower 0.10]

`record` times the step of the language-model template in many short processes, one after the other. `trials` draws
of them that followed each other, gives each pair's one to the one side and the other to the other side at random, and
does with them as `aifx bench train --save` and `aifx bench gate` do: five launches of each side, and more where they
scatter too much or leave the gate in doubt. It asks once with the times as they are, where the gate must stay silent,
and once with all of the second side made longer, where it must not. `apart` takes the sides one after the other
instead, as a baseline of an hour ago and a run of now.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aifx.benchmarking.adaptive import MOST_LAUNCHES, until_decided, until_quiet
from aifx.benchmarking.estimate import LEAST_LAUNCHES, MIDDLE, UNDISTURBED, Launches, estimate
from aifx.benchmarking.fingerprint import Fingerprint
from aifx.benchmarking.results import Measured, Report, Request, Result
from aifx.benchmarking.store import MAX_NOISE, too_noisy

DIGITS = 6

Draw = Callable[[Launches, int, np.random.Generator], tuple[Launches, Launches]]


@dataclass(frozen=True)
class Rates:
    """Shares of the trials.

    Attributes:
        refused: the first side is too noisy to be a baseline.
        alarms: the gate called a regression where there is none, refused or not.
        found: it saw the slowdown, of those that were not refused; None where all were.
        found_of_all: of all.
        launches: that the gate took, in the mean.
    """

    refused: float
    alarms: float
    found: float | None
    found_of_all: float
    launches: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--launches", type=int, default=40)
    recording.add_argument("--slice", type=float, default=3.0, help="seconds of samples in a launch")
    recording.add_argument("--busy", default="", metavar="TEXT", help="what else ran on the machine; none if not given")
    recording.set_defaults(run=record)
    trying = commands.add_parser("trials")
    trying.add_argument("files", type=Path, nargs="+")
    trying.add_argument("--trials", type=int, default=200)
    trying.add_argument("--bound", type=float, default=0.05, metavar="SHARE")
    trying.add_argument("--slower", type=float, default=0.10, metavar="SHARE")
    trying.add_argument("--most", type=int, default=MOST_LAUNCHES, metavar="N", help="launches of each side")
    trying.set_defaults(run=show)
    launching = commands.add_parser("launch")
    launching.add_argument("project", type=Path)
    launching.add_argument("slice", type=float)
    launching.set_defaults(run=launch)
    arguments = parser.parse_args()
    arguments.run(arguments)


def record(given: argparse.Namespace) -> None:
    """Write the launches' samples, in the order in which they ran."""
    from aifx.machine.host import hardware, versions
    from aifx.machine.huge_pages import with_huge_pages
    from aifx.scaffold.projects import scaffold

    machine = hardware([])
    document: dict[str, Any] = {
        "busy": given.busy,
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{machine['cpu']}, {machine['cores']} cores",
        "versions": versions(),
        "launches": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        scaffold(project, "language-model", data={}, ask=False)
        command = [sys.executable, __file__, "launch", str(project), str(given.slice)]
        environ = with_huge_pages(os.environ) or dict(os.environ)  # as training runs
        environ["AIFX_CACHE_DIR"] = str(Path(folder) / "cache")
        for number in range(given.launches):
            answer = subprocess.run(command, env=environ, stdout=subprocess.PIPE, check=True).stdout
            found = {"time": round(time.time()), "load": round(os.getloadavg()[0], 2), **json.loads(answer)}
            document["launches"].append(found)
            middle = np.median(found["samples_s"]) * 1e3
            sys.stderr.write(f"{number + 1} of {given.launches}: {middle:.3f} ms, {len(found['samples_s'])} samples\n")
            given.file.write_text(_lines(document))


def launch(given: argparse.Namespace) -> None:
    """Time the step in this process; the samples on stdout."""
    from aifx.benchmarking.timing import Effort, sample
    from aifx.core.project import Project
    from aifx.kinds import load_config
    from aifx.parallel.layout import local_layout
    from aifx.programs.build import build
    from aifx.tasks.base import training_source
    from aifx.tasks.registry import open_task

    project = Project(given.project)
    config = load_config(project, ())
    task = open_task(config, project, given.project / "run")
    programs = build(config, task, local_layout())
    first = training_source(task, config).read(0, slice(0, config.train.global_batch_size))
    step_fn: Any = programs.train_step.lower().compile()
    batch, (state, frozen) = programs.place(first), programs.init()

    def step() -> Any:
        nonlocal state
        state, numbers = step_fn(state, frozen, batch)
        return numbers

    step().block_until_ready()
    found = sample(step, Effort(given.slice))
    document = {"samples_s": [float(f"{seconds:.{DIGITS}g}") for seconds in found.seconds], "notes": found.notes}
    sys.stdout.write(json.dumps(document))


def interleaved(launches: Launches, count: int, random: np.random.Generator) -> tuple[Launches, Launches]:
    """`count` for each side out of as many pairs that followed each other, at random which of a pair goes where."""
    start = int(random.integers(len(launches) - 2 * count + 1))
    sides: tuple[list[Any], list[Any]] = ([], [])
    for pair in range(start, start + 2 * count, 2):
        swap = int(random.integers(2))
        sides[swap].append(launches[pair])
        sides[1 - swap].append(launches[pair + 1])
    return sides


def apart(launches: Launches, count: int, random: np.random.Generator) -> tuple[Launches, Launches]:
    """`count` in a row for each side, at random which of the two came first and how long ago."""
    first = int(random.integers(len(launches) - 2 * count + 1))
    second = int(random.integers(first + count, len(launches) - count + 1))
    sides = launches[first : first + count], launches[second : second + count]
    return sides if random.integers(2) else sides[::-1]


def trials(
    launches: Launches,
    draw: Draw,
    *,
    bound: float,
    slower: float,
    trials: int,
    most: int = MOST_LAUNCHES,
    seed: int = 0,
) -> Rates:
    """Ask the gate `trials` times about launches of one thing, and again with the second side `slower`.

    Args:
        most: launches of a side.
    """
    random = np.random.default_rng(seed)
    refused, alarms, found = (np.zeros(trials, bool) for _ in range(3))
    counts = []
    for trial in range(trials):
        sides = draw(launches, most, random)
        more = _Launching(sides[0])
        before = until_quiet(more([], {"train": LEAST_LAUNCHES}), more, MAX_NOISE, most)
        refused[trial] = bool(too_noisy(before, MAX_NOISE))
        for factor, answers in ((1.0, alarms), (1 + slower, found)):
            more = _Launching([[factor * seconds for seconds in launch] for launch in sides[1]])
            after, gated = until_decided(before, more([], {"train": before.launches}), bound, (), more, most)
            answers[trial] = bool(gated.regressed)
            counts.append(after.launches)
    accepted = None if refused.all() else float(found[~refused].mean())
    return Rates(float(refused.mean()), float(alarms.mean()), accepted, float(found.mean()), float(np.mean(counts)))


class _Launching:
    """Recorded launches, of which each call takes some more."""

    def __init__(self, launches: Launches) -> None:
        self._launches, self._taken = launches, 0

    def __call__(self, results: list[Result], counts: dict[str, int]) -> Report:
        self._taken += counts["train"]
        taken = [Measured(name="train.step", samples_s=list(one)) for one in self._launches[: self._taken]]
        return Report(
            request=Request(suites=["train"]),
            launches=self._taken,
            time=0.0,
            duration_s=0.0,
            fingerprint=Fingerprint(),
            results=[Result.of(taken)],
        )


def show(given: argparse.Namespace) -> None:
    for file in given.files:
        document = json.loads(file.read_text())
        sys.stdout.write(f"{file.name}: {document['date']}, {document['cpu']}; {document['busy'] or 'idle'}\n")
        launches = read(file)
        middles, undisturbed = (
            [estimate([launch], share).median for launch in launches] for share in (MIDDLE, UNDISTURBED)
        )
        spreads = [np.std(values) / np.mean(values) for values in (middles, undisturbed)]
        sys.stdout.write(
            f"  {len(launches)} launches of {np.median(middles) * 1e3:.2f} ms, "
            f"whose medians scatter by {spreads[0]:.1%} and lower deciles by {spreads[1]:.1%}\n"
        )
        for draw in (interleaved, apart):
            rates = trials(launches, draw, bound=given.bound, slower=given.slower, trials=given.trials, most=given.most)
            found = "-" if rates.found is None else f"{rates.found:.1%}"
            sys.stdout.write(
                f"  {draw.__name__:12} false alarms {rates.alarms:.1%}; {given.slower:.0%} slower found {found} "
                f"(with noisy baselines {rates.found_of_all:.1%}); baselines refused {rates.refused:.1%}; "
                f"{rates.launches:.1f} launches a gate\n"
            )


def _lines(document: dict[str, Any]) -> str:
    """JSON, a launch a line."""
    head = json.dumps({**document, "launches": None}, indent=1).removesuffix("null\n}")
    launches = ",\n".join(json.dumps(launch, separators=(",", ":")) for launch in document["launches"])
    return f"{head}[\n{launches}\n]}}\n"


def read(file: Path) -> list[list[float]]:
    """The samples of a recording, launch by launch."""
    return [launch["samples_s"] for launch in json.loads(file.read_text())["launches"]]


if __name__ == "__main__":
    main()
