"""A line in a folder, and ticks of it in this process."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from aifx.core.project import Project
from aifx.lines.file import read_line
from aifx.lines.journal import Journal, Record
from aifx.lines.runner import Settings, TickRun, held
from aifx.lines.tick import Decision


class Ticking:
    """A project with a line."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[str] = []
        if not (root / "aifx.toml").exists():
            (root / "aifx.toml").write_text("")

    def write(self, text: str) -> None:
        (self.root / "line.toml").write_text(text)

    def run(self, **given: Any) -> TickRun:
        """A tick that has not begun."""
        options = {"environ": dict(os.environ), "now": time.time(), "allows_shell": True, "pause_s": 0.01} | given
        line = read_line(self.root / "line.toml")
        return TickRun(line, Project(self.root), Settings(**options, report=self.lines.append))

    def tick(self, **given: Any) -> dict[str, str]:
        """The state of each station after a tick."""
        return {name: one.state for name, one in self.decisions(**given).items()}

    def decisions(self, **given: Any) -> dict[str, Decision]:
        one = self.run(**given)
        with held(one.line):
            return one.run()

    def records(self, kind: str = "", station: str = "") -> list[Record]:
        found = Journal(self.root / "line").records()
        return [one for one in found if kind in ("", one.kind) and station in ("", one.station)]

    def count(self, name: str) -> int:
        """The number of times that a station wrote a line to NAME.count."""
        path = self.root / f"{name}.count"
        return len(path.read_text().splitlines()) if path.exists() else 0


def station(name: str, command: str = "", **keys: Any) -> str:
    """A table of a station that is a program; by default one that counts its runs."""
    command = command or f"sh -c 'echo x >>{name}.count'"
    rows = [f"name = {name!r}", f'run = """{command}"""', "shell = true"]
    for key, value in keys.items():
        rows.append(f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}")
    return "\n".join(["[[station]]", *rows, ""])
