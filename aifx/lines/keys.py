"""The key of a station: the digest of all that its outputs depend on.

Python files count without comments and docstrings (`aifx.core.code_digest`), so that a comment trains nothing again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from aifx.core.code_digest import digest_of_file
from aifx.core.digests import sha256_of_file, sha256_of_json
from aifx.core.json_values import plain
from aifx.core.project import Project
from aifx.lines.bindings import TICK, read_settings
from aifx.lines.commands import find_command
from aifx.lines.file import Line, Station
from aifx.lines.names import RECIPE, configured_names

MAX_FILE_BYTES = 1 << 20
"""Larger files that a command names do not count: they are data, which commands know by content themselves."""
NO_CODE = frozenset({"runs", "datasets", "registry", "line", "data", "tests", "build", "dist", "node_modules"})


class ProjectCode:
    """The code and settings of a project that commands read besides their words. They are read once, when asked for."""

    def __init__(self, project: Project) -> None:
        self.project = project

    @cached_property
    def modules(self) -> str:
        """The digest of the project's Python files, which are read and not imported."""
        folder = self.project.code_path
        return sha256_of_json([[str(path.relative_to(folder)), digest_of_file(path)] for path in _modules(folder)])

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        return read_settings(self.project)

    def read_by(self, commands: list[list[str]]) -> dict[str, Any]:
        """What the commands of a station read of it."""
        found: dict[str, Any] = {}
        for words in commands:
            command = find_command(words)
            if command.reads_code:
                found |= {"modules": self.modules, "settings": plain(self.settings)}
            elif words[0] == "data":
                found.setdefault("settings", plain({key: self.settings.get(key) for key in ("data", "datasets")}))
            if command.name == "data make" and (self.project.root / RECIPE).is_file():
                found[RECIPE] = sha256_of_file(self.project.root / RECIPE)
        return found


def station_key(
    line: Line, station: Station, bindings: Mapping[str, str], identities: Mapping[str, Any], code: ProjectCode
) -> str:
    """The 64 digits that name what a station works on.

    They cover its commands, the values of their names, the identity of what the stations before it made, and the
    project's code and settings that the commands read. A command that reads from outside also has the tick in it.
    One that trains has the version that `data.dataset` of its configuration means.

    Args:
        identities: of the stations before it.
    """
    used = {one.name: bindings.get(one.name) for one in station.bindings if one.name != "key" and not one.station}
    used |= {name: bindings.get(name) for name in configured_names(line, station, code.project, code.settings)}
    commands = station.written
    if not station.shell and any(find_command(words).is_source for words in commands):
        used[TICK] = bindings[TICK]
    read = {} if station.shell else code.read_by(commands)
    files = dict(_named_files(commands, code.project.root))
    return sha256_of_json([commands, station.shell, station.on, used, plain(dict(identities)), read, files])


def _modules(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(one for one in folders if one not in NO_CODE and not one.startswith((".", "_")))
        folders[:] = [one for one in folders if not (Path(place) / one / "pyvenv.cfg").exists()]
        yield from (Path(place) / name for name in sorted(files) if name.endswith(".py"))


def _named_files(commands: list[list[str]], root: Path) -> Iterator[tuple[str, str]]:
    """The small files of a project that words name, such as a script or a file of rules."""
    for text in dict.fromkeys(word.rpartition("=")[2] for words in commands for word in words):
        path = root / text
        try:
            # A file without a size may be one of /proc, whose reader waits.
            if text and not Path(text).is_absolute() and path.is_file() and 0 < path.stat().st_size <= MAX_FILE_BYTES:
                yield text, digest_of_file(path) if path.suffix == ".py" else sha256_of_file(path)
        except (OSError, ValueError):  # a word that is no path
            continue
