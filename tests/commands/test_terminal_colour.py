"""Colour on a terminal, unless told otherwise, and nowhere else."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import time
from pathlib import Path

from program import ESCAPE, PROBE, PROGRAM, environ, probe


def on_a_terminal(command: list[str], env: dict[str, str]) -> str:
    """Run a command whose stdout and stderr are a terminal, and return its output."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, env=env, stdin=slave, stdout=slave, stderr=slave, close_fds=True)
    os.close(slave)
    written, end = b"", time.monotonic() + 300
    with contextlib.suppress(OSError):  # EIO: the other side has gone
        while time.monotonic() < end and select.select([master], [], [], 300)[0] and (chunk := os.read(master, 65536)):
            written += chunk
    os.close(master)
    process.wait(timeout=300)
    return written.decode()


STYLED = """
from rich.text import Text
out.print(Text("answer", style="bold red"))
out.err.print(Text("word", style="dim"))
raise AifxError("a", "b", "c")
"""


def test_colour_on_a_terminal_and_only_there(tmp_path: Path) -> None:
    env = environ(tmp_path, PROBE=STYLED, TERM="xterm-256color")
    colourful = on_a_terminal(PROBE, env)
    assert len(ESCAPE.findall(colourful)) >= 6
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert ESCAPE.search(on_a_terminal(PROBE, {**env, **plain})) is None
    assert len(ESCAPE.findall(on_a_terminal(PROBE, {**env, "NO_COLOR": ""}))) >= 6
    piped = probe(tmp_path, STYLED, env={"TERM": "xterm-256color"})
    assert ESCAPE.search(piped.stdout + piped.stderr) is None


def test_help_is_coloured_on_a_terminal_unless_told_otherwise(tmp_path: Path) -> None:
    command = [*PROGRAM, "--help"]
    env = environ(tmp_path, TERM="xterm-256color")
    assert ESCAPE.search(on_a_terminal(command, env))
    assert ESCAPE.search(on_a_terminal(command, {**env, "NO_COLOR": "1"})) is None
    assert ESCAPE.search(on_a_terminal(command, {**env, "TERM": "dumb"})) is None
