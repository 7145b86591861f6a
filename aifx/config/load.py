"""Loading a configuration from its layers: `--set` > `AIFX_SECTION__KEY` > `aifx.toml` > preset > defaults."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from aifx.config.checks import check_conflicts
from aifx.config.config import SECTION_NAMES, SECTION_TYPES, Config
from aifx.config.diagnostics import Mistake, choices, expectation, refuse, value_text
from aifx.config.foreign_keys import own_key, own_section, suggestion
from aifx.config.kinds import Kinds
from aifx.config.parts import PART_NAMES, PARTS, Kind, PartName, TaskParts
from aifx.config.schema import Own, properties
from aifx.config.sections import INT_MAX, Section, TaskSection
from aifx.config.toml import DEFAULT, Origin, written_origin
from aifx.core.errors import ConfigError, did_you_mean, nearest
from aifx.core.files import read_file
from aifx.core.parsing import parse_toml
from aifx.core.project import CONFIG_NAME, Project


def load_config(
    kinds: Kinds,
    project: Project,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    *,
    file: Path | None = None,
) -> Config:
    """The configuration of a project. Raises one ConfigError with all mistakes.

    Args:
        kinds: what it may name.
        overrides: `section.key=value` strings; a value is TOML, otherwise a bare string.
        environ: `AIFX_SECTION__KEY` variables; the process's own when not given.
        file: to read instead of the project's `aifx.toml`.
    """
    path = project.config_path if file is None else file.absolute()
    label = str(path.relative_to(project.root)) if path.is_relative_to(project.root) else str(file)
    config = _resolve(_read_layers(kinds, path, overrides, environ, label=label), project, presets=True)
    check_conflicts(config)
    return config


def read_config(
    kinds: Kinds,
    path: Path,
    project: Project,
    overrides: Sequence[str] = (),
    *,
    current: Collection[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """The configuration that a run was written with, each value with the origin it had then. Raises ConfigError.

    The values that the run was trained with are not checked again, only what overrides them.

    Args:
        kinds: as `load_config` takes them.
        overrides: as `load_config` takes them; they win over everything.
        current: sections, or keys such as "data.path", that the environment (`environ`) and the project's `aifx.toml`
            override. All others keep the run's values.
    """
    label = str(path.relative_to(project.root)) if path.is_relative_to(project.root) else str(path)
    layers = Layers(kinds)
    layers.add_file(path, label, is_run=True)
    changed = set()
    if current:
        now = Layers(kinds)
        if project.config_path.is_file():
            now.add_file(project.config_path, CONFIG_NAME)
        now.add_environment(os.environ if environ is None else environ)
        layers.mistakes += now.mistakes  # a header that is misspelt must not hide its gates
        for name in current:
            section, _, only = name.partition(".")
            for key, given in now.given.get(section, {}).items():
                if only in ("", key):
                    layers.put(section, key, given)
                    changed.add(f"{section}.{key}")
    changed.update(layers.add_overrides(overrides))
    config = _resolve(layers, project, presets=False)  # what a preset gave is written out
    check_conflicts(config, changed)
    return config


def make_config(kinds: Kinds, values: Mapping[str, Mapping[str, Any]], project: Project, where: str) -> Config:
    """A configuration of these values, by section and key, and defaults. Raises ConfigError.

    Args:
        kinds: as `load_config` takes them.
        where: the values come from, for messages and as their origin.
    """
    layers = Layers(kinds)
    for section, keys in values.items():
        for key, value in keys.items():
            if value is not None:
                layers.put(section, key, Given(value, Origin("file", where)))
    config = _resolve(layers, project, presets=False)
    check_conflicts(config)
    return config


def project_sections(kinds: Kinds, project: Project) -> Own:
    """The sections of the project's own code, imported. Raises ConfigError.

    Only the keys that name such code are read, so mistakes elsewhere in `aifx.toml` are no obstacle.
    """
    layers = _read_layers(kinds, project.config_path)
    names = _part_names(layers)
    task = layers.text("task", "kind") or TaskSection().kind
    if not any(":" in name for name in (task, *names.values())):
        return {}
    parts = kinds.task_parts(task, names, project)
    chosen = {part: task if parts.task else names.get(part, "") for part in PART_NAMES}
    return {part: {name: parts.sections[part]} for part, name in chosen.items() if ":" in name}


def project_code(kinds: Kinds, path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Each `module:NAME` that a configuration at `path` names, without importing it; `overrides` as in `load_config`.

    Raises ConfigError for a file that is not TOML.
    """
    layers = _read_layers(kinds, path, overrides, is_run=path.name != CONFIG_NAME)
    names = [layers.text("task", "kind"), *_part_names(layers).values()]
    return list(dict.fromkeys(name for name in names if name and ":" in name))


def _read_layers(
    kinds: Kinds,
    path: Path,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    *,
    label: str = CONFIG_NAME,
    is_run: bool = False,
) -> Layers:
    layers = Layers(kinds, label)
    layers.add_file(path, label, is_run=is_run)
    layers.add_environment(os.environ if environ is None else environ)
    layers.add_overrides(overrides)
    return layers


def _part_names(layers: Layers) -> dict[PartName, str]:
    """`model.family`, `objective.kind` and `data.kind`, as far as they are set."""
    return {part.section: name for part in PARTS if (name := layers.text(part.section, part.key))}


def _resolve(layers: Layers, project: Project, *, presets: bool) -> Config:
    types = {name: SECTION_TYPES[name] for name in SECTION_NAMES if name not in PART_NAMES}
    task = _validate("task", types, layers)
    parts: TaskParts | None = None
    if isinstance(task, TaskSection):
        try:
            parts = layers.kinds.task_parts(task.kind, _part_names(layers), project)
            types.update({name: parts.sections[name] for name in PART_NAMES})
            if presets and parts.task is None:
                _fill_preset(layers, parts.kinds["model"])
        except ConfigError as error:
            section, _, key = error.what.partition(" ")[0].partition(".")
            layers.mistakes.append(Mistake(layers.origin(section, key).where, error.what, error.why, error.hint))
    sections = {name: _validate(name, types, layers) for name in SECTION_NAMES if name in types}
    refuse(sorted(layers.mistakes, key=_in_order))
    origins = {f"{name}.{key}": layers.origin(name, key) for name, model in types.items() for key in model.model_fields}
    return Config(**sections, parts=parts, origins=origins)  # type: ignore[arg-type]


def _fill_preset(layers: Layers, family: Kind) -> None:
    """Puts a preset's values where nobody set any."""
    name = layers.text("model", "preset")
    if name is None:
        return
    if name not in family.presets:
        problem = f"model.preset = {value_text(name)} is not a preset of {family.name} models"
        reason = did_you_mean(name, family.presets) or "they have none"
        where = layers.origin("model", "preset").where
        layers.mistakes.append(Mistake(where, problem, reason, "docs/models.md lists them"))
        return
    for key, value in family.presets[name].items():
        if layers.get("model", key) is None:
            layers.put("model", key, Given(value, Origin("preset", f"preset {name}")))


def _validate(name: str, types: Mapping[str, type[Section]], layers: Layers) -> Section | None:
    """The section; None, with the reasons among the mistakes, if it cannot be made."""
    model, given = types[name], layers.given.get(name, {})
    values = {}
    for key, item in given.items():
        if key not in model.model_fields:
            layers.mistakes.append(_unknown_key(layers.kinds, name, key, types, item.origin))
            continue
        schema = properties(model)[key]
        value = _value(item, schema)
        if not _is_plain(value):
            problem = f"{name}.{key} holds what no file can"
            layers.mistakes.append(Mistake(item.origin.where, problem, "numbers too long, or no text"))
        elif _has_date(value) and not _takes_dates(schema):
            reason = f"TOML reads it as a date or time; expected {expectation(schema)}"
            layers.mistakes.append(_unusable(name, key, schema, item, reason))
        else:
            values[key] = value
    try:
        # JSON in strict mode has TOML's types: lists become tuples, and true is no number.
        return model.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        found = _explain(error, name, model, given, layers.label)
        layers.mistakes += [mistake for key, mistake in found.items() if key in values or key not in given]
    except Exception as error:  # a validator of a project's own section
        layers.mistakes.append(Mistake(f"[{name}]", f"{model.__name__} fails", f"{type(error).__name__}: {error}"))
    return None


def _explain(
    error: ValidationError, name: str, model: type[Section], given: Mapping[str, Given], label: str
) -> dict[str, Mistake]:
    """The mistakes of a section by key; those of the section as a whole are under an empty one."""
    mistakes = {}
    for detail in error.errors(include_url=False):
        key = str(detail["loc"][0]) if detail["loc"] else ""
        message = detail["msg"].removeprefix("Value error, ")
        if key not in model.model_fields:
            mistakes[key] = Mistake(f"[{name}]", message)
            continue
        schema = properties(model)[key]
        expected = f"expected {expectation(schema)}"
        if key not in given:
            mistakes[key] = Mistake(label, f"{name}.{key} is not set", expected, f"{key} = ... below [{name}]")
        else:
            own = message if detail["type"] == "value_error" else ""  # of a validator
            mistakes[key] = _unusable(name, key, schema, given[key], own or expected)
    return mistakes


def _unusable(name: str, key: str, schema: Mapping[str, Any], given: Given, reason: str) -> Mistake:
    if isinstance(given.value, int) and given.value > INT_MAX:
        reason += f", {schema.get('maximum', INT_MAX)} or less"
    for word in given.value if isinstance(given.value, list) else [given.value]:
        if isinstance(word, str) and (match := nearest(word, choices(schema))) and match != word:
            reason += f"; did you mean {match!r}?"
    hint = f"aifx config keys {name}"
    if expectation(schema) == "text" and isinstance(given.value, (datetime.date, datetime.time)):
        hint = f'{key} = "{value_text(given.value)}"'
    elif schema.get("type") == "array" and given.raw is not None and not isinstance(given.value, list):
        setting = f"--set {name}.{key}" if given.origin.kind == "set" else given.origin.where
        hint = f"""{setting}='["{given.raw}"]'"""
    return Mistake(given.origin.where, f"{name}.{key} = {value_text(given.value)} cannot be used", reason, hint)


def _unknown_key(kinds: Kinds, name: str, key: str, types: Mapping[str, type[Section]], origin: Origin) -> Mistake:
    model = types[name]
    known = [f"{section}.{field}" for section, kind in types.items() for field in kind.model_fields]
    if ours := own_key(name, key, known):
        hint = f"aifx config keys {ours.partition('.')[0]}"
        return Mistake(origin.where, f"[{name}] has no key {key!r}", suggestion(key, ours), hint)
    elsewhere = [section for section in kinds.sections_with(key) if section != name]
    others = [
        f"{part.path} = {variant!r}"
        for part in PARTS
        for variant, kind in kinds.bundled(part.section).items()
        if part.section == name and key in kind.section.model_fields
    ]
    if others:
        reason = f"it belongs to {others[0]}"
    elif near := nearest(key, model.model_fields):
        reason = f"did you mean {near!r}?"
    elif elsewhere:
        reason = "it belongs to " + " or ".join(f"[{section}]" for section in elsewhere)
    else:
        reason = did_you_mean(key, model.model_fields)
    return Mistake(origin.where, f"[{name}] has no key {key!r}", reason, f"aifx config keys {name}")


def _value(given: Given, schema: Mapping[str, Any]) -> Any:
    """The value, or its raw text if the key takes only text and quotes are missing: `--set project.name=2026`."""
    kinds = {choice.get("type", "string") for choice in schema.get("anyOf", [schema])} - {"null"}
    if given.raw is not None and kinds == {"string"} and not isinstance(given.value, str):
        return given.raw
    return given.value


def _is_plain(value: Any) -> bool:
    """Whether a value can be written as JSON: no number of thousands of digits, no bytes that are no text."""
    try:
        json.dumps(value, default=str, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _has_date(value: Any) -> bool:
    """Whether a TOML date or time is in `value`."""
    if isinstance(value, Mapping):
        return any(map(_has_date, value.values()))
    return any(map(_has_date, value)) if isinstance(value, list) else isinstance(value, (datetime.date, datetime.time))


def _takes_dates(schema: Any) -> bool:
    """Whether a JSON Schema accepts dates or times, as a project's own section may."""
    if isinstance(schema, Mapping):
        return str(schema.get("format")) in ("date", "time", "date-time") or any(map(_takes_dates, schema.values()))
    return isinstance(schema, list) and any(map(_takes_dates, schema))


def _in_order(mistake: Mistake) -> tuple[int, str, int]:
    """The file's from top to bottom, then the environment's, then the command line's."""
    label, _, line = mistake.where.rpartition(":")
    if line.isdigit():
        return 0, label, int(line)
    return (2 if mistake.where == "--set" else 1), mistake.where, 0


# The layers: the file, the environment and the command line, each value with its origin

_VARIABLE = re.compile(r"AIFX_(.*?)__(.*)")

SECRETS = {("serve", "api_key"): "AIFX_SERVE__API_KEY"}
"""Keys that only the environment may hold, by their variable: files are copied, and `ps` shows `--set`."""


@dataclass(frozen=True)
class Given:
    """A value that somebody set. `raw` is its text where it was typed without TOML's quotes."""

    value: Any
    origin: Origin
    raw: str | None = None


@dataclass
class Layers:
    """The value that wins so far, by section and key; later layers win over earlier ones.

    Attributes:
        kinds: what mistakes are compared with.
        label: the file's name, for messages about what it lacks.
    """

    kinds: Kinds
    label: str = CONFIG_NAME
    given: dict[str, dict[str, Given]] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def get(self, section: str, key: str) -> Given | None:
        return self.given.get(section, {}).get(key)

    def put(self, section: str, key: str, given: Given) -> None:
        self.given.setdefault(section, {})[key] = given

    def text(self, section: str, key: str) -> str | None:
        given = self.get(section, key)
        return given.value if given is not None and isinstance(given.value, str) else None

    def origin(self, section: str, key: str) -> Origin:
        given = self.get(section, key)
        return given.origin if given is not None else DEFAULT

    def add_file(self, path: Path, label: str, *, is_run: bool = False) -> None:
        """Adds a TOML file. Raises ConfigError if it cannot be read as TOML.

        The `config.toml` of a run (`is_run`) may not be a link, and notes the origin of each value.
        """
        text = _read(path, label, follow=not is_run)
        document = _parse(text, label)
        rows, lines = text.split("\n"), key_lines(text)
        for section, values in document.items():
            where = f"{label}:{lines[(section,)]}"
            if section not in SECTION_NAMES:
                self.mistakes.append(_unknown_section(self.kinds, section, values, where))
            elif not isinstance(values, dict):
                many = isinstance(values, list) and bool(values) and all(isinstance(value, dict) for value in values)
                problem = f"[[{section}]] is no section" if many else f"{section} = ... is no section"
                hint = f"write [{section}], keys below it"
                self.mistakes.append(Mistake(where, problem, f"a section is written [{section}]", hint))
            else:
                for key, value in values.items():
                    if (variable := SECRETS.get((section, key))) is not None:
                        self.mistakes.append(_secret(f"{label}:{lines[(section, key)]}", section, key, variable))
                        continue
                    line = lines.get((section, key), lines[(section,)])
                    origin = written_origin(rows[line - 1]) if is_run else None
                    self.put(section, key, Given(value, origin or Origin("file", f"{label}:{line}")))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Adds `AIFX_SECTION__KEY` variables; others that begin with `AIFX_` are not ours to judge."""
        for name in sorted(environ):
            if match := _VARIABLE.fullmatch(name):
                section, key = (part.lower() for part in match.groups())
                if (section, key) in SECRETS:
                    continue
                if section in SECTION_NAMES:
                    self.put(section, key, _typed(environ[name], Origin("env", name)))
                else:
                    reason = _nearest_name(self.kinds, section, key)
                    self.mistakes.append(Mistake(name, f"no section [{section}]", reason, f"unset {name}"))

    def add_overrides(self, overrides: Sequence[str]) -> list[str]:
        """Adds `--set section.key=value` strings and returns their keys."""
        keys = []
        for override in overrides:
            name, equals, text = override.partition("=")
            name = name.strip()
            section, dot, key = name.partition(".")
            if not equals:
                reason, hint = "it is written section.key=value", f"--set {name or 'train.seed'}=VALUE"
                self.mistakes.append(Mistake("--set", f"{override!r} has no value", reason, hint))
            elif not dot:
                self.mistakes.append(_no_section(self.kinds, section, text))
            elif section not in SECTION_NAMES:
                problem, reason = f"{name!r}: no section [{section}]", _nearest_name(self.kinds, section, key)
                self.mistakes.append(Mistake("--set", problem, reason, "aifx config keys"))
            elif (section, key) in SECRETS:
                self.mistakes.append(_secret("--set", section, key, SECRETS[section, key]))
            else:
                self.put(section, key, _typed(text, Origin("set", "--set")))
                keys.append(f"{section}.{key}")
        return keys


def _read(path: Path, label: str, *, follow: bool) -> str:
    try:
        data = read_file(path, follow=follow)
    except OSError as error:
        raise ConfigError(f"{label} cannot be read", error.strerror or str(error), f"a readable file {path}") from error
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        why = f"byte {error.start} is 0x{data[error.start]:02x}"
        raise ConfigError(f"{label}:{line}: not UTF-8 text", why, "save the file as UTF-8") from error


def _parse(text: str, label: str) -> dict[str, Any]:
    try:
        return parse_toml(text)
    except tomli.TOMLDecodeError as error:
        what = f"{label}:{error.lineno}:{error.colno}: not TOML"
        raise ConfigError(what, str(error), "https://toml.io/en/v1.0.0 has the syntax") from error
    except ValueError as error:  # a number of thousands of digits, brackets a thousand deep
        raise ConfigError(f"{label}: not a configuration", str(error).splitlines()[0], "see docs/config.md") from error


def _typed(text: str, origin: Origin) -> Given:
    """The TOML value of `text`, otherwise `text` itself."""
    try:
        document = parse_toml(f"value = {text}")
    except ValueError:
        document = {}
    return Given(document["value"] if document.keys() == {"value"} else text, origin, text)


def _secret(where: str, section: str, key: str, variable: str) -> Mistake:
    return Mistake(
        where, f"{section}.{key} is a secret", "only the environment may hold it", f"export {variable}=VALUE"
    )


def _nearest_name(kinds: Kinds, section: str, key: str) -> str:
    """The name that `section.key` may have meant, if there is no such section."""
    if ours := own_key(section, key, kinds.full_keys()):
        return suggestion(key, ours)
    if (own := own_section(section)) is None:
        return did_you_mean(section, SECTION_NAMES)
    return f"did you mean {own}.{key}?" if own in kinds.sections_with(key) else f"did you mean {own!r}?"


def _no_section(kinds: Kinds, key: str, text: str) -> Mistake:
    known = kinds.full_keys()
    if ours := own_key("", key, known):
        return Mistake("--set", f"{key!r} has no section", suggestion(key, ours), f"--set {ours}={text}")
    near = nearest(key, (name.partition(".")[2] for name in known)) or key
    meant = " or ".join(f"{home}.{near}" for home in kinds.sections_with(near))
    reason = f"did you mean {meant}?" if meant else "it is written section.key=value"
    return Mistake("--set", f"{key!r} has no section", reason, "aifx config keys")


def _unknown_section(kinds: Kinds, section: str, values: Any, where: str) -> Mistake:
    outside = f"{section!r} is outside of a section"
    if not isinstance(values, dict) and (homes := kinds.sections_with(section)):
        places = " or ".join(f"[{home}]" for home in homes)
        return Mistake(where, outside, f"it belongs to {places}", f"move it below {places}")
    if not isinstance(values, (dict, list)):
        if ours := own_key("", section, kinds.full_keys()):
            return Mistake(where, outside, suggestion(section, ours), f"aifx config keys {ours.partition('.')[0]}")
        return Mistake(where, f"{section!r} is no section", did_you_mean(section, SECTION_NAMES), "aifx config keys")
    own = own_section(section)
    reason = f"did you mean {own!r}?" if own else did_you_mean(section, SECTION_NAMES)
    if isinstance(values, dict):
        meant = [f"{key} is {ours}" for key in values if (ours := own_key(section, key, kinds.full_keys()))]
        reason += f" Its {', '.join(meant[:4])}" if meant else ""
    return Mistake(where, f"no section [{section}]", reason, "aifx config keys")


KeyPath = tuple[str, ...]

_STRING = r'"""(?:[^\\]|\\.)*?"{3,5}|' r"'''.*?'{3,5}|" r'"(?:[^"\\\n]|\\.)*"|' r"'[^'\n]*'"
_TOKEN = re.compile(rf"{_STRING}|#[^\n]*|[\[\]{{}}\n]", re.DOTALL)
_NAME = rf"(?:{_STRING}|[A-Za-z0-9_-]+)"
_KEY = re.compile(rf"[ \t]*(?P<header>\[?)[ \t\[]*(?P<path>{_NAME}(?:[ \t]*\.[ \t]*{_NAME})*)")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of the first occurrence of each table and key of a TOML text, by path: `("train", "seed")`.

    Keys within an inline table are left out. The text must have passed a TOML reader: nothing is checked here.
    """
    lines: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for line, statement in _statements(text):
        if match := _KEY.match(statement):
            path = tuple(map(_unquoted, re.findall(_NAME, match["path"])))
            if match["header"]:
                table = path
            else:
                path = table + path
            for depth in range(1, len(path) + 1):
                lines.setdefault(path[:depth], line)
    return lines


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each line of a TOML text, together with those on which its value goes on, and its number."""
    start, line, depth = 0, 1, 0
    for token in _TOKEN.finditer(text + "\n"):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        elif token[0] == "\n" and depth == 0:
            statement = text[start : token.end()]
            yield line, statement
            start, line = token.end(), line + statement.count("\n")


def _unquoted(name: str) -> str:
    return str(tomli.loads(f"name = {name}")["name"]) if name[0] in "\"'" else name
