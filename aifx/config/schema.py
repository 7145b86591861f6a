"""The settings described: as JSON Schema for editors, and key by key for people."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic.errors import PydanticUserError

from aifx.config.config import SECTION_NAMES, is_marked, section_models
from aifx.config.diagnostics import expectation
from aifx.config.presets import PRESETS
from aifx.config.sections import RESUME_SAFE, Section
from aifx.config.task_sections import BUNDLED_KINDS, TaskSections

OWN = "project"
"""The name in a schema's `$defs` of a project's own task: `module:Class` cannot be part of a reference."""


@dataclass(frozen=True)
class Setting:
    """One key of `aifx.toml`. `kind` names the task whose section has it, where the section differs by task."""

    section: str
    key: str
    kind: str | None
    expected: str
    default: Any
    description: str
    is_resume_safe: bool


@dataclass(frozen=True)
class SettingList:
    """What `aifx config keys --json` prints."""

    keys: list[Setting]


def settings(own: TaskSections | None = None) -> Iterator[Setting]:
    """Every key of the bundled tasks and of a project's own, in the order in which they are written."""
    for section in SECTION_NAMES:
        for kind, model in _models(section, own):
            for key, schema in properties(model).items():
                is_safe = is_marked(model.model_fields[key].json_schema_extra, RESUME_SAFE)
                description = schema.get("description", "")
                yield Setting(section, key, kind, expectation(schema), schema.get("default"), description, is_safe)


def _models(section: str, own: TaskSections | None) -> list[tuple[str | None, type[Section]]]:
    """The models that a section may have, each with its task where that decides."""
    if section not in ("model", "data"):
        return [(None, section_models(section)[0])]
    models: list[tuple[str | None, type[Section]]] = list(zip(BUNDLED_KINDS, section_models(section), strict=True))
    return [*models, (own.kind, own.model if section == "model" else own.data)] if own else models


@functools.cache
def properties(model: type[Section]) -> dict[str, dict[str, Any]]:
    """The JSON Schema of each key of a section, references resolved."""
    try:
        schema = model.model_json_schema()
    except PydanticUserError:  # a project's own section with a type that JSON Schema does not know
        return {key: {} for key in model.model_fields}
    resolved: dict[str, dict[str, Any]] = _resolve(schema.get("properties", {}), schema.get("$defs", {}))
    return resolved


def fitting_presets(model: type[Section]) -> dict[str, dict[str, Any]]:
    """The presets that a `[model]` of this type can take."""
    return {name: values for name, values in PRESETS.items() if values.keys() <= model.model_fields.keys()}


def json_schema(own: TaskSections | None = None) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a whole `aifx.toml`; `[model]` and `[data]` follow from `task.kind`.

    Args:
        own: the project's own task, to describe in addition to the bundled ones.
    """
    fixed = {name: _section_schema(section_models(name)[0]) for name in SECTION_NAMES if name not in ("model", "data")}
    kinds = {kind: kind for kind in BUNDLED_KINDS} | ({own.kind: OWN} if own else {})
    fixed["task"]["properties"]["kind"]["anyOf"] = [{"enum": list(kinds)}, {"pattern": ":"}]
    definitions = {
        f"{kinds[str(kind)]}_{name}": _section_schema(model)
        for name in ("model", "data")
        for kind, model in _models(name, own)
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "aifx.toml",
        "description": "Configuration of an aifx project.",
        "type": "object",
        "properties": {name: fixed.get(name, {"type": "object"}) for name in SECTION_NAMES},
        "additionalProperties": False,
        "allOf": [_when(kind, label, default=kind == "language") for kind, label in kinds.items()],
        "$defs": definitions,
    }


def _when(kind: str, label: str, *, default: bool) -> dict[str, Any]:
    """`[model]` and `[data]` follow from `task.kind`; the default one also where that is not set."""
    is_kind: dict[str, Any] = {"properties": {"task": {"properties": {"kind": {"const": kind}}}}}
    if not default:
        is_kind = {
            "properties": {"task": {"properties": {"kind": {"const": kind}}, "required": ["kind"]}},
            "required": ["task"],
        }
    return {
        "if": is_kind,
        "then": {"properties": {name: {"$ref": f"#/$defs/{label}_{name}"} for name in ("model", "data")}},
    }


def _section_schema(model: type[Section]) -> dict[str, Any]:
    keys = {key: _for_editors(schema) for key, schema in properties(model).items()}
    if "preset" in keys and (presets := fitting_presets(model)):
        keys["preset"]["enum"] = sorted(presets)
    description = " ".join((model.__doc__ or "").split())
    return {"type": "object", "description": description, "properties": keys, "additionalProperties": False}


def _for_editors(schema: dict[str, Any]) -> dict[str, Any]:
    """Without what TOML cannot say (null) and what no editor shows."""
    kept = {key: value for key, value in schema.items() if key != "title" and not key.startswith("aifx_")}
    if kept.get("default", ...) is None:
        del kept["default"]
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
