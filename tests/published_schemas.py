"""Validation of what commands print with --json, by the schemas in docs/schemas."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parents[1] / "docs" / "schemas"


@functools.cache
def validator(name: str) -> Draft202012Validator:
    """The validator of docs/schemas/NAME.json."""
    schema = json.loads((FOLDER / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def check_document(name: str, document: Any) -> None:
    """Assert that a document conforms to docs/schemas/NAME.json."""
    errors = [f"{error.json_path}: {error.message}" for error in _leaves(validator(name).iter_errors(document))]
    assert not errors, f"docs/schemas/{name}.json: {errors[:5]}"


def _leaves(errors: Any) -> Any:
    """The errors themselves, not that none of several forms fits."""
    for error in errors:
        yield from _leaves(error.context) if error.context else (error,)


def check_answer(arguments: Sequence[str], stdout: str) -> None:
    """Assert that a command with --json printed nothing, or one document of its schema."""
    if "--json" not in arguments or not stdout or "--help" in arguments:
        return
    if (name := schema_of(arguments)) is not None:
        check_document(name, json.loads(stdout))


def schema_of(arguments: Sequence[str]) -> str | None:
    """The schema of a command line, that of failures if it names no command; None for a command of the tests."""
    words = [word for word in arguments if not word.startswith("-")]
    if words[:1] == ["probe"]:
        return None
    if "--version" in arguments:
        return "commands/version"
    names = ("-".join(words[:3]), "-".join(words[:2]), *words[:1])
    return next((f"commands/{name}" for name in names if (FOLDER / "commands" / f"{name}.json").is_file()), "failure")
