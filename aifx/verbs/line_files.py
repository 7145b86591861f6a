"""The file of a line: its check, its picture, and the files that start it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from aifx.core.errors import EnvironmentFault
from aifx.core.project import Project, find_project
from aifx.verbs.arguments import Settings, StrPath, overrides

if TYPE_CHECKING:
    from aifx.lines.checks import CheckedLine, Finding
    from aifx.lines.graph import LineGraph


def line_check(
    file: StrPath | None = None,
    *,
    check_command: Callable[[Sequence[str]], None] = lambda words: None,
    project: StrPath = ".",
) -> CheckedLine:
    """Check a line without running it: its file, commands, names, variables and limits. All findings come at once.

    Args:
        file: by default line.toml of the project.
        check_command: called with the words of each command; raises UsageError for those that are no command of aifx.
            `aifx line check` passes one that knows all commands and options. By default they are not checked: only the
            terminal knows them, and no function of `aifx` loads it.
        project: a folder in the project.

    Example:
        >>> aifx.line_check("nightly.toml")
        Traceback (most recent call last):
        ...
        aifx.core.errors.ConfigError: ...
    """
    from aifx.lines.checks import Knowledge, check_line

    found = find_project(Path(project))
    return check_line(_path(file, found), found, Knowledge(os.environ, check_command, _has_field))


def line_graph(
    file: StrPath | None = None, *, html: StrPath | None = None, svg: StrPath | None = None, project: StrPath = "."
) -> LineGraph:
    """Report which stations of a line need which, and the state of each, also as a page or a picture.

    Runs nothing of the line. It asks the schedulers about jobs that are open.

    Args:
        file: by default line.toml of the project.
        html: file for a web page.
        svg: file for the picture alone.
        project: a folder in the project.

    Example:
        >>> aifx.line_graph("nightly.toml")
        Traceback (most recent call last):
        ...
        aifx.core.errors.ConfigError: ...
    """
    from aifx.core.pages import date, write_page
    from aifx.core.redaction import redact
    from aifx.lines.graph import GraphStation, LineGraph
    from aifx.verbs.line_ticks import open_line, status_of, with_file

    line, found = open_line(file, project)
    status, levels, stations = status_of(line, found, file), dict[str, int](), list[GraphStation]()
    for one, station in zip(status.stations, line.stations.values(), strict=True):
        levels[one.station] = 1 + max((levels[parent] for parent in station.parents), default=-1)
        why = ": ".join(filter(None, (one.what, one.why)))
        when, why, hint = map(redact, (station.when, why, one.hint))
        stations.append(GraphStation(
            one.station, levels[one.station], station.parents, tuple(map(redact, station.run)),
            when, one.verdict, one.on, one.state, why, hint, one.since, one.next,
        ))  # fmt: skip
    notes = [f"next tick {date(status.next)}" if status.next is not None else ""]
    notes += [with_file("paused: aifx line resume", file) if status.is_paused else ""]
    notes += ["a tick is open" if status.is_open else ""]
    problem = status.problem
    notes += [f"the next tick's stations are not known: {problem['what']}: {problem['why']}" if problem else ""]
    graph = LineGraph(str(line.path), tuple(stations), time.time(), tuple(map(redact, filter(None, notes))))
    for path, draw in ((html, graph.page), (svg, graph.svg)):
        if path is not None:
            write_page(draw(), Path(path))
    return graph


def line_unit(
    file: StrPath | None = None,
    *,
    watch: bool = False,
    name: str | None = None,
    environment_file: StrPath | None = None,
    project: StrPath = ".",
) -> dict[str, str]:
    """Write the units of systemd that start a line, by the names of their files: a service, and a timer for its ticks.

    Args:
        file: by default line.toml of the project.
        watch: a service that runs for ever, without a timer.
        name: of the units; by default that of the project's folder, behind "aifx-line-".
        environment_file: lines NAME=VALUE with the variables that the line needs.
        project: a folder in the project.

    Example:
        >>> aifx.line_unit("nightly.toml")
        Traceback (most recent call last):
        ...
        aifx.core.errors.ConfigError: ...
    """
    from aifx.core.processes import aifx_command
    from aifx.lines.deploying import units
    from aifx.lines.file import read_line, read_targets

    found = find_project(Path(project))
    path = _path(file, found)
    line, targets = read_line(path), read_targets(path)
    secrets = None if environment_file is None else Path(environment_file)
    name = name or f"aifx-line-{re.sub('[^A-Za-z0-9_.-]+', '-', found.root.name)}"
    program = aifx_command()
    return units(line, targets, found, program, name=name, watch=watch, environment_file=secrets)


def write_units(units: Mapping[str, str], folder: Path) -> list[Path]:
    """Write files into a folder, and return their paths."""
    from aifx.core.files import write_output

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in units.items():
            write_output(folder / name, text.encode())
    except OSError as e:
        why = e.strerror or str(e)
        raise EnvironmentFault(f"{folder} cannot be written", why, "--output FOLDER names another") from None
    return [folder / name for name in units]


def line_k8s(
    file: StrPath | None = None,
    *,
    watch: bool = False,
    name: str | None = None,
    settings: Settings = None,
    project: StrPath = ".",
) -> str:
    """Write the CronJob of Kubernetes that starts a line, or with `watch` a Deployment that runs for ever.

    If a station submits jobs to Kubernetes, it begins with an account that may do so.

    Args:
        file: by default line.toml of the project.
        watch: a Deployment that runs `aifx line watch` instead.
        name: by default that of the project's folder.
        settings: values over those of `[launch]` and `[k8s]`, by key.
        project: a folder in the project.

    Example:
        >>> aifx.line_k8s("nightly.toml")
        Traceback (most recent call last):
        ...
        aifx.core.errors.ConfigError: ...
    """
    from aifx.kinds import load_config
    from aifx.lines.bindings import locate
    from aifx.lines.deploying import manifest
    from aifx.lines.file import read_line, read_targets

    found = find_project(Path(project))
    path = _path(file, found)
    line, targets = read_line(path), read_targets(path)
    config = load_config(found, overrides(settings))
    name = name or re.sub("[^a-z0-9-]+", "-", found.root.name.lower()).strip("-")
    grace = config.checkpoint.stop_timeout_s
    return manifest(
        line, targets, locate(found), config.launch, config.k8s, name=name, watch=watch, stop_timeout_s=grace
    )


def _path(file: StrPath | None, project: Project) -> Path:
    from aifx.lines.file import LINE

    return project.root / LINE if file is None else Path(file)


def _has_field(command: str, keys: Sequence[str]) -> bool:
    """Whether the document of a command has a value; True for a command whose document is not described."""
    from aifx.verbs.schemas import command_types

    kind = command_types().get(command.replace(" ", "-"), Any)
    return keys[0] == "schema_version" or _leads(kind, keys)


def _leads(kind: Any, keys: Sequence[str]) -> bool:
    """Whether keys, and numbers in lists, may lead to a value in one of this type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated or str(origin).endswith("Required"):
        return _leads(arguments[0], keys)
    if not keys or kind is Any or kind is object or hasattr(kind, "__value__"):
        return True
    if origin in (Union, UnionType):
        return any(_leads(one, keys) for one in arguments)
    if is_dataclass(kind) or is_typeddict(kind):
        hints = get_type_hints(kind)
        return keys[0] in hints and _leads(hints[keys[0]], keys[1:])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _leads(arguments[1], keys[1:])
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return keys[0].isdecimal() and _leads(arguments[0], keys[1:])
    return False
