"""A project to drill in, and a trainer that takes no time: control flow needs no real training."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inprocess
import pytest

TOML = """\
[task]
kind = "tiny:TinyTask"

[train]
num_steps = 12
global_batch_size = 8
validate_every = 4
"""

TRAINER = """
import json, os, resource, signal, sys, time
from pathlib import Path

def option(name):
    return [sys.argv[at + 1] for at, word in enumerate(sys.argv) if word == name]

settings = dict(text.split("=", 1) for text in option("--set"))
behaviour = json.loads(Path("behaviour.json").read_text()) if Path("behaviour.json").exists() else {}
every, last = int(settings["checkpoint.every"]), int(settings["train.num_steps"])
run = Path("runs", option("--run")[0])
holds = dict.fromkeys(("kill-step", "preempt-step", "io-error-step"), every * 3 // 2)  # until the fault has come
holds |= {"corrupt-ckpt-flip": 2 * every + 1, "corrupt-ckpt-cut": 2 * every + 1, "kill-start": 0}
path = Path(os.environ["DRILL_FAULT"])
fault, reached, released = json.loads(path.read_text()), path.with_suffix(".reached"), path.with_suffix(".released")

def is_held(step):
    is_struck = stopped or resource.getrlimit(resource.RLIMIT_FSIZE)[0] == 1
    if fault["action"] == "pause" and step >= fault["at"] and saved():  # reads only what its step needs
        reached.touch()
        return not released.exists()
    is_due = starts == (run.name == "kill-start") and saved() and step >= holds.get(run.name, last + 1)
    return not is_struck and (run.name == behaviour.get("stays") or is_due)
checkpoints = run / "checkpoints"
checkpoints.mkdir(parents=True, exist_ok=True)

def write(file, **fields):
    with open(run / file, "a") as f:
        f.write(json.dumps({"time": time.time(), **fields}) + "\\n")

def end(code, **fields):
    print(json.dumps(fields), flush=True)
    os._exit(code)

def saved():
    return sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())

def save(step):
    unfinished = checkpoints / f"{step}.unfinished"
    (unfinished / "state" / "d").mkdir(parents=True)
    (unfinished / "state" / "d" / "arrays").write_text("digits " * 99)
    unfinished.rename(checkpoints / str(step))

def save_in_background(step):
    waiting.append(step)
    is_slow = "saves_slowly" in behaviour and not stopped and step < last
    while len(waiting) > is_slow:  # like aifx, one at a time
        save(waiting.pop(0))

if "error" in behaviour:
    end(2, error={"what": behaviour["error"], "why": "a reason", "hint": "aifx train", "exit_code": 2})
for step in reversed(saved()):
    arrays = checkpoints / str(step) / "state" / "d" / "arrays"
    if arrays.exists() and arrays.read_text() == "digits " * 99:
        break
    if not behaviour.get("trusts"):
        (checkpoints / str(step)).rename(checkpoints / f"{step}.damaged")
step = max(saved(), default=0) if not behaviour.get("forgets") else 0
begun = step
starts = len((run / "events.jsonl").read_text().splitlines()) if (run / "events.jsonl").exists() else 0
stopped, waiting = [], []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
write("events.jsonl", event="resume" if step else "start", step=step)
(run / "lock").write_text(json.dumps({"pid": os.getpid(), "host": "", "command": "", "since": time.time()}))
lines = (run / "metrics.jsonl").read_text().splitlines() if step else []
kept = step - behaviour.get("forgets_records", 0)
(run / "metrics.new").write_text("".join(f"{line}\\n" for line in lines if json.loads(line)["step"] <= kept))
(run / "metrics.new").rename(run / "metrics.jsonl")  # a drill may kill it between any two of these lines
while step < last:
    step += 1
    write("metrics.jsonl", step=step)
    if waiting and not saved():  # time for a drill that would not wait
        time.sleep(0.1)
    if fault["action"] == "raise" and step == behaviour.get("fails_at"):
        reached.touch()
        end(2, error={"what": "batch 3 cannot be read", "why": "a reason", "hint": "", "exit_code": 2})
    while is_held(step):
        time.sleep(0.01)
    if stopped or step % every == 0:
        if not (stopped and behaviour.get("loses")):
            save_in_background(step)
    if stopped:
        end(behaviour.get("stop_code", 75), status="preempted")
digest = "another" if starts and behaviour.get("drifts") else "the same"
end(0, status="completed", resumed_from=begun or None, state_digest=digest)
"""
"""Stands for `aifx train`. `behaviour.json` of the project says what it does wrong."""


@dataclass(frozen=True)
class Drilled:
    """A project to drill in."""

    root: Path

    def command(self, *args: str) -> tuple[int, str, str]:
        """`aifx drill args` in this process: exit code, stdout and stderr."""
        done = inprocess.run(["drill", *args], self.root, os.environ)
        return done.returncode, done.stdout, done.stderr

    def start(self, *args: str) -> subprocess.Popen[str]:
        """`aifx drill args` in a process of its own, with TRAINER."""
        lines = ["from aifx.core import processes", f"processes.PROGRAM = {TRAINER!r}"]
        lines += ["from aifx.commands.main import main", "main()"]
        words = [sys.executable, "-P", "-c", "\n".join(lines), "drill", *args]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, cwd=self.root, stdout=pipe, stderr=pipe, text=True)

    def results(self, *args: str) -> tuple[int, list[dict[str, Any]]]:
        code, out, _ = self.command(*args, "--json")
        return code, json.loads(out)["results"]


@pytest.fixture
def tiny_project(tmp_path: Path) -> Drilled:
    """A project that trains in earnest, in seconds."""
    (tmp_path / "aifx.toml").write_text(TOML)
    shutil.copy(Path(__file__).parents[1] / "training" / "tiny.py", tmp_path)
    return Drilled(tmp_path)


@pytest.fixture
def drilled(tiny_project: Drilled, monkeypatch: pytest.MonkeyPatch) -> Drilled:
    """The same project, trained by TRAINER."""
    monkeypatch.setattr("aifx.core.processes.PROGRAM", TRAINER)
    return tiny_project


@pytest.fixture
def behave(drilled: Drilled) -> Callable[..., None]:
    """Say what the trainer does wrong: `behave(drifts=True)`."""

    def write(**behaviour: Any) -> None:
        (drilled.root / "behaviour.json").write_text(json.dumps(behaviour))

    return write
