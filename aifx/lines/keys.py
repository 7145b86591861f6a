"""The key of a station: the digest of all that its outputs depend on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aifx.core.digests import sha256_of_file, sha256_of_json
from aifx.core.json_values import plain
from aifx.core.project import Project
from aifx.lines.bindings import TICK, read_settings
from aifx.lines.commands import find_command
from aifx.lines.file import Station
from aifx.lines.words import Binding, Word

MAX_FILE_BYTES = 1 << 20
"""Larger files that a command names do not count: they are data, which commands know by content themselves."""
RECIPE = "recipe.toml"
NO_CODE = frozenset({"runs", "datasets", "registry", "line", "data", "tests", "build", "dist", "node_modules"})


def station_key(station: Station, bindings: Mapping[str, str], identities: Mapping[str, Any], project: Project) -> str:
    """The 64 digits that name what a station works on.

    They cover its commands, the values of their names, the identity of what the stations before it made, and the
    project's code and settings that the commands read. A command that reads from outside also has the tick in it.

    Args:
        identities: of the stations before it.
    """
    used = {one.name: bindings.get(one.name) for one in station.bindings if one.name != "key" and not one.station}
    commands = [[_written(word) for word in words] for words in station.words]
    if not station.shell and any(find_command(words).is_source for words in commands):
        used[TICK] = bindings[TICK]
    code = {} if station.shell else _code(commands, project)
    files = dict(_named_files(commands, project.root))
    return sha256_of_json([commands, station.shell, station.on, used, plain(dict(identities)), code, files])


def _written(word: Word) -> str:
    return "".join(f"{{{part.name}}}" if isinstance(part, Binding) else part for part in word.parts)


def _code(commands: list[list[str]], project: Project) -> dict[str, Any]:
    """Digests and settings of a project that commands read besides their words."""
    found: dict[str, Any] = {}
    settings = read_settings(project)
    for words in commands:
        command = find_command(words)
        if command.reads_code:
            found["modules"] = modules_digest(project.code_path)
            found["settings"] = plain(settings)
        elif words[0] == "data":
            found.setdefault("settings", plain({key: settings.get(key) for key in ("data", "datasets")}))
        if command.name == "data make" and (project.root / RECIPE).is_file():
            found[RECIPE] = sha256_of_file(project.root / RECIPE)
    return found


def modules_digest(folder: Path) -> str:
    """The digest of the Python files of a project, which are read and not imported."""
    return sha256_of_json([[str(path.relative_to(folder)), sha256_of_file(path)] for path in _modules(folder)])


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
            if text and not Path(text).is_absolute() and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
                yield text, sha256_of_file(path)
        except (OSError, ValueError):  # a word that is no path
            continue
