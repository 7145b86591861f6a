"""rich consoles that keep to this house's rules; apart from terminal.py because rich takes a while to import."""

from __future__ import annotations

import os
import sys

from rich.console import Console

from aifx.commands.terminal import is_colored


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """rich would exit 1, a bad verdict. Here the rest goes to nobody and the command ends as it would have."""
        self.quiet = True
        stream = sys.stderr if self.stderr else sys.stdout
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


def make_console(*, stderr: bool) -> Console:
    """A console on stdout or stderr without markup, emoji or guessed highlighting; plain unless colour is wanted."""
    console = _Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not is_colored(console.file):  # type: ignore[arg-type]
        console._color_system = None  # with `color_system=None` alone, rich would still write bold
        console.no_color = True
    return console
