"""A pipeline whose steps are killed and repeated makes the bytes of one that nobody disturbed.

A run kills it 5 times, with a seed that follows the commit; with LONG=1, 100 times.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
from effort import parts, seed_of_commit
from prose import prose

KILLS = 5
AIFX = [sys.executable, "-P", "-m", "aifx.commands.main", "data"]
PIPELINE = (
    ("add", "corpus", "raw", "--license", "CC0-1.0", "--workers", "2"),
    ("clean", "corpus", "--max-dropped", "1", "--workers", "2"),
    ("dedupe", "corpus", "--near", "0.8", "--workers", "2"),
    ("decontaminate", "corpus", "--against", "test.txt", "--drop", "--workers", "2"),
    ("pii", "corpus", "--mask", "--workers", "2"),
    ("expect", "corpus", "rules.toml", "--workers", "2"),
)
RULES = """
[[rule]]
column = "text"
check = "matches"
pattern = "[aeiou]"
[[rule]]
id = "no-mail"
check = "sql"
sql = "NOT contains(text, '[EMAIL]')"
[[rule]]
check = "rows"
at_least = 10
"""


def write_raw(root: Path) -> None:
    """Files with exact and near copies, addresses, and a fragment of the test."""
    (root / "raw").mkdir(parents=True)
    texts = [prose(400, seed) for seed in range(60)]
    fragment = " ".join(texts[3].split()[40:80])
    (root / "test.txt").write_text(fragment)
    (root / "rules.toml").write_text(RULES)
    for index in range(6):
        rows = texts[index * 10 : index * 10 + 10]
        rows += [
            texts[index],
            f"another {texts[index + 10]}",
            f"{prose(100, 1000 + index)} mail a.b{index}@example.org",
        ]
        lines = [json.dumps({"text": text}) for text in rows]
        (root / "raw" / f"{index}.jsonl").write_text("\n".join(lines) + "\n")


def run(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A step of the pipeline, in a process group of its own."""
    environ = {**os.environ, "AIFX_CACHE_DIR": str(root / "cache")}
    command = [*AIFX, *arguments, "--root", str(root / "datasets")]
    return subprocess.Popen(
        command, cwd=root, env=environ, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )


def content(root: Path) -> set[str]:
    """The files of all versions with their digests. The history has times, and locks are of processes."""
    folder = root / "datasets" / "corpus"
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    assert not list(folder.glob(".work-*"))
    return {f"{path.relative_to(folder)} {sha256(path.read_bytes()).hexdigest()}" for path in files}


def undisturbed(root: Path) -> list[float]:
    """Run the pipeline. Returns the seconds of each step."""
    seconds = []
    for step in PIPELINE:
        began = time.monotonic()
        process = run(root, *step)
        assert process.wait() == 0, process.stderr.read().decode() if process.stderr else ""
        seconds.append(time.monotonic() - began)
    return seconds


def wait_for_end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.05)


def kill_often(root: Path, kills: int, seconds: list[float], dice: random.Random) -> int:
    """Run the pipeline, and kill its steps with all their processes. Returns how many were running when they were."""
    struck = 0
    plan = [dice.randrange(len(PIPELINE)) for _ in range(kills)]
    for number, step in enumerate(PIPELINE):
        for _ in range(plan.count(number)):
            process = run(root, *step)
            try:
                process.wait(dice.uniform(0.3, seconds[number]))
            except subprocess.TimeoutExpired:
                struck += 1
                workers = psutil.Process(process.pid).children(recursive=True)
                if dice.random() < 0.5:
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()  # its workers find out by themselves
                process.wait()
                wait_for_end(workers)
        process = run(root, *step)
        assert process.wait() == 0, process.stderr.read().decode() if process.stderr else ""
    return struck


def calm_run(root: Path) -> tuple[Path, list[float]]:
    """A folder whose pipeline nobody disturbed, and the seconds of each step."""
    write_raw(root / "calm")
    return root / "calm", undisturbed(root / "calm")


def check(calm: Path, seconds: list[float], root: Path, kills: int, seed: int) -> int:
    """Kill a pipeline and compare its content with that of the calm one. Returns how many were running when killed."""
    root.mkdir()
    for name in ("raw", "test.txt", "rules.toml"):
        (root / name).symlink_to(calm / name)
    struck = kill_often(root, kills, seconds, random.Random(seed))
    assert sorted(content(root) ^ content(calm)) == [], f"seed {seed}"
    return struck


RECIPE = """
[corpus]
steps = [
    { add = { sources = ["raw"], license = "CC0-1.0" } },
    { clean = { max_dropped = 1.0 }, keep = true },
    { dedupe = { near = 0.8 }, keep = true },
    { decontaminate = { against = ["test.txt"] }, keep = true },
    { pii = { mask = true }, keep = true },
    { expect = {} },
]
"""


def check_recipe(calm: Path, seconds: list[float], root: Path, kills: int, seed: int) -> int:
    """Kill the making of a recipe of the same steps, and compare as `check` does."""
    root.mkdir()
    for name in ("raw", "test.txt", "rules.toml"):
        (root / name).symlink_to(calm / name)
    (root / "recipe.toml").write_text(RECIPE)
    command = ("make", "--recipe", "recipe.toml", "--workers", "2")
    struck, dice, latest = 0, random.Random(seed), root / "datasets" / "corpus" / "latest"
    for _ in range(kills):
        process = run(root, *command)
        try:
            process.wait(dice.uniform(0.3, sum(seconds) / 2))
        except subprocess.TimeoutExpired:
            struck += not latest.exists()
            workers = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            wait_for_end(workers)
    process = run(root, *command)
    assert process.wait() == 0, process.stderr.read().decode() if process.stderr else ""
    assert sorted(content(root) ^ content(calm)) == [], f"seed {seed}"
    return struck


@pytest.mark.representative("a killed data step")
@pytest.mark.parametrize("part", parts(20))
def test_five_kills(tmp_path: Path, part: int, record_property: Callable[[str, object], None]) -> None:
    struck = check(*calm_run(tmp_path), tmp_path / "killed", KILLS, seed_of_commit() + part)
    record_property("kills of a running step", struck)


@pytest.mark.representative("a killed data step")
def test_a_recipe_that_is_killed(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    struck = check_recipe(*calm_run(tmp_path), tmp_path / "killed", 3, seed_of_commit())
    record_property("kills before the name moved", struck)
