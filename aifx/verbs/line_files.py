"""The file of a line: its check, its picture, and the files that start it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from aifx.core.project import Project, find_project
from aifx.verbs.arguments import StrPath

if TYPE_CHECKING:
    from aifx.lines.checks import CheckedLine, Finding


def line_check(
    file: StrPath | None = None,
    *,
    check_command: Callable[[Sequence[str]], None] = lambda words: None,
    project: StrPath = ".",
) -> CheckedLine:
    """Check a line without running it: its file, commands, names, variables and limits. All findings come at once.

    Args:
        file: by default line.toml of the project.
        check_command: called with the words of each command; raises UsageError for those that are no command of aifx.
            `aifx line check` passes one that knows all commands and options.
        project: a folder in the project.

    Example:
        >>> aifx.line_check("nightly.toml")
        Traceback (most recent call last):
        ...
        aifx.core.errors.ConfigError: ...
    """
    from aifx.lines.checks import Knowledge, check_line

    found = find_project(Path(project))
    return check_line(_path(file, found), found, Knowledge(os.environ, check_command, _has_field))


def _path(file: StrPath | None, project: Project) -> Path:
    from aifx.lines.file import LINE

    return project.root / LINE if file is None else Path(file)


def _has_field(command: str, keys: Sequence[str]) -> bool:
    """Whether the document of a command has a value; True for a command whose document is not described."""
    from aifx.verbs.schemas import command_types

    kind = command_types().get(command.replace(" ", "-"), Any)
    return keys[0] == "schema_version" or _leads(kind, keys)


def _leads(kind: Any, keys: Sequence[str]) -> bool:
    """Whether keys, and numbers in lists, may lead to a value in one of this type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated or str(origin).endswith("Required"):
        return _leads(arguments[0], keys)
    if not keys or kind is Any or kind is object or hasattr(kind, "__value__"):
        return True
    if origin in (Union, UnionType):
        return any(_leads(one, keys) for one in arguments)
    if is_dataclass(kind) or is_typeddict(kind):
        hints = get_type_hints(kind)
        return keys[0] in hints and _leads(hints[keys[0]], keys[1:])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _leads(arguments[1], keys[1:])
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return keys[0].isdecimal() and _leads(arguments[0], keys[1:])
    return False
