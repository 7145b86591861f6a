"""The JSON Schema of a report: `python -m aifx.benchmarking.schema > docs/bench.schema.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from aifx.benchmarking.results import Report


def report_schema() -> dict[str, Any]:
    """Of what `aifx bench ... --json` prints, or the error in its place."""
    document = Report.model_json_schema(mode="serialization")
    schemas = {**document.pop("$defs"), "Report": document, "Error": ERROR}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "aifx bench SUITE --json",
        "description": "Version 1: fields may be added. `error` alone where the bench did not come to its end.",
        "oneOf": [{"$ref": "#/$defs/Report"}, {"$ref": "#/$defs/Error"}],
        "$defs": {name: _told(schema) for name, schema in sorted(schemas.items())},
    }


ERROR = {
    "type": "object",
    "required": ["schema_version", "error"],
    "properties": {"schema_version": {"const": 1}, "error": {"$ref": "#/$defs/Failure"}},
}


def _told(schema: Any) -> Any:
    """Without the titles that repeat a name, what holds anyway, and the indentation of docstrings."""
    if isinstance(schema, Mapping):
        return {
            key: " ".join(value.split()) if key == "description" and isinstance(value, str) else _told(value)
            for key, value in schema.items()
            if not (key == "title" and isinstance(value, str)) and not (key == "additionalProperties" and value is True)
        }
    return [_told(value) for value in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    sys.stdout.write(json.dumps(report_schema(), indent=2) + "\n")
