"""A run that is killed again and again is the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Command, settings

STEPS = 60
TRAIN = ["train", "--json", *settings([*TINY, f"train.num_steps={STEPS}"])]
TIMES = {"time", "step_time_s", "tokens_per_s", "mfu", "data_wait_s"}
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


def fresh_file(folder: Path, pattern: str, known: set[Path]) -> bool:
    return any(p not in known for p in folder.glob(pattern))


Moment = Callable[[Path, Path], Callable[[], bool]]
"""From (run, cache), a predicate that turns true at the moment to strike."""


def in_compilation(run: Path, cache: Path) -> Callable[[], bool]:
    events = run / "events.jsonl"
    before = events.read_text().count('"compile"') if events.exists() else 0
    return lambda: events.exists() and events.read_text().count('"compile"') > before


def in_commit(run: Path, cache: Path) -> Callable[[], bool]:
    known = set(run.glob("checkpoints/*tmp*"))
    return lambda: fresh_file(run, "checkpoints/*tmp*", known)


def in_metrics(run: Path, cache: Path) -> Callable[[], bool]:
    metrics = run / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    return lambda: metrics.exists() and metrics.stat().st_size > size


def in_cache_write(run: Path, cache: Path) -> Callable[[], bool]:
    known = set(cache.rglob("jax/*"))
    return lambda: fresh_file(cache, "**/jax/*", known)


def after(seconds: float) -> Moment:
    def moment(run: Path, cache: Path) -> Callable[[], bool]:
        strike = time.monotonic() + seconds
        return lambda: time.monotonic() >= strike

    return moment


def kill_at(
    command: Command, moment: Moment, run: Path, started: Callable[[subprocess.Popen[str]], subprocess.Popen[str]]
) -> bool:
    """Starts the run and kills it at `moment`. False when it ended before."""
    reached = moment(run, command.cache)
    process = started(command.start(*TRAIN, "--run", run.name))
    deadline = time.monotonic() + 120
    while process.poll() is None and not reached() and time.monotonic() < deadline:
        time.sleep(0.0005)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return not ended


@pytest.mark.slow
def test_twenty_kills(
    project: Command, tmp_path: Path, started: Callable[[subprocess.Popen[str]], subprocess.Popen[str]]
) -> None:
    whole = project(*TRAIN, "--run", "whole")
    assert whole.returncode == 0, whole.stderr

    # A cache of its own, so that the killed run compiles and writes its cache under fire.
    hunted = Command(project.cwd, tmp_path / "hunted-cache")
    dice = random.Random(20)
    moments: list[Moment] = [in_cache_write, in_compilation, in_cache_write, in_compilation]
    moments += [in_commit, in_metrics, in_commit, in_metrics, in_commit, in_metrics, in_commit]
    moments += [after(dice.uniform(0.2, 4.0)) for _ in range(40)]
    run = project.cwd / "runs" / "killed"
    kills = 0
    for moment in moments:
        kills += kill_at(hunted, moment, run, started)
        if kills == 20:
            break
    done = hunted(*TRAIN, "--run", "killed")
    assert done.returncode == 0, done.stderr
    assert kills >= 10, f"the run ended after {kills} kills: it is too short for this test"

    assert done.json()["state_digest"] == whole.json()["state_digest"]
    assert done.json()["loss"] == whole.json()["loss"]
    assert numbers(run) == numbers(project.cwd / "runs" / "whole")
    assert not list(run.glob("checkpoints/*tmp*")), "a stray temporary checkpoint stayed"

    shown = hunted("ckpt", "show", "--run", "killed", "--json").json()
    assert shown["state_digest"] == whole.json()["state_digest"]
