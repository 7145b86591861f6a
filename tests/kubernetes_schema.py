"""Validates manifests as the API server of Kubernetes does: by the schema of JobSet's CRD and its CEL rules.

`cluster/jobset_schema.json` is from JobSet, licensed under Apache-2.0. Its schema of a pod is also that of other kinds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import celpy
import jsonschema

JOBSET: dict[str, Any] = json.loads((Path(__file__).parent / "cluster/jobset_schema.json").read_text())["schema"]


def schema_at(*path: str) -> dict[str, Any]:
    """The schema of a part of a JobSet; `[]` stands for the items of a list."""
    schema = JOBSET
    for name in path:
        schema = schema["items"] if name == "[]" else schema["properties"][name]
    return schema


JOB = ("spec", "replicatedJobs", "[]", "template", "spec")
POD = (*JOB, "template")


def faults(schema: Mapping[str, Any], value: Any, old: Any = None) -> list[str]:
    """Everything that the API server would refuse `value` for; with `old`, also as a change of it."""
    key = id(schema)
    if key not in _validators:
        _validators[key] = schema, jsonschema.Draft202012Validator(_closed(schema))
    found = [f"{error.json_path}: {error.message}" for error in _validators[key][1].iter_errors(value)]
    return found or [*_rules(schema, value, old, "$"), *_keys(schema, value, "$")]


_validators: dict[int, tuple[Mapping[str, Any], Any]] = {}
"""By the identity of a schema, which is kept beside its validator."""


def _closed(schema: Any) -> Any:
    """A schema that refuses unknown fields, as the strict validation that kubectl asks for does."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {key: _closed(item) for key, item in schema.items() if key != "properties"}
    if "properties" in schema:
        closed["properties"] = {name: _closed(item) for name, item in schema["properties"].items()}
        if "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed["additionalProperties"] = False
    return closed


def _parts(
    schema: Mapping[str, Any], value: Any, old: Any, where: str
) -> Iterator[tuple[Mapping[str, Any], Any, Any, str]]:
    """Each value within `value` that has a schema, with the one that it replaces."""
    yield schema, value, old, where
    if isinstance(value, Mapping):
        before = old if isinstance(old, Mapping) else {}
        for key, item in value.items():
            inner = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            if isinstance(inner, Mapping):
                yield from _parts(inner, item, before.get(key), f"{where}.{key}")
    elif isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            before = old[index] if isinstance(old, list) and index < len(old) else None
            yield from _parts(schema["items"], item, before, f"{where}[{index}]")


def _rules(schema: Mapping[str, Any], value: Any, old: Any, where: str) -> Iterator[str]:
    for part, item, before, place in _parts(schema, value, old, where):
        for rule in part.get("x-kubernetes-validations", ()):
            if "oldSelf" in rule["rule"] and before is None:
                continue  # a rule of changes
            names = {"self": celpy.json_to_cel(item)}
            if before is not None:
                names["oldSelf"] = celpy.json_to_cel(before)
            if not _program(rule["rule"]).evaluate(names):
                yield f"{place}: {rule['message']}"


@functools.cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))


def _keys(schema: Mapping[str, Any], value: Any, where: str) -> Iterator[str]:
    """Items that a list may have only once, such as variables of one name."""
    for part, item, _, place in _parts(schema, value, None, where):
        if part.get("x-kubernetes-list-type") == "map":
            keys = [tuple(entry.get(key) for key in part["x-kubernetes-list-map-keys"]) for entry in item]
            yield from (f"{place}: {key} is there twice" for key in set(keys) if keys.count(key) > 1)
