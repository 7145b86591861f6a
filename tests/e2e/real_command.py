"""The real command in processes of its own: what a person or a script sees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import inprocess
import warm

TINY = [
    "data.vocab_size=300",
    "data.seq_len=32",
    "model.num_layers=1",
    "model.embed_dim=32",
    "model.num_heads=2",
    "train.global_batch_size=8",
    "train.validate_every=10",
    "train.validation_batches=2",
    "checkpoint.every=5",
]
"""Settings under which the language-model template trains in a second."""


HELD = """
import time
from pathlib import Path

from aifx.training.hooks.run_files import MetricsFile

record = MetricsFile.on_record


def is_held(step):
    try:
        return step >= int(Path("held").read_text())
    except FileNotFoundError:
        return False


def record_and_wait(self, one):
    record(self, one)
    while is_held(one.step):
        Path("holding").touch()
        time.sleep(0.01)


MetricsFile.on_record = record_and_wait
"""
"""Runs before `aifx`: while there is a file "held" with the number of a step, this step is the last one."""


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        document = json.loads(self.stdout)
        assert document["schema_version"] == 1
        return document

    def assert_clear_error(self, *words: str, exit_code: int = 2) -> None:
        """An error of at most a few lines, with a way out and no traceback, that names `words`."""
        assert self.returncode == exit_code, self.stderr + self.stdout
        assert "Traceback" not in self.stderr
        assert "hint:" in self.stderr
        said = " ".join(self.stderr.split())
        for word in words:
            assert word in said, f"{word!r} not in:\n{self.stderr}"


def settings(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


@dataclass(frozen=True)
class Command:
    """`aifx` in `cwd`, with caches of its own."""

    cwd: Path
    cache: Path

    @property
    def environ(self) -> dict[str, str]:
        """The environment of a process. It compiles as users do: with XLA's own flags, into `cache`."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIFX_", "JAX_", "XLA_"))}
        return {**kept, "AIFX_CACHE_DIR": str(self.cache), "AIFX_STATE_DIR": str(self.cache / "state"), "COLUMNS": "80"}

    def __call__(self, *args: str, env: dict[str, str] | None = None, stdin: str = "") -> Result:
        done = inprocess.run(args, self.cwd, {**self.environ, **(env or {})}, stdin=stdin)
        return Result(done.returncode, done.stdout, done.stderr)

    def process(self, *args: str) -> Result:
        """Run `aifx args` in a process of its own, for results that are compared bit for bit with `start`'s."""
        done = warm.run(args, self.cwd, self.environ)
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *args: str, env: dict[str, str] | None = None, before: str = "") -> subprocess.Popen[str]:
        """Start `aifx args` as users start it, apart from the statements `before`."""
        program = f"{before}\nimport sys; sys.argv[0] = 'aifx'; from aifx.commands.main import main; main()"
        return subprocess.Popen(
            [sys.executable, "-c", program, *args],
            cwd=self.cwd,
            env={**self.environ, **(env or {})},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
