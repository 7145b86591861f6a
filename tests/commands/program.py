"""The real program: inside this process, or in one of its own if its streams or its end are the point."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import inprocess
from published_schemas import check_answer

from aifx.commands import app

PROGRAM = [sys.executable, "-c", "import sys; sys.argv[0] = 'aifx'; from aifx.commands.main import main; main()"]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")

PROBE_COMMAND = """
import errno, os, sys, types
from aifx.commands import app
from aifx.commands.console.options import JsonOption
from aifx.commands.console.terminal import terminal
from aifx.core.errors import *

def probe(json: JsonOption = False) -> None:
    with terminal(json) as out:
        exec(os.environ["PROBE"], {**globals(), "out": out})

module = sys.modules["aifx.commands.probe_module"] = types.ModuleType("probe_module")
module.probe = probe
app.COMMANDS["probe"] = app.Entry("probe_module", "probe", "Do what the test asks.", app.SETUP)
"""
"""One more command of `aifx`, whose body is the Python in the variable PROBE."""

PROBE = [
    sys.executable,
    "-c",
    f"""{PROBE_COMMAND}
sys.argv[0] = "aifx"
from aifx.commands.main import main
main()
""",
    "probe",
]


def environ(folder: Path, **changes: str) -> dict[str, str]:
    """This process's environment less what steers aifx and terminals; caches go into `folder`."""
    dropped = ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "LINES")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AIFX_") and k not in dropped}
    return {**kept, "AIFX_CACHE_DIR": str(folder / "cache"), **changes}


def run(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `aifx ARGS` in `folder`, inside this process."""
    return inprocess.run(args, folder, environ(folder, **env))


def process(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `aifx ARGS` in `folder`, in a process of its own."""
    done = subprocess.run(
        [*PROGRAM, *args],
        cwd=folder,
        env=environ(folder, **env),
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    check_answer(args, done.stdout)
    return done


def probe(
    folder: Path, body: str, *args: str, env: dict[str, str] | None = None, **streams: Any
) -> subprocess.CompletedProcess[str]:
    """A command that runs `body` between `with terminal(json) as out:` and its end, in a process of its own."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(
        [*PROBE, *args],
        cwd=folder,
        env=environ(folder, PROBE=body, **(env or {})),
        text=True,
        timeout=300,
        check=False,
        **streams,
    )


def probe_here(
    folder: Path, body: str, *args: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The same inside this process."""
    commands = dict(app.COMMANDS)
    try:
        exec(PROBE_COMMAND, {})
        return inprocess.run(["probe", *args], folder, environ(folder, PROBE=body, **(env or {})))
    finally:
        app.COMMANDS.clear()
        app.COMMANDS.update(commands)


def assert_three_lines(text: str) -> None:
    """Check that there are three lines: the error, the reason and a hint."""
    lines = text.splitlines()
    assert len(lines) == 3, text
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  ")
    assert lines[2].startswith("hint: ")
