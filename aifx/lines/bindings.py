"""What a tick fixes: its time, and the versions that names of data sets and aliases of models mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from aifx.core.errors import AifxError, ConfigError, UsageError
from aifx.core.files import read_input
from aifx.core.parsing import parse_toml
from aifx.core.project import Project
from aifx.data.versions.catalog import open_catalog
from aifx.lines.commands import value_at
from aifx.lines.file import Line, Station
from aifx.lines.names import used_names
from aifx.lines.schedule import period_start, time_text
from aifx.lines.words import Binding, Word
from aifx.registry.roots import open_root

TICK = "tick"


def read_settings(project: Project) -> Mapping[str, Any]:
    """The tables of aifx.toml as they are, without the project's own modules. Raises ConfigError."""
    try:
        return parse_toml(read_input(project.config_path).decode("utf-8-sig"))
    except (OSError, ValueError) as e:
        raise ConfigError(
            f"{project.config_path} cannot be read", str(e).splitlines()[0], "aifx config check"
        ) from None


def locate(project: Project, environ: Mapping[str, str] | None = None) -> Project:
    """The project with the places of its data sets and models. None of its own modules is imported.

    Raises ConfigError.
    """
    given, environ = read_settings(project), os.environ if environ is None else environ
    roots = {}
    for name, default in (("datasets", project.datasets), ("registry", project.registry)):
        root = environ.get(f"AIFX_{name.upper()}__ROOT") or value_at(given, (name, "root")) or default
        roots[name] = str(root)
    return replace(project, datasets=roots["datasets"], registry=roots["registry"])


def resolve(name: str, project: Project) -> str:
    """The version that a name means now, as NAME@DIGEST. Raises AifxError if there is none.

    Args:
        project: as `locate` returns it.
    """
    kind, _, rest = name.partition(".")
    if kind == "data":
        return "@".join(open_catalog(project.datasets, project).find(rest))
    model, _, alias = rest.rpartition(".")
    state, version = open_root(None, project).find(f"{model}@{alias}")
    return f"{state.name}@{version.digest}"


def fix_bindings(line: Line, project: Project, now: float) -> dict[str, str]:
    """What the names of a line mean at a time. Names that mean nothing yet are left out.

    Raises ConfigError if aifx.toml cannot be read, EnvironmentFault if a store cannot be reached.
    """
    begin = now if line.every_s is None else period_start(now, line.every_s, line.timezone)
    wall = datetime.fromtimestamp(begin, ZoneInfo(line.timezone))
    fixed = {TICK: time_text(begin), "date": wall.strftime("%Y-%m-%d"), "time": wall.strftime("%H-%M-%S")}
    found = locate(project)
    for name in sorted(set(used_names(line, project, read_settings(project)))):
        try:
            fixed[name] = resolve(name, found)
        except UsageError:  # a station of this line may make it
            continue
    return fixed


def bind(
    station: Station, bindings: Mapping[str, str], outputs: Mapping[str, Mapping[str, Any]], key: str
) -> list[list[str]]:
    """The words of a station's commands. Raises UsageError for a name that means nothing.

    Args:
        outputs: the document of the last command of each station before it.
        key: of the station, of which `{key}` has 12 digits.
    """

    def value_of(binding: Binding) -> str:
        if binding.name == "key":
            return key[:12]
        if binding.station:
            return _output(binding, outputs)
        if binding.name not in bindings:
            raise _unbound(binding)
        return bindings[binding.name]

    return [_texts(words, value_of) for words in station.words]


def _texts(words: tuple[Word, ...], value_of: Any) -> list[str]:
    return [word.text(value_of) for word in words]


def _output(binding: Binding, outputs: Mapping[str, Mapping[str, Any]]) -> str:
    document = outputs.get(binding.station, {})
    value = value_at(document, binding.field)
    if value is None or isinstance(value, list | dict):
        kind = "it has no such value" if value is None else "it is no text and no number"
        known = ", ".join(sorted(key for key, one in document.items() if not isinstance(one, list | dict)))
        what = f"{{{binding.name}}} is not in the output of {binding.station}"
        raise UsageError(what, f"{kind}; there are: {known}" if known else kind, f"aifx line logs {binding.station}")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _unbound(binding: Binding) -> AifxError:
    kind, _, rest = binding.name.partition(".")
    hint = "aifx data ls" if kind == "data" else "aifx registry ls"
    why = f"there is no data set {rest!r}" if kind == "data" else f"no model has this alias: {rest}"
    return UsageError(f"{{{binding.name}}} means nothing", f"{why} when the tick began", hint)
