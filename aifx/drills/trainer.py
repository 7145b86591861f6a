"""A training as a process, its state by its files meanwhile, and how long things took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from aifx.checkpoint.manifest import TEMPORARY_SUFFIX, step_directories
from aifx.core.json_files import read_jsonl
from aifx.core.parsing import parse_json
from aifx.core.processes import Child, Ended, aifx_command, pump
from aifx.core.project import RunDirectory
from aifx.drills.injection import LOOK_S

LIMIT_S = 600.0
"""A training that takes so long is ended, and its drill has failed."""

GRACE_S = 5.0


CLOCKED = ("time", "mfu", "ceiling_fraction")
"""Fields of a record that a clock decides, in addition to those whose names end in `_s`."""


class Missed(Exception):
    """The moment for a fault did not come. The text is the reason."""


class Trainer:
    """`aifx` with arguments, training one run, in a process of its own that ends with the block."""

    def __init__(self, run: RunDirectory, root: Path, arguments: Sequence[str], env: Mapping[str, str]) -> None:
        self.run = run
        self.began = time.time()
        self.child = Child(aifx_command(*arguments), env=env, cwd=root, limit_s=LIMIT_S, grace_s=GRACE_S)
        self.error_lines: list[str] = []

    def __enter__(self) -> Trainer:
        self.child.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.child.__exit__(*error)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition. Raises Missed if the process ends before."""
        while not condition():
            if self.child.ended is not None:
                raise Missed(f"the run ended before {what}: {self.child.ended.why}")
            pump([self.child], LOOK_S)
            self.error_lines += [line.decode("utf-8", "replace") for line in self.child.take_error_lines()]

    def wait(self) -> Ended:
        ended = self.child.wait()
        self.error_lines += [line.decode("utf-8", "replace") for line in self.child.take_error_lines()]
        return ended

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of this name since this process began."""
        return [e for e in events(self.run, name) if e.get("time", 0.0) >= self.began]


def events(run: RunDirectory, name: str) -> list[dict[str, Any]]:
    return [e for e in read_jsonl(run.events) if e.get("event") == name]


def computed_records(run: RunDirectory) -> list[dict[str, Any]]:
    """The records in metrics.jsonl, without what a clock decided."""
    found = []
    for record in read_jsonl(run.metrics):
        record["validation"] = _computed(record.get("validation") or {})
        found.append(_computed(record))
    return found


def _computed(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in CLOCKED and not name.endswith("_s")}


def last_record(run: RunDirectory) -> int:
    """The last step in metrics.jsonl, or 0."""
    return max((r["step"] for r in read_jsonl(run.metrics)), default=0)


def first_record_after(run: RunDirectory, when: float) -> float | None:
    """The time at which the first step after `when` was recorded, in Unix time."""
    return min((r["time"] for r in read_jsonl(run.metrics) if r["time"] > when), default=None)


def saved_steps(run: RunDirectory) -> list[int]:
    """The steps of the checkpoints that are complete, in rising order."""
    return sorted(step_directories(run.checkpoints)) if run.checkpoints.is_dir() else []


def is_saving(run: RunDirectory) -> bool:
    """Whether a checkpoint is being written."""
    with suppress(FileNotFoundError):
        return any(name.endswith(TEMPORARY_SUFFIX) for name in os.listdir(run.checkpoints))
    return False


def answer(ended: Ended) -> dict[str, Any]:
    """The document that a command printed; empty if it printed none."""
    with suppress(ValueError):
        document = parse_json(ended.output)
        return document if isinstance(document, dict) else {}
    return {}


def process_of_job(launcher: int, number: int) -> int:
    """The pid of process `number` of a job that `launcher` started. Raises Missed."""
    mark = f"AIFX_PROCESS_ID={number}".encode()
    for task in Path(f"/proc/{launcher}/task").iterdir():
        with suppress(OSError):
            for pid in (task / "children").read_text().split():
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    return int(pid)
    raise Missed(f"process {number} of the job is not there")
