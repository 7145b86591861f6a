"""Mistakes in a configuration, collected while it is read and reported together."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aifx.config.sections import INT_MAX
from aifx.core.errors import ConfigError


@dataclass(frozen=True)
class Mistake:
    """One thing that cannot be used. `where` is `aifx.toml:12`, the name of a variable, or `--set`."""

    where: str
    problem: str
    reason: str = ""
    hint: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.problem, self.reason) if part)


def refuse(mistakes: Iterable[Mistake]) -> None:
    """Raise ConfigError if there are any: the first in `what`, the others in `why`."""
    found = list(dict.fromkeys(mistakes))
    if not found:
        return
    first, *others = found
    if not others:
        what = ": ".join(part for part in (first.where, first.problem) if part)
        raise ConfigError(what, first.reason, first.hint or "aifx config check")
    raise ConfigError(str(first), "\n".join(map(str, others)), "fix these, then: aifx config check")


def value_text(value: Any) -> str:
    """A value as a person would have written it, cut when long."""
    if isinstance(value, float):
        text = repr(value)
    elif isinstance(value, (datetime.date, datetime.time)):
        text = value.isoformat()
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def expectation(schema: Mapping[str, Any]) -> str:
    """The values that a JSON schema accepts, in words: "a whole number, 1 or more"."""
    if "anyOf" in schema:
        return " or ".join(expectation(s) for s in schema["anyOf"] if s.get("type") != "null")
    if "const" in schema:
        return value_text(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(value_text(choice) for choice in schema["enum"])
    if "prefixItems" in schema:
        return "a list of " + " and ".join(expectation(item) for item in schema["prefixItems"])
    match schema.get("type"):
        case "integer":
            return "a whole number" + _range(schema)
        case "number":
            return "a number" + _range(schema)
        case "array":
            least = f", {schema['minItems']} or more of them" if schema.get("minItems") else ""
            return f"a list, each {expectation(schema.get('items', {}))}{least}"
        case "object" if isinstance(values := schema.get("additionalProperties"), Mapping):
            return f"a table, each {expectation(values)}"
        case "object" if patterns := schema.get("patternProperties"):
            return f"a table, each {expectation(next(iter(patterns.values())))}"
        case "string" if examples := schema.get("examples"):
            return f"text such as {value_text(examples[0])}"
        case kind:
            names = {"string": "text", "boolean": "true or false", "object": "a table"}
            return names.get(str(kind), "another value")


def choices(schema: Mapping[str, Any]) -> list[str]:
    """The words that a value, or each item of a list, may be; empty if it is not one of a few."""
    for part in (schema, *schema.get("anyOf", ()), schema.get("items", {})):
        if "enum" in part:
            return [word for word in part["enum"] if isinstance(word, str)]
    return []


_BOUNDS: Sequence[tuple[str, str]] = (
    ("minimum", "{} or more"),
    ("exclusiveMinimum", "above {}"),
    ("maximum", "{} or less"),
    ("exclusiveMaximum", "below {}"),
)


def _range(schema: Mapping[str, Any]) -> str:
    bounds = [
        words.format(f"{schema[name]:g}" if schema[name] < 1e6 else schema[name])
        for name, words in _BOUNDS
        if name in schema and schema[name] != INT_MAX  # only for keys that it concerns
    ]
    return f", {' and '.join(bounds)}" if bounds else ""
