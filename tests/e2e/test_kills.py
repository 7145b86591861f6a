"""A run that is killed twenty times equals the uninterrupted run, bit for bit.

It kills one run, with a seed that follows the commit. With LONG=1 it kills fifty: 1,000 kills.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from effort import parts, seed_of_commit
from real_command import HELD, TINY, Command, settings

from aifx.core.json_files import read_jsonl
from aifx.runs.goodput import read_goodput

KILLS, MOST_KILLS = 20, 40
STEPS = 600
TRAIN = ["train", "--json", *settings([*TINY, f"train.num_steps={STEPS}"])]
RUNS = 50
TIMES = {"time", "step_time_s", "units_per_s", "mfu", "ceiling_fraction", "data_wait_s"}
"""Fields of a record that tell of the machine rather than of the model."""


def numbers(run: Path) -> dict[int, dict[str, Any]]:
    """The records of a run by step, without what a clock decided. Each step stands there once."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps)), "a step stands in metrics.jsonl twice, or out of order"
    kept = {}
    for record in records:
        record["validation"] = {k: v for k, v in record.get("validation", {}).items() if not k.endswith("_s")}
        kept[record["step"]] = {k: v for k, v in record.items() if k not in TIMES}
    return kept


@dataclass(frozen=True)
class Aim:
    """A moment to strike at, made before the process starts.

    reached: asked while it runs.
    struck: whether what it left shows that it died there, and not a moment later.
    delay_s: from `reached` to the kill.
    """

    reached: Callable[[], bool]
    struck: Callable[[], bool]
    delay_s: float = 0.0


Aiming = Callable[[Path, Path, random.Random], Aim]
"""A function of (run, cache, random numbers)."""
Started = Callable[[subprocess.Popen[str]], subprocess.Popen[str]]


def last_event(run: Path) -> str:
    events = run / "events.jsonl"
    lines = events.read_text().splitlines() if events.exists() else []
    return str(json.loads(lines[-1])["event"]) if lines else ""


def in_compilation(run: Path, cache: Path, dice: random.Random) -> Aim:
    shutil.rmtree(cache / "jax", ignore_errors=True)  # else it would read what was compiled before
    events = run / "events.jsonl"

    def count() -> int:
        return events.read_text().count('"compile"') if events.exists() else 0

    before = count()
    return Aim(lambda: count() > before, lambda: last_event(run) == "compile")


def in_cache_write(run: Path, cache: Path, dice: random.Random) -> Aim:
    shutil.rmtree(cache / "jax", ignore_errors=True)

    def written() -> bool:
        return any((cache / "jax").glob("jit_train_step-*-cache"))  # small programs are written before

    # The compilation is told to be over once its program was written.
    return Aim(written, lambda: written() and last_event(run) == "compile")


def in_commit(run: Path, cache: Path, dice: random.Random) -> Aim:
    known = set(run.glob("checkpoints/*.unfinished"))

    def writing() -> bool:
        return any(path not in known for path in run.glob("checkpoints/*.unfinished"))

    return Aim(writing, writing, delay_s=dice.choice([0.0, 0.003, 0.006, 0.009]))  # anywhere in it


def in_metrics_write(run: Path, cache: Path, dice: random.Random) -> Aim:
    metrics = run / "metrics.jsonl"
    size = 0

    def grown() -> bool:  # a process that resumes cuts the file first
        nonlocal size
        before, size = size, metrics.stat().st_size if metrics.exists() else 0
        return size > before > 0

    def uncovered() -> bool:
        saved = max((int(p.name) for p in run.glob("checkpoints/*") if p.name.isdigit()), default=0)
        return any(record["step"] > saved for record in read_jsonl(metrics))

    return Aim(grown, uncovered)


def anywhere(run: Path, cache: Path, dice: random.Random) -> Aim:
    strike = time.monotonic() + dice.uniform(0.2, 3.0)
    return Aim(lambda: time.monotonic() >= strike, lambda: True)


def kill_at(aim: Aim, process: subprocess.Popen[str], is_held: Callable[[], bool]) -> bool:
    """False when the process ended before. One that is held will not reach the aim any more."""
    while process.poll() is None and not aim.reached() and not is_held():
        time.sleep(0.0002)
    time.sleep(aim.delay_s)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return not ended


def kill_and_compare(project: Command, cache: Path, started: Started, seed: int) -> tuple[int, dict[str, int]]:
    """Kill a run again and again until it ends. Returns the number of kills, and how many hit each aim."""
    dice = random.Random(seed)
    whole = project.process(*TRAIN, "--run", "whole")
    assert whole.returncode == 0, whole.stderr

    # A cache of its own, so that the killed run compiles and writes its cache under fire.
    hunted = Command(project.cwd, cache)
    run = project.cwd / "runs" / "killed"
    aimed: list[Aiming] = [in_cache_write, in_compilation, in_commit, in_metrics_write]
    struck: Counter[Aiming] = Counter()
    kills = 0
    held, holding = project.cwd / "held", project.cwd / "holding"
    for aiming in cycle([*aimed, anywhere]):
        if kills >= KILLS and (all(struck[a] for a in aimed) or kills == MOST_KILLS):
            break
        if kills >= KILLS and struck[aiming]:
            continue  # on a busy machine some aims need more tries than others
        held.write_text(str((kills + 1) * STEPS // (MOST_KILLS + 1)))  # so that it is not over before it is killed
        holding.unlink(missing_ok=True)
        aim = aiming(run, hunted.cache, dice)
        process = started(hunted.start(*TRAIN, "--run", run.name, before=HELD))
        assert kill_at(aim, process, holding.exists), f"seed {seed}: the run ended by itself after {kills} kills"
        kills += 1
        struck[aiming] += aim.struck()
    held.unlink()
    done = hunted.process(*TRAIN, "--run", "killed")
    assert done.returncode == 0, done.stderr

    assert done.json()["state_digest"] == whole.json()["state_digest"], f"seed {seed}"
    assert done.json()["loss"] == whole.json()["loss"], f"seed {seed}"
    assert numbers(run) == numbers(project.cwd / "runs" / "whole"), f"seed {seed}"
    assert not list(run.glob("checkpoints/*.unfinished")), f"seed {seed}: a stray temporary checkpoint stayed"

    events = read_jsonl(run / "events.jsonl")
    goodput = read_goodput(events)
    between_s = events[-1]["time"] - events[0]["time"]
    assert between_s / 2 < goodput.elapsed_s < 2 * between_s, f"seed {seed}"  # the wall clock is another one
    assert goodput.seconds["unknown"] < goodput.elapsed_s / 2, f"seed {seed}"

    verified = hunted("ckpt", "verify", "--run", "killed", "--json").json()
    assert verified["state_digest"] == whole.json()["state_digest"], f"seed {seed}"
    return kills, {aiming.__name__: count for aiming, count in struck.items()}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", parts(RUNS))
def test_twenty_kills(
    project: Command, tmp_path: Path, started: Started, part: int, record_property: Callable[[str, object], None]
) -> None:
    kills, _ = kill_and_compare(project, tmp_path / "hunted-cache", started, seed_of_commit() + part)
    assert kills >= KILLS
    record_property("kills of a training", kills)
