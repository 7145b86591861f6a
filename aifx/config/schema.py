"""The settings described: as JSON Schema for editors, and key by key for people."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from pydantic import ValidationError
from pydantic.errors import PydanticUserError

from aifx.config.config import SECTION_NAMES, SECTION_TYPES
from aifx.config.diagnostics import expectation
from aifx.config.kinds import Kinds
from aifx.config.parts import PART_NAMES, PARTS, Kind, Part
from aifx.config.sections import INT_MAX, RESUME_SAFE, Section, is_marked
from aifx.config.toml import literal
from aifx.core.errors import UsageError
from aifx.core.results import Result

Own: TypeAlias = Mapping[str, Mapping[str, type[Section]]]
"""The sections that a project's own code brings: by section, then by the `module:NAME` that selects it."""


@dataclass(frozen=True)
class Setting:
    """One key of `aifx.toml`. `variant` names the family, objective, kind of data or task whose section has it."""

    section: str
    key: str
    variant: str | None
    expected: str
    default: Any
    description: str
    is_resume_safe: bool

    @property
    def default_text(self) -> str:
        """The default as TOML."""
        return "(not set)" if self.default is None else literal(self.default)


@dataclass(frozen=True)
class SettingList(Result):
    """The document of `aifx config keys --json`."""

    keys: list[Setting]


def settings(kinds: Kinds, own: Own | None = None) -> Iterator[Setting]:
    """Every key, those of a project's own code included, in the order in which they are written."""
    for section in SECTION_NAMES:
        for variant, model in _models(kinds, section, own or {}):
            for key, schema in properties(model).items():
                is_safe = is_marked(model.model_fields[key].json_schema_extra, RESUME_SAFE)
                description = schema.get("description", "")
                yield Setting(section, key, variant, expectation(schema), schema.get("default"), description, is_safe)


def _models(kinds: Kinds, section: str, own: Own) -> list[tuple[str | None, type[Section]]]:
    """The types that a section may have, each with the name that selects it."""
    for part in PART_NAMES:
        if part == section:
            found = ((name, kind.section) for name, kind in kinds.bundled(part).items())
            return [*found, *own.get(section, {}).items()]
    return [(None, SECTION_TYPES[section])]


@functools.cache
def properties(model: type[Section]) -> dict[str, dict[str, Any]]:
    """The JSON Schema of each key of a section, references resolved."""
    try:
        schema = model.model_json_schema()
    except PydanticUserError:  # a project's own section with a type that JSON Schema does not know
        return {key: {} for key in model.model_fields}
    resolved: dict[str, dict[str, Any]] = _resolve(schema.get("properties", {}), schema.get("$defs", {}))
    return resolved


def check_options(section: type[Section], options: Mapping[str, Any], command: str) -> None:
    """Check options of a command that set keys of a section, by key; None is not given.

    Raises UsageError that names the option, as the command line has it, and the values that the key takes.
    """
    given = {key: value for key, value in options.items() if value is not None}
    try:
        section.model_validate(given)
    except ValidationError as error:
        key = str(error.errors()[0]["loc"][0])
        schema, value = properties(section)[key], given[key]
        most = f", {INT_MAX} or less" if isinstance(value, int) and value > INT_MAX else ""
        option = f"--{key.replace('_', '-')}"
        why = f"expected {expectation(schema)}{most}"
        raise UsageError(f"{option} {value} cannot be used", why, f"{command} {option} {schema['default']}") from None


def json_schema(kinds: Kinds, own: Own | None = None) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a whole `aifx.toml`.

    `[model]`, `[objective]` and `[data]` follow from `model.family`, `objective.kind` and `data.kind`, or from
    `task.kind` if these are not set. It includes `own`, the sections of the project's own code.
    """
    own = own or {}
    fixed = {name: _section_schema(SECTION_TYPES[name]) for name in SECTION_NAMES if name not in PART_NAMES}
    own_tasks = [name for name in own.get("model", {}) if all(name in own.get(part, {}) for part in PART_NAMES)]
    fixed["task"]["properties"]["kind"]["anyOf"] = [{"enum": [*kinds.tasks, *own_tasks]}, {"pattern": ":"}]
    definitions: dict[str, Any] = {}
    rules: list[dict[str, Any]] = []
    selecting: dict[str, Any] = {}
    for part in PARTS:
        names = {"anyOf": [{"enum": [name for name, _ in _models(kinds, part.section, own)]}, {"pattern": ":"}]}
        selecting[part.section] = {"type": "object", "properties": {part.key: names}}
        for name, model in _models(kinds, part.section, own):
            assert name is not None
            label = f"{part.section}_{name.replace(':', '.')}"
            definitions[label] = _section_schema(model, kinds.bundled(part.section).get(name))
            tasks = [task for task, parts in kinds.tasks.items() if parts[part.section] == name]
            rules.append(_when(part, name, [*tasks, *(task for task in own_tasks if task == name)], label))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "aifx.toml",
        "description": "Configuration of an aifx project.",
        "type": "object",
        "properties": {name: fixed.get(name) or selecting[name] for name in SECTION_NAMES},
        "additionalProperties": False,
        "allOf": rules,
        "$defs": definitions,
    }


def _when(part: Part, name: str, tasks: list[str], label: str) -> dict[str, Any]:
    """The rule that a section has the schema `label` if `name` is set, or if none is and one of `tasks` implies it."""

    def has(section: str, key: str, values: list[str]) -> dict[str, Any]:
        inner = {"properties": {key: {"enum": values}}, "required": [key]}
        return {"properties": {section: inner}, "required": [section]}

    implied: list[dict[str, Any]] = [has("task", "kind", tasks)]
    if "language" in tasks:  # the default
        implied.append({"not": {"properties": {"task": {"required": ["kind"]}}, "required": ["task"]}})
    is_set = {"properties": {part.section: {"required": [part.key]}}, "required": [part.section]}
    conditions = [has(part.section, part.key, [name])]
    if tasks:
        conditions.append({"not": is_set, "anyOf": implied})
    return {"if": {"anyOf": conditions}, "then": {"properties": {part.section: {"$ref": f"#/$defs/{label}"}}}}


def _section_schema(model: type[Section], kind: Kind | None = None) -> dict[str, Any]:
    keys = {key: _for_editors(schema) for key, schema in properties(model).items()}
    if kind is not None and kind.presets:
        keys["preset"]["enum"] = sorted(kind.presets)
    description = " ".join((model.__doc__ or "").split())
    return {"type": "object", "description": description, "properties": keys, "additionalProperties": False}


def _for_editors(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a key without parts that TOML cannot express (null) or that no editor shows."""
    kept = {key: value for key, value in schema.items() if key != "title" and not key.startswith("aifx_")}
    if kept.get("default", ...) is None:
        del kept["default"]
    if "patternProperties" in kept:
        kept["additionalProperties"] = False
    if "anyOf" in kept:
        choices = [choice for choice in kept["anyOf"] if choice.get("type") != "null"]
        if len(choices) == 1:
            return {**choices[0], **{key: value for key, value in kept.items() if key != "anyOf"}}
        kept["anyOf"] = choices
    return kept


def _resolve(schema: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            target = definitions[schema["$ref"].rsplit("/", 1)[-1]]
            return _resolve({**target, **{k: v for k, v in schema.items() if k != "$ref"}}, definitions)
        return {key: _resolve(value, definitions) for key, value in schema.items()}
    return [_resolve(item, definitions) for item in schema] if isinstance(schema, list) else schema
