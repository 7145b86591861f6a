"""The data sets and models that stations name: those that they make, and those that they read without a version."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from aifx.core.files import UnsafeFile, read_input
from aifx.core.parsing import parse_toml
from aifx.core.project import Project
from aifx.lines.commands import find_command, value_at
from aifx.lines.file import Line, Station
from aifx.registry.roots import is_alias

RECIPE = "recipe.toml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DATA = re.compile(r"\{data\.([\w.-]+)\}")
_OUTPUT = re.compile(r"\{stations\.([\w-]+)\.[\w.-]+\}")


def tables_of(project: Project, file: str) -> Mapping[str, Any]:
    """The tables of a TOML file of the project; none if it cannot be read, which its command reports."""
    try:
        return parse_toml(read_input(project.root / file).decode("utf-8-sig"))
    except (OSError, ValueError, UnsafeFile):
        return {}


def made_names(line: Line, station: Station, project: Project) -> frozenset[str]:
    """The data sets of which a station makes versions, by the first words of its commands."""
    found = set[str]()
    for words in () if station.shell else station.written:
        command = find_command(words)
        rest = _positional(words, command.name)
        if command.name == "data make":
            recipe = option_value(words, "--recipe") or RECIPE
            found.update(rest or (key for key, one in tables_of(project, recipe).items() if isinstance(one, dict)))
        elif command.makes == "data" and rest:
            found |= _meant_by(rest[0], line, project)
    return frozenset(found)


def is_made(name: str, line: Line, project: Project) -> bool:
    """Whether a station makes versions of "data.NAME", or pushes, promotes or rolls back that of "models.NAME.ALIAS".

    A program (`shell`) is not known to make any.
    """
    kind, _, rest = name.partition(".")
    stations = [station for station in line.stations.values() if not station.shell]
    if kind == "data":
        return any(rest in made_names(line, station, project) for station in stations)
    commands = (words for station in stations for words in station.written)
    acts = (words for words in commands if find_command(words).name.startswith("registry "))
    return rest.rpartition(".")[0] in {word.partition("@")[0] for words in acts for word in words[2:]}


def _meant_by(word: str, line: Line, project: Project) -> frozenset[str]:
    """The data sets that a word means: a name, a version, or a name in braces."""
    if match := _OUTPUT.fullmatch(word):
        return made_names(line, line.stations[match[1]], project)
    if match := _DATA.fullmatch(word):
        return frozenset({match[1]})
    name = word.partition("@")[0]
    return frozenset({name}) if _NAME.fullmatch(name) else frozenset()


def read_names(station: Station) -> Iterator[str]:
    """The data sets that a station's data steps read as what their name means at that moment."""
    for words in () if station.shell else station.written:
        command = find_command(words)
        rest = _positional(words, command.name)
        if command.name == "data mix":
            rest = [word.partition(":")[0] for word in rest[1:]]
        elif command.name == "data join":
            rest = rest[:2]
        elif command.name.startswith("data ") and command.name not in ("data add", "data make"):
            rest = rest[:1]
        else:
            continue
        yield from (word for word in rest if _NAME.fullmatch(word))


def configured_names(line: Line, station: Station, project: Project, settings: Mapping[str, Any]) -> Iterator[str]:
    """The data set and the alias that the configuration of a station's trainings names, without a fixed version.

    They are `data.dataset` and `finetune.base`, as "data.corpus" and "models.lm.production". A data set that a station
    right before it makes is left out: what that station made counts already.

    Args:
        settings: the tables of aifx.toml.
    """
    for words in () if station.shell else station.written:
        if not find_command(words).trains:
            continue
        given = tables_of(project, file) if (file := option_value(words, "--config")) else settings
        dataset, base = (_setting(words, given, *key) for key in (("data", "dataset"), ("finetune", "base")))
        made = (made_names(line, line.stations[parent], project) for parent in station.parents)
        if _NAME.fullmatch(dataset) and not any(dataset in names for names in made):
            yield f"data.{dataset}"
        name, at, alias = base.partition("@")
        if at and is_alias(alias):
            yield f"models.{name}.{alias}"


def _setting(words: Sequence[str], settings: Mapping[str, Any], section: str, key: str) -> str:
    """The text that the words of a training, or else the environment, or else the configuration set."""
    prefix = f"{section}.{key}="
    given = [word.removeprefix("--set=") for word in words]
    if found := [word.removeprefix(prefix) for word in given if word.startswith(prefix)]:
        return found[-1]
    value = os.environ.get(f"AIFX_{section}__{key}".upper()) or value_at(settings, (section, key))
    return value if isinstance(value, str) else ""


def option_value(words: Sequence[str], option: str) -> str:
    """The value of an option in words; empty if it is not given."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word == option:
            return after
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return ""


def _positional(words: Sequence[str], command: str) -> list[str]:
    """The words between the command and its first option, where its arguments stand."""
    found = []
    for word in words[len(command.split()) :]:
        if word.startswith("-"):
            break
        found.append(word)
    return found


def used_names(line: Line, project: Project, settings: Mapping[str, Any]) -> Iterator[str]:
    """The names that a tick fixes, as "data.corpus" and "models.lm.production"."""
    for station in line.stations.values():
        yield from configured_names(line, station, project, settings)
        yield from (one.name for one in station.bindings if one.name.startswith(("data.", "models.")))
        yield from (subject_name(term.subject) for term in station.condition.terms() if term.kind == "changed")


def subject_name(subject: str) -> str:
    """ "data.corpus" for the subject "corpus" of a condition, "models.lm.production" for "lm@production"."""
    name, at, alias = subject.partition("@")
    return f"models.{name}.{alias}" if at else f"data.{name}"
