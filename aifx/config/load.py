"""From what people set to one configuration: `--set` > `AIFX_SECTION__KEY` > `aifx.toml` > preset > defaults."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aifx.config.checks import conflicts, to_mistake
from aifx.config.config import PART_NAMES, SECTION_NAMES, Config, section_models
from aifx.config.diagnostics import Mistake, choices, expectation, refuse, shown
from aifx.config.foreign_keys import own_key, suggestion
from aifx.config.kinds import Family
from aifx.config.layers import Given, Layers, sections_with
from aifx.config.origins import DEFAULT, Origin
from aifx.config.registry import PARTS, PartName, TaskParts, task_parts, variants
from aifx.config.schema import Own, properties
from aifx.config.sections import INT_MAX, Section, TaskSection
from aifx.config.toml import written_origin
from aifx.core.errors import ConfigError, did_you_mean, nearest
from aifx.core.project import CONFIG_NAME, Project


def load_config(project: Project, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Config:
    """The configuration of a project. Raises one ConfigError with all mistakes.

    Args:
        overrides: `section.key=value` strings; a value is TOML, otherwise a bare string.
        environ: `AIFX_SECTION__KEY` variables; the process's own when not given.
    """
    layers = Layers()
    layers.add_file(project.config_path, CONFIG_NAME, follow=True)
    layers.add_environment(os.environ if environ is None else environ)
    layers.add_overrides(overrides)
    config = _resolve(layers, project, presets=True)
    refuse(to_mistake(conflict, config) for conflict in conflicts(config))
    return config


def read_config(
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
        overrides: as `load_config` takes them; they win over everything.
        current: sections whose keys the environment and the project's `aifx.toml` override. Other keys and sections
            keep the run's values.
        environ: as `load_config` takes it; it plays no part in the other sections.
    """
    label = str(path.relative_to(project.root)) if path.is_relative_to(project.root) else str(path)
    layers = Layers()
    lines = layers.add_file(path, label).split("\n")
    for section, keys in layers.given.items():
        for key, given in keys.items():
            written = written_origin(lines[int(given.origin.where.rpartition(":")[2]) - 1])
            layers.put(section, key, Given(given.value, written or given.origin))
    changed = set(_add_current(layers, project, current, os.environ if environ is None else environ))
    changed.update(layers.add_overrides(overrides))
    config = _resolve(layers, project, presets=False)  # what a preset gave is written out
    found = conflicts(config)
    refuse(to_mistake(conflict, config) for conflict in found if changed.intersection(conflict.keys))
    return config


def project_sections(project: Project, environ: Mapping[str, str] | None = None) -> Own:
    """The sections of the project's own code, imported. Raises ConfigError.

    Only the keys that name such code are read, so mistakes elsewhere in `aifx.toml` are no obstacle.
    """
    layers = _read_layers(project.config_path, (), environ)
    names = _part_names(layers)
    task = str(_text(layers, "task", "kind") or TaskSection.model_fields["kind"].default)
    if not any(":" in name for name in (task, *names.values())):
        return {}
    parts = task_parts(task, names, project)
    chosen = {part: task if parts.task else names.get(part, "") for part in PART_NAMES}
    return {part: {name: parts.sections[part]} for part, name in chosen.items() if ":" in name}


def project_code(path: Path, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> list[str]:
    """Each `module:NAME` that a configuration at `path` names, without importing it.

    Args:
        overrides: as `load_config` takes them.
        environ: as `load_config` takes it.

    Raises ConfigError for a file that is not TOML.
    """
    layers = _read_layers(path, overrides, environ)
    names = [_text(layers, "task", "kind"), *_part_names(layers).values()]
    return list(dict.fromkeys(name for name in names if name and ":" in name))


def _read_layers(path: Path, overrides: Sequence[str], environ: Mapping[str, str] | None) -> Layers:
    layers = Layers()
    layers.add_file(path, CONFIG_NAME, follow=path.name == CONFIG_NAME)
    layers.add_environment(os.environ if environ is None else environ)
    layers.add_overrides(overrides)
    return layers


def _text(layers: Layers, section: str, key: str) -> str | None:
    given = layers.get(section, key)
    return given.value if given is not None and isinstance(given.value, str) else None


def _part_names(layers: Layers) -> dict[PartName, str]:
    """`model.family`, `objective.kind` and `data.kind`, as far as they are set."""
    return {part.section: name for part in PARTS if (name := _text(layers, part.section, part.key))}


def _add_current(
    layers: Layers, project: Project, sections: Collection[str], environ: Mapping[str, str]
) -> Iterator[str]:
    """Lays what is set now in `sections` over a run's configuration; yields the keys."""
    if not sections:
        return
    now = Layers()
    if project.config_path.is_file():
        now.add_file(project.config_path, CONFIG_NAME, follow=True)
    now.add_environment(environ)
    layers.mistakes += now.mistakes  # a header that is misspelt must not hide its gates
    for section in sections:
        for key, given in now.given.get(section, {}).items():
            layers.put(section, key, given)
            yield f"{section}.{key}"


def _resolve(layers: Layers, project: Project, *, presets: bool) -> Config:
    mistakes = list(layers.mistakes)
    types: dict[str, type[Section]] = {
        name: section_models(name)[0] for name in SECTION_NAMES if name not in PART_NAMES
    }
    task, found = _validate("task", types, layers)
    mistakes += found
    parts: TaskParts | None = None
    if isinstance(task, TaskSection):
        try:
            parts = task_parts(task.kind, _part_names(layers), project)
            types.update({name: parts.sections[name] for name in PART_NAMES})
            if presets and parts.task is None:
                mistakes += _fill_preset(layers, parts.family)
        except ConfigError as error:
            section, _, key = error.what.partition(" ")[0].partition(".")
            mistakes.append(Mistake(_origin(layers, section, key).where, error.what, error.why, error.hint))

    sections: dict[str, Section | None] = {}
    for name in SECTION_NAMES:
        if name in types:
            sections[name], found = _validate(name, types, layers)
            mistakes += found
    refuse(sorted(mistakes, key=_in_order))
    origins = {
        f"{name}.{key}": _origin(layers, name, key) for name, model in types.items() for key in model.model_fields
    }
    return Config(**sections, parts=parts, origins=origins)  # type: ignore[arg-type]


def _fill_preset(layers: Layers, family: Family) -> list[Mistake]:
    """Puts a preset's values where nobody set any."""
    named = layers.get("model", "preset")
    if named is None or not isinstance(named.value, str):
        return []
    if named.value not in family.presets:
        problem = f"model.preset = {shown(named.value)} is not a preset of {family.name} models"
        reason = did_you_mean(named.value, family.presets) or "they have none"
        return [Mistake(named.origin.where, problem, reason, "docs/models.md lists them")]
    for key, value in family.presets[named.value].items():
        if layers.get("model", key) is None:
            layers.put("model", key, Given(value, Origin("preset", f"preset {named.value}")))
    return []


def _validate(name: str, types: Mapping[str, type[Section]], layers: Layers) -> tuple[Section | None, list[Mistake]]:
    """The section, or what is wrong with it."""
    model, given = types[name], layers.given.get(name, {})
    mistakes = [_unknown_key(name, key, types, given[key].origin) for key in given if key not in model.model_fields]
    values = {key: _value(item, properties(model)[key]) for key, item in given.items() if key in model.model_fields}
    for key, value in list(values.items()):
        if not _is_plain(value):
            mistakes.append(
                Mistake(given[key].origin.where, f"{name}.{key} holds what no file can", "numbers too long, or no text")
            )
        elif _has_date(value) and not _takes_dates(properties(model)[key]):
            mistakes.append(_date_refused(name, key, given[key], properties(model)[key]))
        else:
            continue
        del values[key]
    try:
        # JSON in strict mode has TOML's types: lists become tuples, and true is no number.
        section = model.model_validate_json(json.dumps(values, default=_encode), strict=True)
    except ValidationError as error:
        found = _explain(error, name, model, given)
        return None, mistakes + [mistake for key, mistake in found.items() if key in values or key not in given]
    except Exception as error:  # a validator of a project's own section
        return None, [*mistakes, Mistake(f"[{name}]", f"{model.__name__} fails", f"{type(error).__name__}: {error}")]
    return section, mistakes


def _explain(error: ValidationError, name: str, model: type[Section], given: Mapping[str, Given]) -> dict[str, Mistake]:
    """The mistakes of a section by key; those of the section as a whole are under an empty one."""
    mistakes = {}
    for detail in error.errors(include_url=False):
        key = str(detail["loc"][0]) if detail["loc"] else ""
        if key not in model.model_fields:
            mistakes[key] = Mistake(f"[{name}]", detail["msg"].removeprefix("Value error, "))
        elif key not in given:
            reason = f"expected {expectation(properties(model)[key])}"
            mistakes[key] = Mistake(CONFIG_NAME, f"{name}.{key} is not set", reason, f"{key} = ... below [{name}]")
        else:
            mistakes[key] = _unusable(
                name, key, model, given[key], detail["msg"] if detail["type"] == "value_error" else ""
            )
    return mistakes


def _unusable(name: str, key: str, model: type[Section], given: Given, message: str) -> Mistake:
    schema = properties(model)[key]
    reason = message.removeprefix("Value error, ") or f"expected {expectation(schema)}"
    if isinstance(given.value, int) and given.value > INT_MAX:
        reason += f", {schema.get('maximum', INT_MAX)} or less"
    for word in given.value if isinstance(given.value, list) else [given.value]:
        if isinstance(word, str) and (match := nearest(word, choices(schema))) and match != word:
            reason += f"; did you mean {match!r}?"
    hint = f"aifx config keys {name}"
    if schema.get("type") == "array" and given.raw is not None:
        setting = f"--set {name}.{key}" if given.origin.kind == "set" else given.origin.where
        hint = f"""{setting}='["{given.raw}"]'"""
    return Mistake(given.origin.where, f"{name}.{key} = {shown(given.value)} cannot be used", reason, hint)


def _unknown_key(name: str, key: str, types: Mapping[str, type[Section]], origin: Origin) -> Mistake:
    model = types[name]
    known = [f"{section}.{field}" for section, kind in types.items() for field in kind.model_fields]
    if ours := own_key(name, key, known):
        hint = f"aifx config keys {ours.partition('.')[0]}"
        return Mistake(origin.where, f"[{name}] has no key {key!r}", suggestion(key, ours), hint)
    elsewhere = [section for section in sections_with(key) if section != name]
    others = [
        f"{part.path} = {variant!r}"
        for part, variant, other in variants()
        if part.section == name and key in other.model_fields
    ]
    if near := nearest(key, model.model_fields):
        reason = f"did you mean {near!r}?"
    elif others:
        reason = f"it belongs to {others[0]}"
    elif elsewhere:
        reason = "it belongs to " + " or ".join(f"[{section}]" for section in elsewhere)
    else:
        reason = did_you_mean(key, model.model_fields)
    return Mistake(origin.where, f"[{name}] has no key {key!r}", reason, f"aifx config keys {name}")


def _value(given: Given, schema: Mapping[str, Any]) -> Any:
    """What was typed without quotes is text where only text will do: `--set project.name=2026`."""
    kinds = {choice.get("type", "string") for choice in schema.get("anyOf", [schema])} - {"null"}
    if given.raw is not None and kinds == {"string"} and not isinstance(given.value, str):
        return given.raw
    return given.value


def _is_plain(value: Any) -> bool:
    """Whether a value can be written as JSON: no number of thousands of digits, no bytes that are no text."""
    try:
        json.dumps(value, default=_encode, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _encode(value: datetime.date | datetime.time) -> str:
    return value.isoformat()


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


def _date_refused(name: str, key: str, given: Given, schema: Mapping[str, Any]) -> Mistake:
    """The mistake of a date or time where the key takes none: without quotes, TOML reads `1979-05-27` as a date."""
    expected, hint = expectation(schema), f"aifx config keys {name}"
    is_scalar = isinstance(given.value, (datetime.date, datetime.time))
    value = given.value.isoformat() if is_scalar else shown(given.value)
    if is_scalar and expected == "text":
        hint = f'{key} = "{value}"'
    reason = f"TOML reads it as a date or time; expected {expected}"
    return Mistake(given.origin.where, f"{name}.{key} = {value} cannot be used", reason, hint)


def _origin(layers: Layers, section: str, key: str) -> Origin:
    given = layers.get(section, key)
    return given.origin if given else DEFAULT


def _in_order(mistake: Mistake) -> tuple[int, str, int]:
    """The file's from top to bottom, then the environment's, then the command line's."""
    label, _, line = mistake.where.rpartition(":")
    if line.isdigit():
        return 0, label, int(line)
    return (2 if mistake.where == "--set" else 1), mistake.where, 0
